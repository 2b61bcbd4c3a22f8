"""What the back end asks of a device: streams, events, graphs, copies. A GPU (gpu.py), or, for tests, the CPU (interpreted.py).

All that decides an order (modes.py, transfers.py, trace.py, backend.py) is written against :class:`Runtime`, so that it also
runs on a device that checks the order instead of keeping to it (tests/cuda/fake_runtime.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import UnsupportedError


class Event(Protocol):
    """A point in the work of a stream, as torch.cuda.Event. One that was not recorded yet holds nobody up."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None:
        """The host waits for it."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to ``end``, both past and made for timing."""


class Stream(Protocol):
    """Work in order, as torch.cuda.Stream; equal streams have equal hashes."""

    def wait_event(self, event: Any) -> None:
        """What follows on this stream waits for the event."""

    def synchronize(self) -> None:
        """The host waits for all work of this stream."""


class Partition(Protocol):
    """Two groups of multiprocessors that share none. sizes: how many each has."""

    sizes: tuple[int, int]

    def stream(self, side: int, index: int) -> Stream:
        """Stream number ``index`` whose kernels run on the multiprocessors of a group alone."""


class Runtime(ABC):
    """device: for tensors.  gpu: name of the GPU, whose measured configurations are used; None: defaults.
    concurrent: whether streams run at the same time, so that there is something to choose."""

    device: str
    gpu: str | None
    concurrent: bool

    def __init__(self) -> None:
        self._last = self.event()
        self._side: Stream | None = None

    @abstractmethod
    def free_bytes(self) -> int:
        """Device memory that can be allocated now."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new one."""

    @abstractmethod
    def current(self) -> Stream:
        """That of the calling thread."""

    @abstractmethod
    def use(self, stream: Stream) -> AbstractContextManager[object]:
        """Makes it the current one of the calling thread, and its device the current device."""

    @abstractmethod
    def event(self, timing: bool = False) -> Event: ...

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device can reach."""

    @abstractmethod
    def graph(self, run: Callable[[], None], stream: Stream) -> Callable[[], None]:
        """Captures ``run`` on ``stream``, without running it; returns what repeats it on the current stream."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all work of the device. Raises what CUDA has to say by then."""

    def capturing(self) -> bool:
        """Whether someone captures a graph from the current stream."""
        return False

    def partition(self, share: float) -> Partition:
        """Multiprocessors cut in two, of which the first group has about ``share``. Raises UnsupportedError where a device or
        its driver cannot."""
        raise UnsupportedError("green contexts", expected="a CUDA device", got=self.device, fix="use other modes")

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """A copy in the order of the current stream; host memory must be pinned, or the host waits."""
        to.copy_(source, non_blocking=True)

    def write_host(self, pinned: torch.Tensor, rows: np.ndarray) -> None:
        np.copyto(pinned.numpy(), rows)

    def read_host(self, pinned: torch.Tensor, rows: np.ndarray) -> None:
        np.copyto(rows, pinned.numpy())

    # -- turns: static memory belongs to one run at a time ------------------------------------------------------------

    def begin(self) -> None:
        """Waits, on the current stream, for the last run: static tensors are free after this."""
        self.current().wait_event(self._last)

    def end(self) -> None:
        """Notes the end of a run on the current stream."""
        self._last.record(self.current())

    def drain(self) -> None:
        """The host waits for the last run. It does so before memory is freed: an allocator knows on which stream memory was taken,
        not which others a run used it on. Nothing is raised: there is nobody to tell."""
        with suppress(Exception):
            if not self.capturing():
                self._last.synchronize()

    def warm(self, run: Callable[[], None]) -> None:
        """Runs ``run`` once, so that everything is compiled and loaded."""
        here = self.event()
        here.record(self.current())
        side = self._capture_stream()
        side.wait_event(here)
        side.wait_event(self._last)  # of another bucket, which may lie in the same memory and run on another stream
        with self.use(side):
            run()
        side.synchronize()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """A graph of ``run``, which was warmed up; returns what replays it on the current stream."""
        return self.graph(run, self._capture_stream())

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        """:meth:`warm`, then :meth:`capture`."""
        self.warm(run)
        return self.capture(run)

    def _capture_stream(self) -> Stream:
        if self._side is None:
            self._side = self.stream()
        return self._side
