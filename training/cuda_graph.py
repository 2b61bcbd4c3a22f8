"""Whole steps of training as CUDA graphs.

A step of ResNet-20 is some 250 kernels of a few microseconds each; launched one by one they wait for the host. Captured
once and replayed, they are one launch: the step's networks (teachers in the loss too), gradients, update and sums. Only
what comes from outside stays outside: the batch is copied into tensors that the graph reads, and the learning rate is
written into the optimizer's scalar.

Requires of a step what training/sgd.py promises: no value is read back to the host, and weights, statistics, momentum
and sums stay the same tensors.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from .data import Batch
from .sgd import Update, step

WARM_UP = 3  # eager steps before capture, in which torch compiles, and chooses algorithms and workspaces


def copy_of(batch: Batch) -> Batch:
    """A batch of the same strides in memory of its own."""
    copies: dict[str, Any] = {name: None if value is None else value.clone() for name, value in _parts(batch).items()}
    return Batch(**copies)


def fill(target: Batch, source: Batch) -> None:
    """Copies ``source`` into the tensors of ``target``."""
    for a, b in zip(_parts(target).values(), _parts(source).values(), strict=True):
        if a is not None:
            a.copy_(b, non_blocking=True)


def _parts(batch: Batch) -> dict[str, Any]:
    return {f.name: getattr(batch, f.name) for f in fields(batch)}


def shapes(batch: Batch) -> tuple[tuple[int, ...] | None, ...]:
    return tuple(None if value is None else tuple(value.shape) for value in _parts(batch).values())


def modes(module: nn.Module) -> tuple[bool, ...]:
    """Which parts train: a graph is of one choice, and batch norms are frozen in the last epochs."""
    return tuple(part.training for part in module.modules())


class Rehearsal:
    """A context in which steps leave no trace: weights, buffers, momentum and sums come back, in the same tensors."""

    def __init__(self, update: Update) -> None:
        module = update.module
        self._tensors = [*module.parameters(), *module.buffers(), *update.optimizer.state(), update.sums]
        self._optimizer = update.optimizer

    def __enter__(self) -> None:
        self._before = [t.detach().clone() for t in self._tensors]

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for tensor, value in zip(self._tensors, self._before, strict=True):
            tensor.copy_(value)
        self._optimizer.zero_grad()


class CapturedStep:
    """``step(update, batch)`` as a graph; captured at the first batch, and again when other parts train.

    A smaller batch, such as the last of an epoch, makes an ordinary step.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self._graph: torch.cuda.CUDAGraph | None = None
        self._modes: tuple[bool, ...] = ()

    def __call__(self, batch: Batch) -> None:
        now = modes(self.update.module)
        if self._graph is None or now != self._modes or len(batch.labels) > len(self._batch.labels):
            self._capture(batch)
            self._modes = now
        if shapes(batch) != shapes(self._batch):
            step(self.update, batch)
            return
        fill(self._batch, batch)
        assert self._graph is not None
        self._graph.replay()

    def _capture(self, batch: Batch) -> None:
        update, self._graph = self.update, None  # the memory of the last graph is free before the next one needs it
        self._batch = copy_of(batch)
        stream = torch.cuda.Stream()
        fastest = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)
        with Rehearsal(update), fastest:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    step(update, self._batch)
            torch.cuda.current_stream().wait_stream(stream)
            update.optimizer.zero_grad()  # gradients that the graph itself allocates stay where it expects them
            self._graph = torch.cuda.CUDAGraph()
            # Only this thread is watched for calls that a capture forbids: a loader's thread may be pinning memory.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                step(update, self._batch)
