"""Buckets of batch sizes, each a program that was warmed up once and is then replayed.

A batch runs in chunks of at most ``max_batch`` images; what is left takes the smallest bucket, a power of two, that holds
it, and its empty places compute on whatever the input held before. Logits of an image depend on that image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import finalize

import numpy as np
import torch

from ... import _cuda_native
from ...arithmetic import IEEE, check_arithmetic
from ...errors import InputError, UnsupportedError
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
from ...plan.cuda.lanes_plan import LanesPlan
from . import gpu
from .ensemble import Ensembles
from .faults import Faults, no_memory, sentence
from .interpreted import Interpreted
from .modes import AUTO, SEQUENTIAL, STREAMS, Layouts, Prepared, Timing, Way, prepare
from .program import Arena, Constants, Program
from .runtime import Runtime
from .trace import Recorder, write_trace
from .transfers import Job, Transfers
from .work import run_program


class CudaBackend:
    """Members of a graph on a GPU: quantized ones on Triton kernels, float ones on those of the extension (ensemble.py).

    device: ``cuda``, or, for tests, ``cpu`` under TRITON_INTERPRET=1 or a runtime.  max_batch: the largest bucket, a power of
    two; less if memory demands it.  poison: maps, logits and flags start out with noise, so that a result which depends on
    unwritten memory shows.  extension: other than hce_engine._cuda; with device ``cpu``, the one built for the host.  mode:
    how parts of an ensemble run, of modes.MODES.  layout, convolution, arithmetic: of float members, as of
    plan.cuda.layout.build_float_plan; the layout is chosen for ``max_batch`` images, whatever the bucket, so that results do
    not depend on the batch.

    ``run`` is safe to call from several threads; calls take turns. Images and logits of host arrays are staged in pinned
    memory, and those of arrays longer than a bucket move while other chunks are computed (transfers.py). A CUDA error ends the
    use of this object: the context is then in an unknown state, and every later call says so. Raises UnsupportedError for what
    no kernel runs, without a GPU, for a bucket that does not fit into free memory (before anything is allocated), and for calls
    on a stream that a CUDA graph is captured from: a run waits for the one before, which no capture contains.
    """

    def __init__(
        self, graph: Graph, device: str | Runtime = "cuda", *, max_batch: int = MAX_BATCH, poison: bool = False,
        extension: ModuleType | None = None, mode: str = AUTO, layout: str = AUTO, convolution: str = "auto",
        arithmetic: str = IEEE,
    ) -> None:
        check_arithmetic(arithmetic)
        if max_batch < 1 or max_batch & (max_batch - 1):
            raise InputError("cuda back end", expected="a power of two as the largest batch", got=repr(max_batch),
                             fix="choose one")
        made = Interpreted if device == "cpu" else gpu.GpuRuntime
        self.runtime: Runtime = device if isinstance(device, Runtime) else made()
        finalize(self, self.runtime.drain).atexit = False
        self.graph, self.poison = graph, poison
        self.layout, self.convolution, self.arithmetic = layout, convolution, arithmetic
        self.constants = Constants(self.runtime.device)
        self._layouts = Layouts(self.runtime)
        self._ensembles = self._with_extension(extension, mode)
        self._plans: dict[tuple[tuple[str, ...], int], Plan | EnsemblePlan] = {}
        self._buckets: dict[tuple[tuple[str, ...], int], Prepared] = {}
        self._arenas: list[Arena] = []
        self._lock = Lock()
        self._faults = Faults()
        self.members = tuple(m.name for m in graph.members)
        self.voters = tuple(m.name for m in graph.voters)
        self.classes = graph[graph.members[0].output].spec.shape[0]
        self._transfers = Transfers(self.runtime, len(self.members) + 1, self.classes)
        self._wanted = max_batch
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
        return Ensembles(self.runtime, self.constants, extension, mode, self.poison, self._layouts)

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
                layout = self.layout if key[0] == self.members else self._layouts_of(self.plan(batch))
                self._plans[key] = build_ensemble_plan(graph, batch, self.runtime.gpu, layout=layout, chosen_for=self._wanted,
                                                       convolution=self.convolution, arithmetic=self.arithmetic)
        return self._plans[key]

    @staticmethod
    def _layouts_of(plan: Plan | EnsemblePlan) -> dict[str, str]:
        """Layout of each float member: that it has with all members is kept with some of them."""
        parts = plan.parts if isinstance(plan, EnsemblePlan) else ()
        return {member: part.layout for part in parts if isinstance(part, LanesPlan) for member in part.members}

    def _chosen(self, members: Sequence[str] | None) -> tuple[str, ...]:
        return self.members if members is None else tuple(m for m in self.members if m in members)

    def bucket_of(self, images: int) -> int:
        """The bucket that runs a chunk of so many images."""
        return min(1 << max(images - 1, 0).bit_length(), self.max_batch)

    def warm_up(self, batches: Iterable[int], members: Sequence[str] | None = None) -> None:
        """Allocates, compiles, captures and measures everything that batches of these sizes need, largest first: smaller
        buckets then use its memory. Afterwards runs of these sizes allocate nothing on the GPU but their results."""
        chunks = [self._chunks(batch) for batch in batches]
        with self._use():
            for size in sorted({self.bucket_of(n) for sizes in chunks for n in sizes}, reverse=True):
                self._bucket(self._chosen(members), size)
            for sizes in sorted(filter(None, chunks), reverse=True):
                self._reserve([self._bucket(self._chosen(members), self.bucket_of(n)) for n in sizes])

    def timing(self, batch: int, members: Sequence[str] | None = None) -> Timing | None:
        """What warming up measured for the bucket of ``batch`` images; None where there was nothing to measure."""
        bucket = self._buckets.get((self._chosen(members), self.bucket_of(batch)))
        return None if bucket is None else bucket.timing

    def report(self) -> list[dict[str, Any]]:
        """How every bucket that was used runs, and the times that decided it, as JSON has it."""
        return [
            {"members": list(members), "images": size, "mode": bucket.way.mode,
             "timing": None if bucket.timing is None else bucket.timing.to_json()}
            for (members, size), bucket in list(self._buckets.items())  # others may add to them meanwhile
        ]

    def _chunks(self, images: int) -> list[int]:
        whole, rest = divmod(images, self.max_batch)
        return [self.max_batch] * whole + [rest] * (rest > 0)

    def _bucket(self, members: tuple[str, ...], size: int) -> Prepared:
        key = (members, size)
        if key not in self._buckets:
            plan = self.plan(size, members)
            needed, free = self._needed_bytes(plan), self.runtime.free_bytes()
            if needed > free:
                raise no_memory(size, needed, f"{free} bytes")
            try:
                self._buckets[key] = self._build(plan)
            except (MemoryError, torch.cuda.OutOfMemoryError) as error:  # memory in pieces, or others took it meanwhile
                raise no_memory(size, needed, f"{self.runtime.free_bytes()} bytes, and {sentence(error)}") from error
        return self._buckets[key]

    def _build(self, plan: Plan | EnsemblePlan) -> Prepared:
        if isinstance(plan, EnsemblePlan):
            assert self._ensembles is not None
            return self._ensembles.build(plan)
        arena = self._arena(plan)
        if arena is None:
            arena = Arena(plan, self.runtime.device, self.poison)
            self._arenas.append(arena)
        program = Program(plan, arena, self.constants, self.runtime.device, self.poison)
        return prepare(program, self.runtime, SEQUENTIAL, self._layouts)

    def _arena(self, plan: Plan) -> Arena | None:
        return next((a for a in self._arenas if a.slots == plan.slots and a.capacity >= plan.batch), None)

    def _needed_bytes(self, plan: Plan | EnsemblePlan) -> int:
        if isinstance(plan, EnsemblePlan):
            assert self._ensembles is not None
            return self._ensembles.needed_bytes(plan)
        image = int(np.prod(plan.image_shape)) * (4 if plan.float_images else 1)
        needed = self.constants.missing_bytes(plan) + plan.workspace_bytes + plan.batch * image
        return needed + (Arena.bytes(plan) if self._arena(plan) is None else 0)

    def _reserve(self, buckets: Sequence[Prepared]) -> None:
        """Staging for a run of these buckets."""
        largest = max((bucket.program.images for bucket in buckets), key=len)
        needed, free = self._transfers.missing_bytes(largest, len(buckets)), self.runtime.free_bytes()
        if needed > free:
            raise no_memory(len(largest), needed, f"{free} bytes")
        self._transfers.reserve(largest, len(buckets))

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
        counts = self._chunks(len(images))
        if not counts:
            return logits
        buckets = [self._bucket(members, self.bucket_of(count)) for count in counts]
        self._reserve(buckets)
        with self._turn():
            self._transfers.run(images, logits, [Job(b.program, b.replay, n) for b, n in zip(buckets, counts, strict=True)])
        return logits

    def _run_tensor(self, images: torch.Tensor, members: tuple[str, ...], names: Sequence[str]) -> dict[str, Any]:
        shape = (len(images), self.classes)
        logits = {name: torch.empty(shape, dtype=torch.float32, device=images.device) for name in names}
        start = 0
        for count in self._chunks(len(images)):
            bucket = self._bucket(members, self.bucket_of(count))
            with self._turn():
                self.runtime.copy(bucket.program.images[:count], images[start : start + count])
                bucket.replay()
                for name in names:
                    self.runtime.copy(logits[name][start : start + count], bucket.program.logits[name][:count])
            start += count
        return logits

    def trace(self, images: np.ndarray, path: str | Path, *, ensemble_only: bool = False) -> dict[str, np.ndarray]:
        """Writes a run of a host array on a time line (trace.py), and returns its logits, which are those of :meth:`run`.

        Parts run as the buckets of this size do; where that is one after the other, a second run shows them on streams of
        their own. Raises InputError without an image, WriteError.
        """
        if not len(images):
            raise InputError("trace", expected="at least one image", got="none", fix="trace a batch that holds some")
        members = self.voters if ensemble_only else self.members
        names = ["ensemble"] if ensemble_only else [*members, "ensemble"]
        with self._use():
            counts = self._chunks(len(images))
            buckets = [self._bucket(members, self.bucket_of(count)) for count in counts]
            self._reserve(buckets)
            logits = {name: np.empty((len(images), self.classes), np.float32) for name in names}
            with self._turn():
                recorder = Recorder(self.runtime)
                ways = [[bucket.way for bucket in buckets]]
                if len(buckets[0].program.parts) > 1 and buckets[0].way.mode == SEQUENTIAL:
                    ways.append([Way(STREAMS)] * len(buckets))
                for each_way in ways:
                    self._record(recorder, images, logits, list(zip(buckets, counts, each_way, strict=True)))
                events = recorder.events()
        write_trace(path, events, {
            "gpu": self.runtime.gpu, "images": len(images), "members": ", ".join(members),
            "buckets": [{"images": n, "mode": str(b.way)} for b, n in zip(buckets, counts, strict=True)],
        })
        return logits

    def _record(
        self, recorder: Recorder, images: np.ndarray, logits: dict[str, np.ndarray], chunks: Sequence[tuple[Prepared, int, Way]]
    ) -> None:
        recorder.process = f"{chunks[0][2]}, {chunks[0][1]} images per chunk"
        recorder.name(self.runtime.current(), "the caller's stream")
        jobs = []
        for bucket, count, way in chunks:
            layout = self._layouts.of(way, bucket.program.parts)
            for part, stream in zip(bucket.program.parts, layout.streams, strict=True):
                if stream is not None:
                    recorder.name(stream, f"stream of {', '.join(part.members)}")
            jobs.append(Job(bucket.program, partial(run_program, bucket.program, layout, self.runtime, recorder), count))
        for name, stream in self._transfers.streams().items():
            recorder.name(stream, name)
        self._transfers.run(images, logits, jobs, recorder)

    @contextmanager
    def _use(self) -> Iterator[None]:
        """One call at a time, its errors translated, on the engine's device: Triton launches on the one that is current. What is
        allocated here outlives the call, so it must not become an inference tensor of a caller in ``torch.inference_mode``, which
        no later call could write."""
        with self._lock, self._faults, torch.inference_mode(False), torch.no_grad():
            if self.runtime.capturing():
                raise UnsupportedError("engine", expected="a stream that no CUDA graph is captured from", got="one that is captured",
                                       fix="capture the rest; what an engine replays is a CUDA graph already")
            with self.runtime.use(self.runtime.current()):
                yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The use of static tensors. Its end is noted even if it is interrupted: work may be under way by then."""
        self.runtime.begin()
        try:
            yield
        finally:
            self.runtime.end()
