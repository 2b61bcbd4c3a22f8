"""The loop: schedules, one step, selection, and a kill at any moment that leaves no trace in the result."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hce_engine.errors import RecipeError, WriteError
from hce_engine.training import checkpoint
from hce_engine.training.data import Augmentation, Batch, Batches, Split, mean_codes, to_split
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.loop import Phase, accuracy, fit, predict
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.recipe import FitSection

from .float_graphs import CLASSES, Builder, pictures, residual

OPTIONS = FitSection(epochs=3, lr=0.05, batch_size=8, weight_decay=1e-3, warmup=0.1, label_smoothing=0.1, grad_clip=5.0)


def data(count: int = 28) -> Split:
    labels = torch.arange(count) % CLASSES
    images = pictures(count).transpose(0, 2, 3, 1)
    return to_split(images, labels.numpy(), [str(c) for c in range(CLASSES)])


def phase(out: Path, **changes: object) -> Phase:
    batches = Batches(data(), OPTIONS.batch_size, Augmentation(2, True), mean_codes(Builder().input))
    keys = {
        "name": "o", "options": OPTIONS, "batches": batches, "seed": 7,
        "loss": lambda z, batch: F.cross_entropy(z, batch.labels),
        "state_path": out / "state.pt", "log": MetricsLog(out / "metrics.jsonl"), "progress": TrainingProgress(False),
    }
    return Phase(**{**keys, **changes})


class Killed(Exception):
    pass


def killed_at(count: int):
    """A loss that dies in its ``count``-th call."""
    calls = iter(range(count))

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if next(calls, None) is None:
            raise Killed
        return F.cross_entropy(logits, batch.labels)

    return loss


def same(a: GraphModule, b: GraphModule) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def holdout_score(module: torch.nn.Module) -> dict[str, float]:
    return {"holdout": accuracy(predict(module, data(10)), data(10).labels)}


def records(run: Path) -> list[dict]:
    """What the log says, but for how long it took."""
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in timing} for r in MetricsLog(run / "metrics.jsonl").lines()]


@pytest.mark.parametrize("kills", [(0,), (2,), (4,), (5, 3), (11,), (1, 1, 1, 1)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, kills: tuple[int, ...]) -> None:
    whole = fit(GraphModule(residual()), phase(tmp_path / "whole", score=holdout_score))
    for count in kills:
        with pytest.raises(Killed):
            fit(GraphModule(residual()),
                phase(tmp_path / "cut", score=holdout_score, save_seconds=0.0, loss=killed_at(count)))
    cut = fit(GraphModule(residual()), phase(tmp_path / "cut", score=holdout_score))
    assert same(whole, cut)
    assert records(tmp_path / "whole") == records(tmp_path / "cut") and len(records(tmp_path / "cut")) == OPTIONS.epochs


@pytest.mark.parametrize("kills", [(2,), (4,), (5, 3), (11,)])
def test_a_moving_average_is_resumed_too(tmp_path: Path, kills: tuple[int, ...]) -> None:
    keys = {"options": replace(OPTIONS, ema=0.9), "score": holdout_score}
    whole = fit(GraphModule(residual()), phase(tmp_path / "whole", **keys))
    for count in kills:
        with pytest.raises(Killed):
            fit(GraphModule(residual()), phase(tmp_path / "cut", save_seconds=0.0, loss=killed_at(count), **keys))
    assert same(whole, fit(GraphModule(residual()), phase(tmp_path / "cut", **keys)))
    assert not same(whole, fit(GraphModule(residual()), phase(tmp_path / "plain", score=holdout_score)))


def test_a_kill_between_the_last_step_of_an_epoch_and_its_score_costs_nothing(tmp_path: Path) -> None:
    def dies(module: torch.nn.Module) -> dict[str, float]:
        raise Killed

    whole = fit(GraphModule(residual()), phase(tmp_path / "whole", score=holdout_score))
    with pytest.raises(Killed):
        fit(GraphModule(residual()), phase(tmp_path / "cut", score=dies, save_seconds=0.0))
    assert same(whole, fit(GraphModule(residual()), phase(tmp_path / "cut", score=holdout_score)))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_kill_between_saves_costs_steps_but_not_the_result(tmp_path: Path) -> None:
    whole = fit(GraphModule(residual()), phase(tmp_path / "whole"))
    with pytest.raises(Killed):  # only the ends of epochs are saved
        fit(GraphModule(residual()), phase(tmp_path / "cut", save_seconds=math.inf, loss=killed_at(7)))
    assert same(whole, fit(GraphModule(residual()), phase(tmp_path / "cut")))


def test_the_state_of_another_phase_is_not_taken(tmp_path: Path) -> None:
    fit(GraphModule(residual()), phase(tmp_path))
    again = fit(GraphModule(residual()), phase(tmp_path, name="s"))
    assert same(again, fit(GraphModule(residual()), phase(tmp_path / "fresh", name="s")))
    assert len(MetricsLog(tmp_path / "metrics.jsonl").lines()) == 2 * OPTIONS.epochs


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    fit(GraphModule(residual()), phase(tmp_path, options=replace(OPTIONS, epochs=8)))
    losses = [r["loss"] for r in MetricsLog(tmp_path / "metrics.jsonl").lines()]
    assert losses[-1] < losses[0]


def test_bfloat16_steps_train_float32_weights(tmp_path: Path) -> None:
    seen = []

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(logits.dtype)
        return F.cross_entropy(logits, batch.labels)

    options = replace(OPTIONS, epochs=8)
    module = fit(GraphModule(residual()), phase(tmp_path / "bf16", options=options, precision="bf16", loss=loss))
    exact = fit(GraphModule(residual()), phase(tmp_path / "fp32", options=options))
    assert set(seen) == {torch.float32} and all(p.dtype == torch.float32 for p in module.parameters())
    assert not same(module, exact)
    losses = [r["loss"] for r in records(tmp_path / "bf16")]
    assert losses[-1] < losses[0]


def test_the_best_epoch_on_the_holdout_is_kept(tmp_path: Path) -> None:
    values = iter([0.2, 0.9, 0.5])
    seen = []

    def score(module: torch.nn.Module) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"holdout": next(values)}

    module = fit(GraphModule(residual()), phase(tmp_path, score=score))
    assert all(torch.equal(v, seen[1][k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path: Path, ema: float) -> None:
    values = iter([0.2, 0.9, 0.5])
    seen = []

    def score(module: torch.nn.Module) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"holdout": next(values)}

    options = replace(OPTIONS, select="last", ema=ema)
    module = fit(GraphModule(residual()), phase(tmp_path, score=score, options=options))
    assert all(torch.equal(v, seen[2][k]) for k, v in module.state_dict().items())


def test_the_average_is_what_is_kept_without_a_score(tmp_path: Path) -> None:
    averaged = fit(GraphModule(residual()), phase(tmp_path / "a", options=replace(OPTIONS, ema=0.5)))
    plain = fit(GraphModule(residual()), phase(tmp_path / "b"))
    assert not same(averaged, plain)


def test_weights_are_changed_after_an_epoch_before_its_score(tmp_path: Path) -> None:
    def clear(module: torch.nn.Module, epoch: int) -> None:
        with torch.no_grad():
            next(p for p in module.parameters() if p.ndim == 4)[epoch].zero_()

    def score(module: torch.nn.Module) -> dict[str, float]:
        zero = (next(p for p in module.parameters() if p.ndim == 4).flatten(1) == 0).all(1)
        seen.append(zero.nonzero().flatten().tolist())
        return {"holdout": 0.0}

    seen: list[list[int]] = []
    fit(GraphModule(residual()), phase(tmp_path, score=score, after_epoch=clear))
    assert seen == [[0], [1], [2]]


def test_a_state_of_another_format_is_not_taken(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state.pt", {"phase": "o", "module": {}, "optimizer": {}})
    assert same(fit(GraphModule(residual()), phase(tmp_path)), fit(GraphModule(residual()), phase(tmp_path / "fresh")))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"finite loss.*lower the learning rate"):
        fit(GraphModule(residual()), phase(tmp_path, loss=lambda z, batch: z.sum() * float("nan")))


def test_a_last_step_that_diverges_stops_the_run(tmp_path: Path) -> None:
    """Its loss is of the weights before it."""

    def ruin(part: torch.nn.Module, epoch: int) -> None:
        with torch.no_grad():
            next(part.parameters()).fill_(float("inf"))

    with pytest.raises(RecipeError, match="weights that are not finite"):
        fit(GraphModule(residual()), phase(tmp_path, options=replace(OPTIONS, epochs=1), after_epoch=ruin))


def test_no_epochs_leave_the_module_alone(tmp_path: Path) -> None:
    module = GraphModule(residual())
    before = GraphModule(residual())
    assert same(fit(module, phase(tmp_path, options=replace(OPTIONS, epochs=0))), before)


def test_predict_restores_the_mode_and_does_not_depend_on_the_batch() -> None:
    module = GraphModule(residual()).train()
    a, b = predict(module, data(), 28), predict(module, data(), 5)
    assert module.training
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_metrics_that_cannot_be_written_are_an_error_of_writing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WriteError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"phase": "o", "epoch": 0})


def test_metrics_survive_a_line_cut_short(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"phase": "o", "epoch": 0})
    log.append({"phase": "o", "epoch": 1})
    with open(log.path, "a") as file:
        file.write('{"phase": "o", "ep')
    log.rewind("o", 2)
    log.append({"phase": "o", "epoch": 2})
    assert [r["epoch"] for r in log.lines()] == [0, 1, 2]
    log.rewind("o", 1)
    assert [r["epoch"] for r in log.lines()] == [0]
