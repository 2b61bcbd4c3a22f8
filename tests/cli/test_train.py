"""From a recipe to predictions with nothing but commands, on a model that lives outside the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

RECIPE = """
arch = "small_net_for_tests:factory"
compile = false
[data]
holdout = 0
padding = 0
flip = false
[o]
epochs = 2
lr = 0.05
batch_size = 16
[q]
weight_bits = 3
activation_bits = 3
calibration_images = 32
epochs = 1
frozen_norm_epochs = 1
lr = 0.01
batch_size = 16
[s]
flops_ratio = 0.9
rounds = 1
round_epochs = 1
round_lr = 0.01
epochs = 1
lr = 0.01
batch_size = 16
[objective]
reading = "V5"
w_ce = 0.4
w_diff = 0.6
temperature = 4.0
"""


def test_train_build_eval_info_run(
    run_hce: Callable, own_module: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    recipe, out, model = tmp_path / "recipe.toml", tmp_path / "run", tmp_path / "model.hce"
    recipe.write_text(RECIPE)
    trained = run_hce("train", recipe, "--data", data, "--out", out, "--json", tmp_path / "train.json")
    assert trained.code == 0, trained.err
    assert "hce build" in trained.err
    assert run_hce("train", recipe, "--data", data, "--out", out).code == 0  # finished: nothing is trained again

    built = run_hce("build", out, "-o", model, "--data", data, "--json", tmp_path / "build.json")
    assert built.code == 0, built.err
    checks = json.loads((tmp_path / "build.json").read_text())["verification"]["members"]
    assert {name: check["exact"] for name, check in checks.items()} == {"q": True, "s": False, "o": False}
    assert checks["q"]["max_abs_difference"] == 0

    evaluated = run_hce("eval", model, "--data", data, "--json", tmp_path / "eval.json")
    assert evaluated.code == 0, evaluated.err
    measured = json.loads((tmp_path / "eval.json").read_text())
    assert measured["total"] == 32
    # The engine classifies as the training run's own exact evaluation said.
    assert measured["correct"]["q"] == json.loads((tmp_path / "train.json").read_text())["correct"]["q"]

    assert run_hce("info", model, "--json", tmp_path / "info.json").code == 0
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["flops_ratio"] <= 0.9
    assert facts["layers"]["q"][1]["bits"] == [3, 3]

    with np.load(data) as arrays:
        np.save(tmp_path / "images.npy", arrays["x_test"])
    assert run_hce("run", model, tmp_path / "images.npy", "-o", tmp_path / "p.csv").code == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 33

    alone = run_hce("build", out, "-o", tmp_path / "alone.hce", "--no-reference")
    assert alone.code == 0, alone.err
    assert run_hce("info", tmp_path / "alone.hce", "--json", tmp_path / "alone.json").code == 0
    without = json.loads((tmp_path / "alone.json").read_text())
    assert set(without["members"]) == {"q", "s"}
    assert without["flops_ratio"] == pytest.approx(facts["flops_ratio"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("no-such-recipe",), 2, "recipe"),
        (("quickstart-digits", "--arch", "nothing:here"), 2, "nothing:here"),
        (("quickstart-digits", "--device", "reference"), 2, "--device"),
        (("hce-resnet20-cifar10-short",), 2, "--checkpoint"),
    ],
)
def test_wrong_use_of_train(
    run_hce: Callable, data: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = run_hce("train", *arguments, "--data", data, "--out", tmp_path / "run")
    assert result.code == code
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_run_knows_its_own_architecture(run_hce: Callable, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    result = run_hce("build", tmp_path / "run", "--arch", "resnet20", "-o", tmp_path / "m.hce")
    assert result.code == 2
    assert "a run knows its own" in result.err
    assert run_hce("build", tmp_path / "run", "-o", tmp_path / "m.hce").code == 2
