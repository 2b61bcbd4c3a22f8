"""Buckets of batch sizes, each a program that was warmed up once and is then replayed.

A batch runs in chunks of at most ``max_batch`` images; what is left takes the smallest bucket, a power of two, that holds
it, and its empty places compute on whatever the input held before. Logits of an image depend on that image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ... import _cuda_native
from ...errors import HceError, InputError, UnsupportedError
from ...graph import Graph
from ...plan.cuda import Plan, build_plan
from ...plan.cuda.arena import ARENA_LIMIT, MAX_BATCH, largest_bucket
from ...plan.cuda.ensemble_plan import (
    CODES,
    EnsemblePlan,
    build_ensemble_plan,
    largest_ensemble_bucket,
    only_codes,
    paths,
    require_runnable,
)
from . import gpu
from .ensemble import AUTO, Ensembles, Prepared, Timing
from .program import Arena, Constants, Program
from .runtime import Interpreted, Runtime


@dataclass(frozen=True)
class _Bucket:
    program: Program
    replay: Callable[[], None]


class CudaBackend:
    """Members of a graph on a GPU: quantized ones on Triton kernels, float ones on those of the extension (ensemble.py).

    device: ``cuda``, or ``cpu`` under TRITON_INTERPRET=1 (tests).  max_batch: the largest bucket, a power of two; less if
    memory demands it.  poison: maps, logits and flags start out with noise, so that a result which depends on unwritten
    memory shows.  extension: other than hce_engine._cuda; with device ``cpu``, the one built for the host.  mode: how parts
    of an ensemble run, of ensemble.MODES.  convolution: of float members, as of plan.cuda.build_lanes_plan.

    ``run`` is safe to call from several threads; calls take turns. A CUDA error ends the use of this object: the context is
    then in an unknown state, and every later call says so. Raises UnsupportedError for what no kernel runs, without a GPU, and for
    a bucket that does not fit into free memory (before anything is allocated).
    """

    def __init__(
        self, graph: Graph, device: str = "cuda", *, max_batch: int = MAX_BATCH, poison: bool = False,
        extension: ModuleType | None = None, mode: str = AUTO, convolution: str = "auto",
    ) -> None:
        if max_batch < 1 or max_batch & (max_batch - 1):
            raise InputError("cuda back end", expected="a power of two as the largest batch", got=repr(max_batch),
                             fix="choose one")
        self.runtime: Runtime = Interpreted() if device == "cpu" else gpu.GpuRuntime()
        self.graph, self.poison, self.convolution = graph, poison, convolution
        self.constants = Constants(self.runtime.device)
        self._ensembles = self._with_extension(extension, mode)
        self._plans: dict[tuple[tuple[str, ...], int], Plan | EnsemblePlan] = {}
        self._buckets: dict[tuple[tuple[str, ...], int], _Bucket | Prepared] = {}
        self._arenas: list[Arena] = []
        self._lock = Lock()
        self._error: BaseException | None = None
        self.members = tuple(m.name for m in graph.members)
        self.voters = tuple(m.name for m in graph.voters)
        self.classes = graph[graph.members[0].output].spec.shape[0]
        self.max_batch = self._fitting(max_batch)

    def _with_extension(self, extension: ModuleType | None, mode: str) -> Ensembles | None:
        """What runs float members; None where there are none."""
        path = paths(self.graph)
        if only_codes(self.graph):
            return None
        if extension is None:
            require_runnable(self.graph)
            if torch.device(self.runtime.device).type == "cpu":
                name = next(name for name, kind in path.items() if kind != CODES)
                raise UnsupportedError(f"cuda back end without a GPU, member {name!r}", expected="the extension built for the host",
                                       got="none", fix="use the cpu device of the engine")
            extension = _cuda_native.extension()
        return Ensembles(self.runtime, self.constants, extension, mode, self.poison)

    def _fitting(self, wanted: int) -> int:
        plan = self.plan(1)
        largest = largest_bucket(plan, wanted) if isinstance(plan, Plan) else largest_ensemble_bucket(plan, wanted)
        if not largest:
            raise UnsupportedError("cuda back end", expected=f"maps of at most {ARENA_LIMIT} bytes per image",
                                   got=str(self.plan(1).arena_bytes_per_image), fix="use smaller images or device cpu")
        return largest

    def plan(self, batch: int, members: Sequence[str] | None = None) -> Plan | EnsemblePlan:
        """The plan of a bucket; members: all, or some."""
        key = (self._chosen(members), batch)
        if key not in self._plans:
            graph = self.graph if key[0] == self.members else self.graph.only(*key[0])
            if only_codes(graph):
                self._plans[key] = build_plan(graph, batch, self.runtime.gpu)
            else:
                self._plans[key] = build_ensemble_plan(graph, batch, self.runtime.gpu, convolution=self.convolution)
        return self._plans[key]

    def _chosen(self, members: Sequence[str] | None) -> tuple[str, ...]:
        return self.members if members is None else tuple(m for m in self.members if m in members)

    def bucket_of(self, images: int) -> int:
        """The bucket that runs a chunk of so many images."""
        return min(1 << max(images - 1, 0).bit_length(), self.max_batch)

    def warm_up(self, batches: Iterable[int], members: Sequence[str] | None = None) -> None:
        """Allocates, compiles and captures everything that batches of these sizes need, largest first: smaller buckets
        then use its memory. Afterwards runs of these sizes allocate nothing on the GPU but their results."""
        sizes = {self.bucket_of(n) for batch in batches for n in self._chunks(batch)}
        with self._use():
            for size in sorted(sizes, reverse=True):
                self._bucket(self._chosen(members), size)

    def timing(self, batch: int, members: Sequence[str] | None = None) -> Timing | None:
        """What warming up measured for the bucket of ``batch`` images; None where there was nothing to measure."""
        bucket = self._buckets.get((self._chosen(members), self.bucket_of(batch)))
        return bucket.timing if isinstance(bucket, Prepared) else None

    def _chunks(self, images: int) -> list[int]:
        whole, rest = divmod(images, self.max_batch)
        return [self.max_batch] * whole + [rest] * (rest > 0)

    def _bucket(self, members: tuple[str, ...], size: int) -> _Bucket | Prepared:
        key = (members, size)
        if key not in self._buckets:
            plan = self.plan(size, members)
            if isinstance(plan, EnsemblePlan):
                assert self._ensembles is not None
                self._check_memory(plan.batch, self._ensembles.needed_bytes(plan))
                self._buckets[key] = self._ensembles.build(plan)
                return self._buckets[key]
            arena = next((a for a in self._arenas if a.slots == plan.slots and a.capacity >= size), None)
            self._check_memory(size, self._needed_bytes(plan, arena is None))
            if arena is None:
                arena = Arena(plan, self.runtime.device, self.poison)
                self._arenas.append(arena)
            program = Program(plan, arena, self.constants, self.runtime.device, self.poison)
            self._buckets[key] = _Bucket(program, self.runtime.prepare(program))
        return self._buckets[key]

    def _needed_bytes(self, plan: Plan, new_arena: bool) -> int:
        image = int(np.prod(plan.image_shape)) * (4 if plan.float_images else 1)
        needed = self.constants.missing_bytes(plan) + plan.workspace_bytes + plan.batch * image
        return needed + (Arena.bytes(plan) if new_arena else 0)

    def _check_memory(self, batch: int, needed: int) -> None:
        free = self.runtime.free_bytes()
        if needed > free:
            raise UnsupportedError("cuda back end", expected=f"{needed} bytes of free GPU memory for {batch} images",
                                   got=f"{free} bytes", fix="use a smaller batch, or end what else uses this GPU")

    def run(self, images: np.ndarray | torch.Tensor, *, ensemble_only: bool = False) -> dict[str, Any]:
        """Logits per member and of the ``ensemble``, float32 ``(N, classes)``.

        images: contiguous, as the graph's input (uint8 NHWC or float32 NCHW). A numpy array gives numpy arrays; a tensor
        on the GPU gives tensors, computed on the caller's current stream.
        ensemble_only: only members that vote run, and only the ensemble is returned.
        """
        members = self.voters if ensemble_only else self.members
        names = ["ensemble"] if ensemble_only else [*members, "ensemble"]
        with self._use():
            if isinstance(images, torch.Tensor):
                return self._run_tensor(images, members, names)
            return self._run_array(images, members, names)

    def _run_array(self, images: np.ndarray, members: tuple[str, ...], names: Sequence[str]) -> dict[str, Any]:
        logits = {name: np.empty((len(images), self.classes), np.float32) for name in names}
        start = 0
        for count in self._chunks(len(images)):
            bucket = self._bucket(members, self.bucket_of(count))
            with self._turn():
                self.runtime.upload(images[start : start + count], bucket.program.images)
                bucket.replay()
                for name in names:
                    self.runtime.download(bucket.program.logits[name], logits[name][start : start + count])
            start += count
        return logits

    def _run_tensor(self, images: torch.Tensor, members: tuple[str, ...], names: Sequence[str]) -> dict[str, Any]:
        shape = (len(images), self.classes)
        logits = {name: torch.empty(shape, dtype=torch.float32, device=images.device) for name in names}
        start = 0
        for count in self._chunks(len(images)):
            bucket = self._bucket(members, self.bucket_of(count))
            with self._turn():
                bucket.program.images[:count].copy_(images[start : start + count], non_blocking=True)
                bucket.replay()
                for name in names:
                    logits[name][start : start + count].copy_(bucket.program.logits[name][:count], non_blocking=True)
            start += count
        return logits

    @contextmanager
    def _use(self) -> Iterator[None]:
        """One call at a time, its errors translated. What is allocated here outlives the call, so it must not become an
        inference tensor of a caller in ``torch.inference_mode``, which no later call could write."""
        with self._lock, _Guard(self), torch.inference_mode(False), torch.no_grad():
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The use of static tensors. Its end is noted even if it is interrupted: work may be under way by then."""
        self.runtime.begin()
        try:
            yield
        finally:
            self.runtime.end()

    def check(self) -> None:
        """Raises UnsupportedError if an earlier call ended in a CUDA error."""
        if self._error is not None:
            raise UnsupportedError("cuda back end", expected="an engine that has not failed",
                                   got=f"one that did: {_sentence(self._error)}", fix="make a new engine, in a new process")

    def fail(self, error: BaseException) -> None:
        self._error = error


class _Guard:
    """Turns what CUDA and Triton raise into errors of this project, and remembers the first."""

    def __init__(self, backend: CudaBackend) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        self.backend.check()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HceError) or not isinstance(error, Exception):
            return  # nothing, an error that says enough, or an interruption
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            raise UnsupportedError("cuda back end", expected="memory for a bucket of images", got=_sentence(error),
                                   fix="use a smaller batch, or end what else uses this GPU") from error
        self.backend.fail(error)
        raise UnsupportedError("cuda back end", expected="a run without errors", got=_sentence(error),
                               fix="make a new engine, in a new process; this one is not used again") from error


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
