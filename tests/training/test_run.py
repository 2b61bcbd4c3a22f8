"""A whole run on a model that the project does not know: O, Q and S come out, kills leave no trace, and wrong use is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from hce_engine.errors import CheckpointError, DataError, InputError, RecipeError, UnsupportedError
from hce_engine.training import checkpoint, loop
from hce_engine.training.datasets import read_data
from hce_engine.training.export import input_of, is_run, members_of
from hce_engine.training.loop import Loss
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.quantize import QuantModule
from hce_engine.training.run import train
from hce_engine.training.run_files import adopt, held
from hce_engine.training.stages import Run
from hce_engine.training.stages.teachers import ensemble_loss

from .float_graphs import pictures
from .own_network import Small, recipe


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety 12x12 images of three classes that differ in one colour channel's brightness."""
    images, labels = pictures(120).transpose(0, 2, 3, 1).copy(), np.arange(120) % 3
    for c in range(3):
        images[labels == c, :, :, c] |= 0xC0
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(), data, out, progress=False)
    return out


class Killed(BaseException):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    made, real = count(), loop.step

    def step(*arguments: object) -> object:
        if next(made) >= steps:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(loop, "step", step)


def go(data: Path, out: Path, **keys: object) -> dict:
    return train(keys.pop("recipe", recipe()), data, out, progress=False, **keys)


