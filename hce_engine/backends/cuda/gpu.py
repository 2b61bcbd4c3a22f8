"""The part of the back end that needs a CUDA device: graphs, pinned memory, streams, free memory.

Without Triton until a GPU was found, so that a machine without one can be asked cheaply.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from threading import RLock
from typing import Any

import torch

from ...errors import UnsupportedError
from .green_contexts import GreenContexts
from .runtime import Partition, Runtime

OLDEST = (8, 0)  # compute capability: int8 tensor cores as the kernels use them
# From this compute capability on, Triton before 3.7 contracts the product and sum of a logit into one rounding, whatever it
# is told (seen in compiled code): the quantized member would not be exact.
CONTRACTED = (10, 0)
EXACT_TRITON = (3, 7)
# Waiting for a whole device is not allowed while any thread captures on it, whatever the mode (CUDA Programming Guide, CUDA
# Graphs, on what stream capture prohibits): engines of this process take turns.
_ALONE = RLock()
_CUTS: dict[tuple[int, float], GreenContexts] = {}  # by device and share, for all engines: they are never given back
_FAILED: list[torch.cuda.CUDAGraph] = []  # torch's allocator of pinned memory may ask them for as long as the process lives


def missing() -> str | None:
    """Why this process cannot use a GPU, if it cannot."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__}, which is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    if torch.cuda.get_device_capability() < OLDEST:
        return f"{torch.cuda.get_device_name()} of compute capability {torch.cuda.get_device_capability()}"
    if importlib.util.find_spec("triton") is None:
        return "no Triton"
    import triton

    from ...kernels.launch import INTERPRETED

    release = tuple(map(int, triton.__version__.split(".")[:2]))
    if torch.cuda.get_device_capability() >= CONTRACTED and release < EXACT_TRITON:
        return f"{torch.cuda.get_device_name()} with Triton {triton.__version__}, which fuses multiply-adds there; 3.7 does not"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 in the environment, which keeps kernels from being compiled"
    return None


def require() -> None:
    """Raises UnsupportedError with the reason why this process cannot use a GPU."""
    reason = missing()
    if reason is not None:
        raise UnsupportedError(
            "device cuda", expected=f"a CUDA device of compute capability {OLDEST[0]}.{OLDEST[1]} or more", got=reason,
            fix="use device cpu",
        )


class GpuRuntime(Runtime):
    """CUDA graphs on the device that is current when this object is made."""

    concurrent = True

    def __init__(self) -> None:
        require()
        self.index = torch.cuda.current_device()
        self.device = f"cuda:{self.index}"
        self.gpu: str | None = torch.cuda.get_device_name(self.index)
        self._partitions: dict[float, GreenPartition] = {}
        super().__init__()

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.index)
        return free + torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index)

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.index)

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.index)

    def use(self, stream: Any) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream)

    def event(self, timing: bool = False) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=timing)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)

    def graph(self, run: Callable[[], None], stream: Any) -> Callable[[], None]:
        before = self.current()
        with _ALONE, torch.cuda.device(self.index):
            try:
                graph = self._captured(run, stream)
            finally:
                if self.current() != before:  # a capture that fails leaves its own stream behind
                    torch.cuda.set_stream(before)

        def replay() -> None:
            with torch.cuda.device(self.index):
                graph.replay()

        return replay

    def _captured(self, run: Callable[[], None], stream: Any) -> torch.cuda.CUDAGraph:
        """Until 2.12 torch does not notice the end of a capture that CUDA refuses to end: its allocator asserts that none is under
        way when the next one begins, and its generator of random numbers waits for the end. Both are told here."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        mark = torch.zeros(1, device=self.device)
        try:
            # Other threads may use CUDA meanwhile: the capture concerns this one alone.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                run()
        except BaseException:
            _FAILED.append(graph)
            with suppress(RuntimeError):  # of a newer torch, which knows, or of a device that is lost
                torch._C._cuda_endAllocateToPool(self.index, pool)
            with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
                mark.zero_()  # a capture that ends
            raise
        return graph

    def capturing(self) -> bool:
        with torch.cuda.device(self.index):
            return torch.cuda.is_current_stream_capturing()

    def synchronize(self) -> None:
        with _ALONE:
            torch.cuda.synchronize(self.index)

    def partition(self, share: float) -> Partition:
        """Green contexts of the process, and streams of our own: a stream that one engine captures from is no other's to use."""
        if share not in self._partitions:
            with _ALONE:
                if (self.index, share) not in _CUTS:
                    _CUTS[self.index, share] = GreenContexts(self.index, share)
            self._partitions[share] = GreenPartition(_CUTS[self.index, share], self.index)
        return self._partitions[share]


class GreenPartition:
    """Streams of green contexts as those of torch."""

    def __init__(self, groups: GreenContexts, device: int) -> None:
        self.groups, self.device, self.sizes = groups, device, groups.sizes
        self._streams: dict[tuple[int, int], torch.cuda.Stream] = {}

    def stream(self, side: int, index: int) -> torch.cuda.Stream:
        if (side, index) not in self._streams:
            self._streams[side, index] = torch.cuda.ExternalStream(self.groups.new_stream(side), device=self.device)
        return self._streams[side, index]
