"""The training loop: one step function, one schedule, and a state file from which a killed run goes on bit for bit.

A phase is ``epochs`` of SGD on one module. Its state (weights, momentum, position, the generator's state at the start
of the epoch, the best weights so far) is written atomically every minute and after each epoch. Batches are a function
of the generator's state alone (training/data.py), so an interrupted and resumed run makes the same steps as one that
was left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hce_engine.errors import RecipeError

from . import checkpoint
from .data import Batch, Batches, Split
from .progress import MetricsLog, TrainingProgress
from .recipe import FitSection

Loss = Callable[[Tensor, Batch], Tensor]  # (logits (B, classes), batch) -> scalar
Score = Callable[[nn.Module], Mapping[str, float]]

ONE_CYCLE_START, ONE_CYCLE_END = 0.1, 1e-3  # of the peak learning rate (arXiv 2006.11487, its published code)


def learning_rate(options: FitSection, step: int, total: int) -> float:
    """The rate of step ``step`` (from 0) of ``total``: see :class:`FitSection` for the schedules."""
    warmup = round(options.warmup * total)
    if options.schedule == "constant":
        low, end = 0.0, 1.0
    elif options.schedule == "one-cycle":
        low, end = ONE_CYCLE_START, ONE_CYCLE_END
    else:
        low, end = 0.0, 0.0
    if step < warmup:
        return options.lr * (low + (1 - low) * (step + 1) / warmup)
    share = (step - warmup) / max(1, total - warmup)
    return options.lr * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share)))


def optimizer_for(module: nn.Module, options: FitSection) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices and kernels only, not on biases, norms and step sizes."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def step(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, loss: Loss, batch: Batch, grad_clip: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One update; returns the loss and the number of right predictions, both scalars that need no synchronisation."""
    optimizer.zero_grad(set_to_none=True)
    logits = forward(batch.images)
    value = loss(logits, batch)
    value.backward()
    if grad_clip:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], grad_clip)
    optimizer.step()
    return value.detach(), (logits.detach().argmax(1) == batch.labels).sum()


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


@torch.no_grad()
def predict(module: nn.Module, split: Split, batch_size: int = 500) -> Tensor:
    """Logits ``(N, classes)`` in eval mode; the module's mode is restored."""
    was_training = module.training
    module.eval()
    parts = [module(split.nchw(i, i + batch_size)) for i in range(0, len(split), batch_size)]
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

    score: metrics on the hold-out after every epoch; the weights of the best ``select`` are kept (the last ones when
    several are equal, or when score is None).  on_epoch(module, epoch): called before every epoch, also after a resume,
    so it must depend on its arguments alone.  save_seconds: how much work a kill may cost at most.
    """

    name: str
    options: FitSection
    batches: Batches
    loss: Loss
    seed: int
    state_path: Path
    log: MetricsLog
    progress: TrainingProgress
    compile: bool = False
    precision: str = "fp32"
    score: Score | None = None
    select: str = "holdout"
    on_epoch: Callable[[nn.Module, int], None] | None = None
    save_seconds: float = 60.0


def fit(module: nn.Module, phase: Phase) -> nn.Module:
    """Trains ``module`` in place through ``phase``, from its state file if that holds this phase; returns it.

    Raises RecipeError when the loss is no longer finite.
    """
    options, batches = phase.options, phase.batches
    generator = torch.Generator().manual_seed(phase.seed)
    optimizer = optimizer_for(module, options)
    position, rng = _Position(), generator.get_state()
    best: dict[str, Any] = {"value": -math.inf, "module": None}
    state = checkpoint.load(phase.state_path) if phase.state_path.exists() else {}
    if state.get("phase") == phase.name:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        position, rng, best = _Position(**state["position"]), state["rng"], state["best"]
    phase.log.rewind(phase.name, position.epoch)

    def save() -> None:
        checkpoint.save(phase.state_path, {
            "phase": phase.name, "module": module.state_dict(), "optimizer": optimizer.state_dict(),
            "position": vars(position), "rng": rng, "best": best,
        })

    steps, total = batches.steps, batches.steps * options.epochs
    phase.progress.phase(phase.name, total, position.epoch * steps + position.step)
    forward = forward_of(module, phase.compile, phase.precision)
    saved = time.monotonic()
    while position.epoch < options.epochs:
        module.train()
        if phase.on_epoch is not None:
            phase.on_epoch(module, position.epoch)
        generator.set_state(rng)
        started, first = time.monotonic(), position.seen
        for batch in batches.epoch(generator, position.step):
            rate = learning_rate(options, position.epoch * steps + position.step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value, correct = step(forward, optimizer, phase.loss, batch, options.grad_clip)
            position.step += 1
            position.seen += len(batch.labels)
            position.loss_sum += float(value) * len(batch.labels)
            position.correct += int(correct)
            if not math.isfinite(position.loss_sum):
                raise RecipeError(
                    f"training phase {phase.name}", expected="a finite loss", got=f"{float(value)} in epoch {position.epoch + 1}",
                    fix="lower the learning rate or set grad_clip",
                )
            phase.progress.step(f"loss {position.loss_sum / position.seen:.3f}  right {position.correct / position.seen:.3f}")
            if time.monotonic() - saved >= phase.save_seconds:
                save()
                saved = time.monotonic()
        seconds = time.monotonic() - started
        record = {
            "phase": phase.name, "epoch": position.epoch, "lr": rate, "loss": position.loss_sum / position.seen,
            "train": position.correct / position.seen, "images_per_second": (position.seen - first) / seconds,
        }
        if phase.score is not None:
            scores = dict(phase.score(module))
            record.update(scores)
            if scores[phase.select] >= best["value"]:
                weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
                best = {"value": scores[phase.select], "module": weights}
        phase.log.append(record)
        phase.progress.line(_summary(record, options.epochs))
        position, rng = _Position(epoch=position.epoch + 1), generator.get_state()
        save()
        saved = time.monotonic()
    if best["module"] is not None:
        module.load_state_dict(best["module"])
    return module.eval()


def _summary(record: Mapping[str, Any], epochs: int) -> str:
    shown = {k: v for k, v in record.items() if k not in ("phase", "epoch", "lr", "images_per_second", "loss")}
    scores = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
    return (f"{record['phase']:<9} epoch {record['epoch'] + 1:>3}/{epochs}  loss {record['loss']:.4f}  {scores}  "
            f"{record['images_per_second']:.0f} images/s")