def test_a_run_makes_a_smaller_ensemble_and_says_so(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert set(result["accuracy"]) == {"o", "q", "s", "ensemble"} and result["total"] == 30
    assert result["accuracy"]["ensemble"] > 0.6  # chance is a third
    assert result["ledger"]["flops_ratio"] <= 0.7
    assert result["nonzero_flops"]["s"] == pytest.approx(result["ledger"]["members"]["s"]["flops_paper"])
    assert list(result["pairs"]) == ["q-s"]
    phases = [json.loads(line)["phase"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert phases == ["o"] * 3 + ["q"] * 2 + ["s-1", "s-2"] + ["s"] * 2
    assert not (finished / "state.pt").exists()


def test_members_are_lowered_and_ready_to_build(finished: Path) -> None:
    run = members_of(finished)
    assert list(run.members) == ["q", "s", "o"] and run.roles["o"] == "reference"
    assert run.input.shape == (3, 12, 12) and run.classes == ("0", "1", "2")
    assert any(n.op == "qconv2d" for n in run.members["q"].nodes)
    for name in ("s", "o"):
        ops = {n.op for n in run.members[name].nodes}
        assert "batch_norm" not in ops and "add" not in ops
    widths = [[len(n.params["weight"]) for n in run.members[m].nodes if n.op == "conv2d"] for m in ("o", "s")]
    assert all(s <= o for o, s in zip(*widths, strict=True)) and sum(widths[1]) < sum(widths[0])
    assert json.loads(json.dumps(run.provenance))["seed"] == 0


# Steps: O 3 x 5, Q 2 x 5, S 1 x 5 + 1 x 5 + 2 x 5.
@pytest.mark.parametrize("kills", [(0, 12, 2), (17, 10, 9), (26, 6, 0)])
def test_killed_at_any_stage_a_run_ends_in_the_same_bits(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    for steps in kills:
        with monkeypatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed):
                go(data, tmp_path / "cut")
    assert go(data, tmp_path / "cut") == json.loads((finished / "result.json").read_text())
    for name in ("o.pt", "q.pt", "s.pt"):
        a, b = (checkpoint.load_graph(run / name) for run in (finished, tmp_path / "cut"))
        for x, y in zip(a.nodes, b.nodes, strict=True):
            assert x.attrs == y.attrs and all(np.array_equal(x.params[k], y.params[k]) for k in x.params)


def test_a_finished_run_is_not_repeated(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    kill_after(monkeypatch, 0)
    assert go(data, tmp_path / "run") == json.loads((finished / "result.json").read_text())
    with pytest.raises(Killed):
        go(data, tmp_path / "run", resume=False)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_deleted_member_is_made_again(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "q.pt").unlink()
    assert go(data, tmp_path / "run") == json.loads((finished / "result.json").read_text())
    again, before = (checkpoint.load_graph(run / "q.pt") for run in (tmp_path / "run", finished))
    for a, b in zip(again.nodes, before.nodes, strict=True):
        assert a.attrs == b.attrs and all(np.array_equal(a.params[k], b.params[k]) for k in a.params)


def test_another_recipe_in_the_same_folder_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        go(data, tmp_path / "run")
    with pytest.raises(RecipeError, match="another recipe;"):
        go(data, tmp_path / "run", recipe=recipe(o={"lr": 0.06}))
    assert is_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="finished run"):
        members_of(tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    with held(tmp_path / "run"), pytest.raises(RecipeError, match="no other process trains in"):
        go(data, tmp_path / "run")
    assert not is_run(tmp_path / "run")
    with held(tmp_path / "run"):  # free again
        pass


def test_a_member_that_is_made_again_says_by_whom(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    notes = json.loads((tmp_path / "run" / "members.json").read_text())
    stale = {name: {**note, "hardware": "another machine"} for name, note in notes.items()}
    (tmp_path / "run" / "members.json").write_text(json.dumps(stale))
    (tmp_path / "run" / "q.pt").unlink()
    go(data, tmp_path / "run")
    again = json.loads((tmp_path / "run" / "members.json").read_text())
    assert again == {**stale, "q": notes["q"]}


def test_members_without_a_run_are_not_taken(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RecipeError, match=r"run.json beside members"):
        go(data, tmp_path / "run")


def test_a_kill_between_a_member_and_its_note_is_made_up_for(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for name in ("members.json", "result.json"):
        (tmp_path / "run" / name).unlink()
    go(data, tmp_path / "run")
    assert (tmp_path / "run" / "members.json").read_text() == (finished / "members.json").read_text()


def test_members_of_another_line_are_not_taken(data: Path, finished: Path, tmp_path: Path) -> None:
    """The same keys on another O, as another machine or number of threads would make it: Q belongs to its O."""
    shutil.copytree(finished, tmp_path / "donor")
    graph = checkpoint.load_graph(finished / "o.pt")
    nodes = [replace(n, params={k: v * np.float32(1.001) for k, v in n.params.items()}) for n in graph.nodes]
    shutil.copytree(finished, tmp_path / "run")
    for name in ("q.pt", "s.pt", "result.json"):
        (tmp_path / "run" / name).unlink()
    checkpoint.save_graph(tmp_path / "run" / "o.pt", graph.with_nodes(nodes))
    assert adopt(tmp_path / "run", recipe(), [tmp_path / "donor"]) == {}
    shutil.copy(finished / "o.pt", tmp_path / "run" / "o.pt")
    assert list(adopt(tmp_path / "run", recipe(), [tmp_path / "donor"])) == ["q", "s"]


def test_o_from_a_checkpoint_is_not_trained(data: Path, tmp_path: Path) -> None:
    network = Small()
    torch.save(network.state_dict(), tmp_path / "o.pth")
    go(data, tmp_path / "run", checkpoint_path=tmp_path / "o.pth")
    graph = checkpoint.load_graph(tmp_path / "run" / "o.pt")
    stem = next(n for n in graph.nodes if n.op == "conv2d")
    assert np.array_equal(stem.params["weight"], network.stem.weight.detach().numpy())


def trained(out: Path) -> list[str]:
    """The phases that this folder saw, each once."""
    log = out / "metrics.jsonl"
    return list(dict.fromkeys(json.loads(line)["phase"] for line in log.read_text().splitlines())) if log.exists() else []


def test_logits_are_kept_with_their_labels(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    with np.load(finished / "logits.npz") as arrays:
        assert set(arrays.files) == {f"{split}/{name}" for split in ("test", "holdout") for name in ("o", "q", "s", "labels")}
        for name in "oqs":
            right = int((arrays[f"test/{name}"].argmax(1) == arrays["test/labels"]).sum())
            assert right == result["correct"][name] and arrays[f"holdout/{name}"].shape == (15, 3)
    assert set(result["holdout"]["accuracy"]) == {"o", "q", "s", "ensemble"} and set(result["scaled"]) >= {"o", "q", "s"}


def test_members_are_taken_from_a_run_that_made_them_in_the_same_way(data: Path, finished: Path, tmp_path: Path) -> None:
    go(data, tmp_path / "kd", recipe=recipe(objective={"reading": "kd"}), reuse=[finished])
    assert trained(tmp_path / "kd") == ["s-1", "s-2", "s"]
    notes = [json.loads((run / "members.json").read_text()) for run in (finished, tmp_path / "kd")]
    assert notes[0]["q"] == notes[1]["q"] and notes[0]["s"]["digest"] != notes[1]["s"]["digest"]
    assert (tmp_path / "kd" / "o.pt").read_bytes() == (finished / "o.pt").read_bytes()
    # Another learning rate of Q makes another Q, and so another S.
    go(data, tmp_path / "q", recipe=recipe(q={"lr": 0.02}), reuse=[tmp_path / "kd", finished])
    assert trained(tmp_path / "q") == ["q", "s-1", "s-2", "s"]
    # Other data: nothing is shared.
    with np.load(data) as arrays:
        np.savez(tmp_path / "other.npz", **{k: arrays[k][::-1] for k in arrays.files})
    go(tmp_path / "other.npz", tmp_path / "other", recipe=recipe(q=None, s=None), reuse=[finished])
    assert trained(tmp_path / "other") == ["o"]
    with pytest.raises(CheckpointError, match="training run"):
        go(data, tmp_path / "x", reuse=[tmp_path / "nothing"])


def test_a_recipe_may_make_fewer_members(data: Path, finished: Path, tmp_path: Path) -> None:
    result = go(data, tmp_path / "o", recipe=recipe(q=None, s=None), reuse=[finished])
    assert set(result["accuracy"]) == {"o", "ensemble"} and result["accuracy"]["o"] == result["accuracy"]["ensemble"]
    assert members_of(tmp_path / "o").roles == {"o": "vote"}
    result = go(data, tmp_path / "s", recipe=recipe(q=None, objective={"reading": "kd"}), reuse=[finished])
    assert set(result["accuracy"]) == {"o", "s", "ensemble"} and 0.5 < result["ledger"]["flops_ratio"] <= 0.7
    result = go(data, tmp_path / "q", recipe=recipe(s=None), reuse=[finished])
    assert members_of(tmp_path / "q").roles == {"q": "vote", "o": "reference"} and result["ledger"]["flops_ratio"] < 0.4


def test_progressive_widths_come_before_the_final_one(data: Path, finished: Path, tmp_path: Path) -> None:
    changes = {"weight_bits": 3, "progressive": [5, 4], "progressive_epochs": 1}
    go(data, tmp_path / "run", recipe=recipe(q=changes, s=None), reuse=[finished])
    # Activations stay at their 4 bits where a width goes below.
    assert trained(tmp_path / "run") == ["q-w5a5", "q-w4a4", "q"]
    bits = {tuple(n.attrs["bits"]) for n in checkpoint.load_graph(tmp_path / "run" / "q.pt").nodes if n.op == "qconv2d"}
    assert (3, 4) in bits


def test_cached_teachers_give_the_loss_of_computed_ones(data: Path, finished: Path, tmp_path: Path) -> None:
    go(data, tmp_path / "run", recipe=recipe(objective={"cached_augmentations": 2}), reuse=[finished])
    assert trained(tmp_path / "run") == ["s-1", "s-2", "s"]
    tables = checkpoint.load(tmp_path / "run" / "teachers.pt")
    assert [tables[k].shape for k in ("0", "1")] == [(2, 75, 3)] * 2
    assert not torch.equal(tables["0"], tables["1"]), "O and Q are different networks"
    identity = json.loads((finished / "run.json").read_text())
    whole, _ = read_data(data, recipe().data)
    o = checkpoint.load_graph(finished / "o.pt")
    twin = QuantModule(o, 4, 4)
    twin.load_state_dict(checkpoint.load(finished / "q-module.pt")["module"])

    def loss_of(cached: int) -> tuple[Run, Loss]:
        run = Run(recipe(objective={"cached_augmentations": cached}), identity["arch"], None, tmp_path, input_of(identity), whole, None,
                  MetricsLog(tmp_path / "m.jsonl"), TrainingProgress(False), torch.device("cpu"))
        return run, ensemble_loss(run, o, twin)

    run, cached = loss_of(3)
    _, computed = loss_of(0)
    batch = next(run.batches(16, 3).epoch(torch.Generator().manual_seed(3)))
    assert len(set(batch.variant.tolist())) > 1
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(cached(logits, batch), computed(logits, batch), rtol=1e-4, atol=1e-5)


def test_post_training_quantization_alone(data: Path, tmp_path: Path) -> None:
    result = go(data, tmp_path / "run", recipe=recipe(q={"epochs": 0, "frozen_norm_epochs": 0}))
    assert result["correct"]["q"] > 10


def test_wrong_use_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="flops_ratio above what Q alone costs"):
        go(data, tmp_path / "a", recipe=recipe(s={"flops_ratio": 0.1}))
    assert not (tmp_path / "a" / "run.json").exists(), "an impossible recipe is refused before anything is trained"
    with pytest.raises(RecipeError, match="a checkpoint of O"):
        go(data, tmp_path / "b", recipe=recipe(checkpoint_required=True))
    with pytest.raises(DataError, match="hold-out"):
        go(data, tmp_path / "c", recipe=recipe(data={"holdout": 5000}))
    with pytest.raises(CheckpointError, match="a file"):
        go(data, tmp_path / "d", checkpoint_path=tmp_path / "missing.pth")
    with pytest.raises(InputError):
        go(data, tmp_path / "e", arch="no_such_package:Small")
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="missing"):
        go(data, tmp_path / "f", checkpoint_path=tmp_path / "other.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="CUDA"):
        go(data, tmp_path / "g", device="cuda")
    for name in "bcdefg":  # refused before anything was written
        assert not (tmp_path / name).exists()
