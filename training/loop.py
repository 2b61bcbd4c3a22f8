"""The training loop: epochs of steps (training/sgd.py), and a state file from which a killed run goes on bit for bit.

A phase is ``epochs`` of SGD on one module. Its state (weights, momentum, moving average, position, the generator's
state at the start of the epoch, the best weights so far) is written atomically every minute and after each epoch.
Batches are a function of the generator's state alone (training/epochs.py), so an interrupted and resumed run makes the
same steps as one that was left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hce_engine.errors import RecipeError

from . import checkpoint, distributed
from .cuda_graph import CapturedStep
from .ema import MovingAverage
from .epochs import Batch, Epochs
from .folder_data import AnySplit
from .progress import MetricsLog, TrainingProgress
from .recipe import FitSection
from .sgd import Loss as Loss
from .sgd import Sgd, Update, learning_rate, step

Score = Callable[[nn.Module], Mapping[str, float]]

STATE_FORMAT = 2  # of the state file; one of another format is of another phase
SHOW_SECONDS = 0.1


def forward_of(module: nn.Module, compile: bool, precision: str) -> Callable[[Tensor], Tensor]:
    """Images to float32 logits: ``module`` itself, compiled for one fixed batch shape, or under bfloat16 autocast.

    Autocast rounds the operands and the results of convolutions and linears to bfloat16; weights, batch norm statistics
    and the loss stay in float32.
    """
    forward: Callable[[Tensor], Tensor] = module
    if compile:
        # Every member, round and mode is one entry of the same code object's cache; past the limit torch runs eagerly.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        forward = torch.compile(module, dynamic=False)
    if precision == "fp32":
        return forward

    def under_autocast(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return forward(images).float()

    return under_autocast


def float32_convolutions() -> AbstractContextManager[None]:
    """A context in which cuDNN does not round operands to TF32, as it otherwise does; without effect on a CPU."""
    cudnn = torch.backends.cudnn
    context: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False,
    )
    return context


@torch.no_grad()
def predict(module: nn.Module, split: AnySplit, batch_size: int = 500) -> Tensor:
    """Logits ``(N, classes)`` in eval mode; the module's mode is restored."""
    was_training = module.training
    module.eval()
    with float32_convolutions():  # what is reported is float32
        parts = [module(images) for images in split.chunks(batch_size)]
    module.train(was_training)
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


