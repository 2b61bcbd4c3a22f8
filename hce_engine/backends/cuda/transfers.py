"""Arrays of the host through programs on the device: pinned staging, and for more than one chunk uploads and downloads beside
the computation.

    host             write i + 1 | read i - 1      copies into and out of pinned memory
    upload stream    images i + 1                  pinned -> staging
    caller's stream  compute i                     staging -> static input, graph, static logits -> staging
    download stream  logits i - 1                  staging -> pinned

There are two of each staging, used in turns. Forward an event orders every pair of streams; backward the host does: it reads
the logits of chunk i - 2, which are there when its upload, computation and download are done, before it writes chunk i.

A graph has one static input, so a chunk is copied once more on the device: 3 KB per CIFAR image, read and written at 4.8 TB/s
(H200) about 1.3 ns, where FFMA alone needs more than 600 ns for the pruned ResNet-20. Two graphs per bucket would save that
and cost twice the captures and their memory. A single chunk has nothing to overlap with and goes to the static input at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ...kernels.launch import Cost
from .runtime import Event, Runtime, Stream
from .work import Runnable, Work, start

STAGES = 2


@dataclass(frozen=True)
class Job:
    """A chunk: the next ``count`` images through a program. replay: computes its logits from its images on the current
    stream."""

    program: Runnable
    replay: Callable[[], None]
    count: int


@dataclass(frozen=True)
class _Stage:
    """images: ``(capacity, ...)``.  logits: float32 ``(names, capacity, classes)``.  device_*: the same on the device; None
    where arrays of one chunk are all that came so far."""

    images: torch.Tensor
    logits: torch.Tensor
    device_images: torch.Tensor | None
    device_logits: torch.Tensor | None
    uploaded: Event
    computed: Event
    downloaded: Event


class Transfers:
    """names: most results of a run.  Not for several threads at once: runs take turns."""

    def __init__(self, runtime: Runtime, names: int, classes: int) -> None:
        self.runtime, self.names, self.classes = runtime, names, classes
        self._stages: list[_Stage] = []
        self._upload: Stream | None = None
        self._download: Stream | None = None

    def missing_bytes(self, images: torch.Tensor, chunks: int) -> int:
        """Device memory that :meth:`reserve` would take."""
        if chunks < 2 or self._holds(images, chunks):
            return 0
        return STAGES * (images.numel() * images.element_size() + 4 * self.names * len(images) * self.classes)

    def _holds(self, images: torch.Tensor, chunks: int) -> bool:
        return bool(self._stages) and len(self._stages[0].images) >= len(images) and (
            chunks < 2 or self._stages[0].device_images is not None)

    def reserve(self, images: torch.Tensor, chunks: int) -> None:
        """Allocates staging for chunks as large as a static input, if it is not there."""
        if self._holds(images, chunks):
            return
        runtime, logits = self.runtime, (self.names, len(images), self.classes)
        on_device = chunks > 1 or (bool(self._stages) and self._stages[0].device_images is not None)
        self._stages = []  # frees them; nothing uses them, for a run waits for all that it started
        stages = [
            _Stage(runtime.pinned(tuple(images.shape), images.dtype), runtime.pinned(logits, torch.float32),
                   torch.empty_like(images) if on_device else None,
                   torch.empty(logits, dtype=torch.float32, device=images.device) if on_device else None,
                   runtime.event(), runtime.event(), runtime.event())
            for _ in range(STAGES if on_device else 1)
        ]
        if on_device:
            self._upload, self._download = self._upload or runtime.stream(), self._download or runtime.stream()
            allocated = runtime.event()  # earlier work of this stream may still use what the allocator gave
            allocated.record(runtime.current())
            self._upload.wait_event(allocated)
            self._download.wait_event(allocated)
        self._stages = stages

    def streams(self) -> dict[str, Stream]:
        """Those beside the caller's, by what they do."""
        return {name: stream for name, stream in (("upload", self._upload), ("download", self._download)) if stream is not None}

    def run(
        self, images: np.ndarray, logits: Mapping[str, np.ndarray], jobs: Sequence[Job], each: Callable[[Work], None] = start,
    ) -> None:
        """Fills ``logits``, name -> float32 ``(N, classes)``, from images ``(N, ...)``, on and beside the current stream.
        each: starts the copies. Staging that an error or an interruption finds in use is not used again."""
        try:
            if jobs:
                self.reserve(max((job.program.images for job in jobs), key=len), len(jobs))
                (self._one if len(jobs) == 1 else self._many)(images, logits, jobs, each)
        except BaseException:
            stages, self._stages = self._stages, []
            with suppress(Exception):  # the first error says more
                self.runtime.synchronize()
            del stages  # not before nothing uses it any more
            raise

    def _copy(self, what: str, name: str, to: torch.Tensor, source: torch.Tensor, each: Callable[[Work], None]) -> None:
        size = source.numel() * source.element_size()
        each(Work((name,), what, Cost(size, size), partial(self.runtime.copy, to, source)))

    def _one(
        self, images: np.ndarray, logits: Mapping[str, np.ndarray], jobs: Sequence[Job], each: Callable[[Work], None]
    ) -> None:
        (job,), stage, n = jobs, self._stages[0], jobs[0].count
        self.runtime.write_host(stage.images[:n], images)
        self._copy("upload", "images", job.program.images[:n], stage.images[:n], each)
        job.replay()
        for index, name in enumerate(logits):
            self._copy("download", name, stage.logits[index, :n], job.program.logits[name][:n], each)
        self.runtime.current().synchronize()
        for index, rows in enumerate(logits.values()):
            self.runtime.read_host(stage.logits[index, :n], rows)

    def _many(
        self, images: np.ndarray, logits: Mapping[str, np.ndarray], jobs: Sequence[Job], each: Callable[[Work], None]
    ) -> None:
        ahead: tuple[_Stage, slice] | None = None  # issued, not collected
        first = 0
        for turn, job in enumerate(jobs):
            stage, rows = self._stages[turn % STAGES], slice(first, first + job.count)
            self._issue(stage, images[rows], list(logits), job, each)
            if ahead is not None:
                self._collect(*ahead, logits)
            ahead, first = (stage, rows), rows.stop
        assert ahead is not None
        self._collect(*ahead, logits)

    def _issue(self, stage: _Stage, images: np.ndarray, names: Sequence[str], job: Job, each: Callable[[Work], None]) -> None:
        upload, download, caller, n = self._upload, self._download, self.runtime.current(), job.count
        assert upload is not None and download is not None
        assert stage.device_images is not None and stage.device_logits is not None
        self.runtime.write_host(stage.images[:n], images)
        with self.runtime.use(upload):
            self._copy("upload", "images", stage.device_images[:n], stage.images[:n], each)
        stage.uploaded.record(upload)
        caller.wait_event(stage.uploaded)
        self._copy("from staging", "images", job.program.images[:n], stage.device_images[:n], each)
        job.replay()
        for index, name in enumerate(names):
            self._copy("to staging", name, stage.device_logits[index, :n], job.program.logits[name][:n], each)
        stage.computed.record(caller)
        download.wait_event(stage.computed)
        with self.runtime.use(download):
            for index, name in enumerate(names):
                self._copy("download", name, stage.logits[index, :n], stage.device_logits[index, :n], each)
        stage.downloaded.record(download)

    def _collect(self, stage: _Stage, rows: slice, logits: Mapping[str, np.ndarray]) -> None:
        stage.downloaded.synchronize()
        for index, result in enumerate(logits.values()):
            self.runtime.read_host(stage.logits[index, : rows.stop - rows.start], result[rows])
