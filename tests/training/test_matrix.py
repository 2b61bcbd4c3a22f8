"""A matrix trains every row once, shares members, goes on after a kill, and counts what it found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine.errors import RecipeError
from hce_engine.training import matrix_run
from hce_engine.training.matrix import MATRICES, Matrix, load_matrix
from hce_engine.training.matrix_results import results
from hce_engine.training.matrix_run import Job, ready, run_matrix
from hce_engine.training.recipe import parse
from hce_engine.training.run_files import held

from .float_graphs import pictures
from .own_network import Small

BASE = f"""
arch = "{Small.__module__}:Small"
[data]
holdout = 15
padding = 1
[o]
epochs = 1
lr = 0.05
batch_size = 16
[q]
epochs = 0
frozen_norm_epochs = 0
lr = 0.01
calibration_images = 16
[s]
epochs = 1
lr = 0.02
batch_size = 16
rounds = 1
round_epochs = 0
flops_ratio = 0.7
"""
MATRIX = """
recipe = "base.toml"
seeds = [0, 1]
control = "kd"
[rows.o]
title = "O"
drop = ["q", "s"]
[rows.hce]
[rows.kd]
objective = { reading = "kd" }
[rows.q-other]
drop = ["s"]
q = { repeat = 1, calibration = "min-max" }
[ensembles.two-q]
members = ["hce:q", "q-other:q"]
[ensembles.two-o]
members = ["o:o"]
across_seeds = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix")
    (path / "base.toml").write_text(BASE)
    (path / "small.toml").write_text(MATRIX)
    images, labels = pictures(120).transpose(0, 2, 3, 1).copy(), np.arange(120) % 3
    np.savez(path / "data.npz", x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    return path


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[Matrix, Path]:
    matrix = load_matrix(folder / "small.toml")
    assert run_matrix(matrix, folder / "data.npz", folder / "runs", jobs=2) == {}
    return matrix, folder / "runs"


def test_shared_members_are_trained_once(done: tuple[Matrix, Path]) -> None:
    _, out = done
    phases = [json.loads(line)["phase"] for log in out.glob("*/metrics.jsonl") for line in log.read_text().splitlines()]
    # Two seeds: O once each, S of two rows each.
    assert sorted(phases) == ["o"] * 2 + ["s"] * 4
    for seed in (0, 1):
        assert len({(out / f"{row}-s{seed}" / "o.pt").read_bytes() for row in ("o", "hce", "kd", "q-other")}) == 1
    assert (out / "o-s0" / "o.pt").read_bytes() != (out / "o-s1" / "o.pt").read_bytes()


def test_results_are_those_of_the_runs(done: tuple[Matrix, Path]) -> None:
    matrix, out = done
    value = results(matrix, out)
    rows = {row["row"]: row for row in json.loads(json.dumps(value))["rows"]}
    assert list(rows) == ["o", "hce", "kd", "q-other", "two-q", "two-o"]
    for name, member in (("o", "o"), ("hce", "ensemble"), ("kd", "ensemble"), ("q-other", "q")):
        runs = [json.loads((out / f"{name}-s{seed}" / "result.json").read_text()) for seed in (0, 1)]
        assert rows[name]["correct"] == [r["correct"][member] for r in runs] and rows[name]["seeds"] == [0, 1]
        assert rows[name]["holdout"] == [r["holdout"]["accuracy"][member] for r in runs]
        if name != "o":
            assert rows[name]["flops_ratio"] == pytest.approx(runs[0]["ledger"]["flops_ratio"])
    assert rows["o"]["flops_ratio"] == 1 and rows["two-o"]["flops_ratio"] == 2
    assert rows["two-q"]["flops_ratio"] == pytest.approx(2 * rows["q-other"]["flops_ratio"])
    assert rows["hce"]["member_accuracy"]["q"] == [
        json.loads((out / f"hce-s{s}" / "result.json").read_text())["accuracy"]["q"] for s in (0, 1)
    ]
    # Image by image against the control: the difference of the two counts is that of the accuracies.
    versus = rows["hce"]["control"]
    assert versus["row"] == "kd" and "control" not in rows["kd"]
    gain = np.subtract(versus["only_this_right"], versus["only_control_right"])
    assert gain.tolist() == np.subtract(rows["hce"]["correct"], rows["kd"]["correct"]).tolist()
    # The mean of the two O, by hand.
    arrays = [np.load(out / f"o-s{s}" / "logits.npz") for s in (0, 1)]
    mean = (arrays[0]["test/o"] + arrays[1]["test/o"]) / 2
    assert rows["two-o"]["correct"] == [int((mean.argmax(1) == arrays[0]["test/labels"]).sum())]


def test_a_finished_matrix_is_left_alone_and_a_missing_run_is_said(done: tuple[Matrix, Path], folder: Path) -> None:
    matrix, out = done
    said: list[str] = []
    assert run_matrix(matrix, folder / "data.npz", out, say=said.append) == {} and said == []
    rows = {row["row"]: row for row in results(matrix, folder / "elsewhere")["rows"]}
    assert all(row["status"] == "not run" for row in rows.values()) and "accuracy" not in rows["hce"]


def test_a_failed_run_is_reported_and_stops_nobody(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "m.toml").write_text('recipe = "base.toml"\nseeds = [0]\n[rows.bad]\ns = { flops_ratio = 0.05 }\n[rows.good]\ndrop = ["q", "s"]\n')
    failed = run_matrix(load_matrix(tmp_path / "m.toml"), folder / "data.npz", tmp_path / "runs")
    assert list(failed) == ["bad-s0"] and "flops_ratio above what Q alone costs" in failed["bad-s0"]
    assert (tmp_path / "runs" / "good-s0" / "result.json").exists()


@pytest.mark.parametrize("signal_name", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_worker_ends_with_its_matrix(folder: Path, tmp_path: Path, signal_name: signal.Signals) -> None:
    (tmp_path / "base.toml").write_text(BASE.replace("epochs = 1\n", "epochs = 100000\n", 1))
    (tmp_path / "m.toml").write_text('recipe = "base.toml"\nseeds = [0]\n[rows.long]\ndrop = ["q", "s"]\n')
    command = [sys.executable, "-m", "hce_engine", "matrix", str(tmp_path / "m.toml"), "--data", str(folder / "data.npz"),
               "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    out = tmp_path / "runs" / "long-s0"
    try:
        wait_until(lambda: (out / "metrics.jsonl").exists(), 120)
    finally:
        process.send_signal(signal_name)
        process.wait(30)

    def is_free() -> bool:
        try:
            with held(out):
                return True
        except RecipeError:
            return False

    wait_until(is_free, 30)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_a_job_waits_for_the_member_that_another_makes() -> None:
    values = {"arch": "resnet20", "o": {"epochs": 1, "lr": 0.1}, "q": {"epochs": 1, "lr": 0.1}}
    first, second = (Job(n, parse({**values, "q": {"epochs": e, "lr": 0.1}}, n), Path(n)) for n, e in (("a", 1), ("b", 2)))
    o, q = first.recipe.member_digest("o"), first.recipe.member_digest("q")
    assert not ready(second, [first], set()), "both would train O"
    assert ready(second, [first], {o}) and ready(second, [], set())
    assert not ready(first, [first], {o}) and ready(first, [first], {o, q})


def test_a_matrix_extends_another(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(
        f'extends = "{folder / "small.toml"}"\nseeds = [7]\ndrop = ["kd", "two-q"]\ncontrol = "o"\n'
        "[rows.hce]\ns = { lr = 0.5 }\n[rows.q-other]\nq = { repeat = 2 }\n"
    )
    base, more = load_matrix(folder / "small.toml"), load_matrix(tmp_path / "more.toml")
    assert [row.name for row in more.rows] == ["o", "hce", "q-other"] and [e.name for e in more.ensembles] == ["two-o"]
    hce, other = (row.recipes[0] for row in more.rows[1:])
    assert hce.s.lr == 0.5 and hce.seed == 7 and base.rows[1].recipes[0].s.lr == 0.02
    # What the row had said before stays said.
    assert other.members == ("o", "q") and (other.q.repeat, other.q.calibration) == (2, "min-max")
    (tmp_path / "again.toml").write_text('extends = "again.toml"')
    for text, message in (('extends = "again.toml"', "again.toml twice"), ('extends = "small.toml"\ndrop = ["no"]', "drop as a list")):
        (tmp_path / "again.toml").write_text(text.replace("small.toml", str(folder / "small.toml")))
        with pytest.raises(RecipeError, match=message):
            load_matrix(tmp_path / "again.toml")


@pytest.mark.parametrize("path", sorted(MATRICES.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_matrices_load(path: Path) -> None:
    matrix = load_matrix(path.stem)
    assert matrix.rows and matrix == load_matrix(path)
    names = [job.name for job in matrix_run.jobs_of(matrix, Path("out"))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0, 1]", "seeds = []"), "list of different whole numbers"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), "list of different whole numbers"),
        (("seeds = [0, 1]", "seeds = 3"), "seeds as a list"),
        (("[rows.hce]", "[rows]\nx = 1\n[rows.hce]"), "rows as a table of tables"),
        (('members = ["o:o"]', "members = 3"), "members, and exactly one"),
        (('"hce:q"', '"hce:x"'), "got hce:x"),
        (('members = ["o:o"]', 'members = ["o:o", "hce:o"]'), "exactly one of them"),
        (('drop = ["q", "s"]', 'drop = ["o"]'), 'drop as a list of "q" and "s"'),
        (('control = "kd"', 'control = "no"'), "control as the name of a row"),
        (("[rows.hce]", "[rows.hce]\nspeed = 1"), "got 'speed'"),
        (("[rows.hce]", "[row.hce]"), "got 'row'"),
        (('recipe = "base.toml"', 'recipe = "none.toml"'), "an existing one"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "m.toml").write_text(MATRIX.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load_matrix(tmp_path / "m.toml")