@dataclass
class _Position:
    """Where a phase stands: ``step`` of ``epoch`` comes next; the sums are over the steps of this epoch."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Phase:
    """All that one phase of training needs.

    score: metrics on the hold-out after every epoch, ``holdout`` among them; with ``options.select = best`` the weights
    of its highest value are kept (the later ones when several are equal), otherwise, or when score is None, the last
    ones. Weights are those of the moving average where there is one.
    on_epoch(module, epoch): called before every epoch, also after a resume, so it must depend on its arguments alone.
    after_epoch(module, epoch): called after the last step of every epoch, before the network is scored and saved.
    Both change tensors in place.  save_seconds: how much work a kill may cost at most.
    """

    name: str
    options: FitSection
    batches: Epochs
    loss: Loss
    seed: int
    state_path: Path
    log: MetricsLog
    progress: TrainingProgress
    compile: bool = False
    precision: str = "fp32"
    score: Score | None = None
    on_epoch: Callable[[nn.Module, int], None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None
    save_seconds: float = 60.0


def fit(module: nn.Module, phase: Phase) -> nn.Module:
    """Trains ``module`` in place through ``phase``, from its state file if that holds this phase; returns it.

    Raises RecipeError when the loss is no longer finite.
    """
    with float32_convolutions():
        _Fit(module, phase).run()
    return module.eval()


class _Fit:
    """A phase under way."""

    def __init__(self, module: nn.Module, phase: Phase) -> None:
        options = phase.options
        self.module, self.phase, self.steps = module, phase, phase.batches.steps
        self.total = self.steps * options.epochs
        self.generator = torch.Generator().manual_seed(phase.seed)
        self.position, self.rng = _Position(), self.generator.get_state()
        self.best: dict[str, Any] = {"value": -math.inf, "module": None}
        self.optimizer = Sgd(module, options)
        state = checkpoint.load(phase.state_path) if phase.state_path.exists() else {}
        if (state.get("format"), state.get("phase")) != (STATE_FORMAT, phase.name):
            state = {}
        if state:
            module.load_state_dict(state["module"])
            self.optimizer.load(state["momentum"])
            self.position, self.rng, self.best = _Position(**state["position"]), state["rng"], state["best"]
        distributed.spread(module)  # nobody goes on before all have read the state
        self.average = MovingAverage(module, options.ema) if options.ema else None
        if state and self.average is not None:
            self.average.load(state["average"])
        forward = forward_of(module, phase.compile, phase.precision)
        sums = torch.zeros(3, dtype=torch.float64, device=self.optimizer.rate.device)
        self.update = Update(module, forward, self.optimizer, phase.loss, sums, options.grad_clip)
        captured = sums.device.type == "cuda" and distributed.share()[1] == 1
        self.step: Callable[[Batch], None] = CapturedStep(self.update) if captured else partial(step, self.update)
        self.saved = self.shown = time.monotonic()

    def run(self) -> None:
        phase, options = self.phase, self.phase.options
        phase.log.rewind(phase.name, self.position.epoch)
        phase.progress.phase(phase.name, self.total, self._done())
        while self.position.epoch < options.epochs:
            self._epoch()
        if options.select == "best" and self.best["module"] is not None:
            self.module.load_state_dict(self.best["module"])
        elif self.average is not None:
            self.module.load_state_dict(self.average.values)
        # The last step's loss was that of the weights before it.
        bad = [key for key, value in self.module.state_dict().items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise self._diverged(f"weights that are not finite, {bad[0]} first")

    def _diverged(self, got: str) -> RecipeError:
        return RecipeError(f"training phase {self.phase.name}", expected="a finite loss", got=got,
                           fix="lower the learning rate or set grad_clip")

    def _done(self) -> int:
        return self.position.epoch * self.steps + self.position.step

    def _epoch(self) -> None:
        phase, position = self.phase, self.position
        self.module.train()
        if phase.on_epoch is not None:
            phase.on_epoch(self.module, position.epoch)
        self.generator.set_state(self.rng)
        self.update.sums.copy_(torch.tensor([position.loss_sum, position.correct, position.seen], dtype=torch.float64))
        started, first = time.monotonic(), position.seen
        for batch in phase.batches.epoch(self.generator, position.step):
            done = self._done()
            self.optimizer.rate.fill_(learning_rate(phase.options, done, self.total))
            self.step(batch)
            if self.average is not None:
                self.average.update(done)
            position.step += 1
            self._look_up()
        self._read()
        if phase.after_epoch is not None:
            phase.after_epoch(self.module, position.epoch)
        seconds, rate = time.monotonic() - started, learning_rate(phase.options, self._done() - 1, self.total)
        record = {
            "phase": phase.name, "epoch": position.epoch, "lr": rate, "loss": position.loss_sum / position.seen,
            "train": position.correct / position.seen, "seconds": seconds,
            "images_per_second": (position.seen - first) / seconds,
        }
        with self.average.in_place() if self.average is not None else nullcontext():
            record.update(self._score())
        phase.log.append(record)
        phase.progress.line(_summary(record, phase.options.epochs))
        self.position, self.rng = _Position(epoch=position.epoch + 1), self.generator.get_state()
        self._save()

    def _look_up(self) -> None:
        """Shows and saves when it is time for it; reading the sums in every step would keep a GPU waiting."""
        now = time.monotonic()
        if now - self.shown >= SHOW_SECONDS:
            self._read()
            position = self.position
            self.phase.progress.at(self._done(), f"loss {position.loss_sum / position.seen:.3f}  "
                                                 f"right {position.correct / position.seen:.3f}")
            self.shown = now
        if now - self.saved >= self.phase.save_seconds:
            self._read()
            self._save()

    def _read(self) -> None:
        """Brings the sums from the device to the position."""
        loss_sum, correct, seen = self.update.sums.tolist()
        if not math.isfinite(loss_sum):
            raise self._diverged(f"{loss_sum} in epoch {self.position.epoch + 1}")
        self.position.loss_sum, self.position.correct, self.position.seen = loss_sum, int(correct), int(seen)

    def _score(self) -> dict[str, float]:
        if self.phase.score is None:
            return {}
        scores = distributed.agreed(self.phase.score(self.module), self.optimizer.rate.device)
        if self.phase.options.select == "best" and scores["holdout"] >= self.best["value"]:
            weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
            self.best = {"value": scores["holdout"], "module": weights}
        return scores

    def _save(self) -> None:
        checkpoint.save(self.phase.state_path, {
            "format": STATE_FORMAT, "phase": self.phase.name, "module": self.module.state_dict(),
            "momentum": self.optimizer.state(), "average": self.average.values if self.average is not None else None,
            "position": vars(self.position), "rng": self.rng, "best": self.best,
        })
        self.saved = time.monotonic()


def _summary(record: Mapping[str, Any], epochs: int) -> str:
    apart = ("phase", "epoch", "lr", "loss", "seconds", "images_per_second")
    scores = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if k not in apart)
    return (f"{record['phase']:<9} epoch {record['epoch'] + 1:>3}/{epochs}  loss {record['loss']:.4f}  {scores}  "
            f"{record['images_per_second']:.0f} images/s")
