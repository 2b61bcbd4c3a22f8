"""A GPU that is none: tensors of the CPU, graphs that are plain calls, our engine by the reference back end, and timers that make time up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from hce_engine.backends import reference
from hce_engine.backends.cuda.modes import SEQUENTIAL, STREAMS, Candidate, PartTime, Timing, Way
from hce_engine.bench.cuda_clocks import Clocks
from hce_engine.graph import Graph

CANDIDATES = (Candidate(Way(SEQUENTIAL), 0.004), Candidate(Way(STREAMS), 0.003))
PARTS = (PartTime(("q",), 0.002), PartTime(("s",), 0.002))
TIMING = Timing(CANDIDATES, PARTS, Way(STREAMS), "the fastest of 2")


class FakeRuntime:
    """What is captured is what runs."""

    device = "cpu"

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run


class FakeBackend:
    """Logits of the reference, changed by ``change``. log: batch sizes that were warmed up, and what ran."""

    def __init__(self, graph: Graph, change: Callable[[np.ndarray], np.ndarray] = lambda z: z) -> None:
        self.graph, self.change = graph, change
        self.log: list[Any] = []

    def warm_up(self, batches: Iterable[int]) -> None:
        self.log += batches

    def run(self, images: np.ndarray | torch.Tensor, *, ensemble_only: bool = False) -> dict[str, Any]:
        assert ensemble_only and all(m.role == "vote" for m in self.graph.members)
        as_tensor = isinstance(images, torch.Tensor)
        self.log.append("tensor" if as_tensor else "array")
        pixels = images.numpy() if as_tensor else images
        logits = reference.run(self.graph, pixels.transpose(0, 3, 1, 2))
        mean = self.change(reference.mean_logits([logits[m.name] for m in self.graph.members]))
        return {"ensemble": torch.from_numpy(mean) if as_tensor else mean}

    def timing(self, batch: int) -> Timing | None:
        return TIMING if len(self.graph.members) > 1 else None


class FakeTimer:
    """A call of ours takes a second, one of a peer two."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def settle(self) -> bool:
        return True

    def seconds(self, call: Callable[[], object], count: int) -> float:
        self.log.append(self.name)
        for _ in range(count):
            call()
        return count * (1.0 if isinstance(call, partial) else 2.0)


class FakeDevice:
    name, arithmetic = "a GPU", "ieee"

    def __init__(self, backend: Callable[[Graph], Any] = FakeBackend) -> None:
        self.runtime, self.make = FakeRuntime(), backend
        self.backends: list[Any] = []
        self.timed: list[str] = []
        self.waits = self.released = 0

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def wait(self) -> None:
        self.waits += 1

    def backend(self, graph: Graph) -> Any:
        self.backends.append(self.make(graph))
        return self.backends[-1]

    def events(self) -> FakeTimer:
        return FakeTimer("events", self.timed)

    def clock(self) -> FakeTimer:
        return FakeTimer("clock", self.timed)

    def clocks(self) -> Clocks:
        return Clocks("no such GPU")

    def facts(self) -> dict[str, Any]:
        return {"name": self.name}

    def release(self) -> None:
        self.released += 1
