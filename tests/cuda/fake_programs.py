"""Programs for fake_runtime.py: a back end with the plans, buckets, modes, transfers and errors of the real one, whose parts
are three launches each that compute something simple."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from hce_engine.backends import reference
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.modes import Prepared, prepare
from hce_engine.backends.cuda.work import Work
from hce_engine.graph import Graph, merge
from hce_engine.kernels.launch import Cost
from tests.backends.graphs import GraphBuilder
from tests.cuda.fake_runtime import FakeRuntime

SHAPE, CLASSES = (1, 2, 2), 2
Seconds = Callable[[float | None], float]


def three_members() -> Graph:
    """A quantized member and two float ones, of which one does not vote."""
    q, s, r = (GraphBuilder(SHAPE, seed=i) for i in (1, 2, 3))
    return merge({
        "q": q.finish(q.qconv("image", CLASSES, kernel=(2, 2), padding=(0, 0))),
        "s": s.finish(s.conv(s.normalize(), CLASSES, kernel=(2, 2), padding=(0, 0))),
        "r": r.finish(r.conv(r.normalize(), CLASSES, kernel=(2, 2), padding=(0, 0))),
    }, roles={"r": "reference"})


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)


def expected(images: np.ndarray, names: str = "qsr") -> dict[str, np.ndarray]:
    """What the parts compute: sums of pixels, times the class, plus a number of the member."""
    sums = images.sum((1, 2, 3), dtype=np.float32)
    logits = {name: np.stack([k * sums + ord(name) for k in range(CLASSES)], 1).astype(np.float32) for name in names}
    return {**logits, "ensemble": reference.mean_logits([logits[n] for n in names if n != "r"])}


class FakePart:
    """memory: maps, which programs for other batches use too."""

    def __init__(self, runtime: FakeRuntime, name: str, images: torch.Tensor, memory: torch.Tensor, seconds: Seconds) -> None:
        self.runtime, self.name, self.images, self.seconds = runtime, name, images, seconds
        self.members, self.limited = (name,), name != "q"
        self.sums, self.halves = memory[0, : len(images)], memory[1, : len(images)]
        self.logits = torch.full((len(images), CLASSES), float("nan"))

    def work(self, share: float | None = None) -> list[Work]:
        third = self.seconds(share) / 3
        steps = [("load", self.images, self.sums, self._load), ("conv", self.sums, self.halves, self._conv),
                 ("store", self.halves, self.logits, self._store)]
        return [Work((f"{self.name}.{name}",), name, Cost(1, 2, 3),
                     partial(self.runtime.kernel, f"{self.name}.{name}", [x], [y], compute, third))
                for name, x, y, compute in steps]

    def _load(self) -> None:
        self.sums.copy_(self.images.flatten(1).sum(1))

    def _conv(self) -> None:
        self.halves.copy_(self.sums / 2)

    def _store(self) -> None:
        self.logits.copy_(2 * self.halves[:, None] * torch.arange(CLASSES) + ord(self.name))


class FakeProgram:
    def __init__(self, runtime: FakeRuntime, names: str, images: torch.Tensor, memory: dict[str, torch.Tensor],
                 seconds: dict[str, Seconds]) -> None:
        self.runtime, self.images = runtime, images
        self.parts = [FakePart(runtime, name, images, memory[name], seconds[name]) for name in names]
        self.logits = {part.name: part.logits for part in self.parts}
        self.voters = [part.logits for part in self.parts if part.name != "r"]
        self.logits["ensemble"] = torch.full_like(self.voters[0], float("nan"))
        self.mean = [Work(("mean",), "ensemble_mean", Cost(1, 2), self._start_mean)]

    def _start_mean(self) -> None:
        out = self.logits["ensemble"]
        self.runtime.kernel("mean", self.voters, [out], lambda: out.copy_((self.voters[0] + self.voters[-1]) * 0.5))


class FakeBackend(CudaBackend):
    """seconds: of each member, given its share; of which a kernel takes a third. built: called with a program that was made."""

    def __init__(self, runtime: FakeRuntime, mode: str = "streams", seconds: dict[str, Seconds] | None = None,
                 built: Callable[[FakeProgram], None] = lambda program: None, max_batch: int = 4) -> None:
        self.mode, self.seconds, self.built = mode, seconds or dict.fromkeys("qsr", lambda share: 3e-3), built
        self.memory = {name: torch.full((2, max_batch), float("nan")) for name in "qsr"}
        super().__init__(three_members(), runtime, max_batch=max_batch)

    def _with_extension(self, *_: object) -> None:
        return None

    def _needed_bytes(self, plan: object) -> int:
        return 12345

    def _build(self, plan: Any) -> Prepared:
        self.runtime.begin()
        images = torch.zeros((plan.batch, *SHAPE[1:], SHAPE[0]), dtype=torch.uint8)
        program = FakeProgram(self.runtime, "".join(plan.members), images, self.memory, self.seconds)
        self.built(program)
        return prepare(program, self.runtime, self.mode, self._layouts)
