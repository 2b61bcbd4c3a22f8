"""A runtime for tests: Triton's interpreter on the CPU, where work is done when a call returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch

from ...errors import UnsupportedError
from ...kernels.launch import INTERPRETED
from .runtime import Runtime


class HostEvent:
    """Of a device whose work is done when a call returns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self, stream: object) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: HostEvent) -> float:
        return 1e3 * (end.seconds - self.seconds)


class HostStream:
    """A name for work that is done at once."""

    def wait_event(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Interpreted(Runtime):
    """Kernels in Triton's interpreter: slow, exact, and the same code path up to the graph."""

    device: str = "cpu"
    gpu: str | None = None
    concurrent = False

    def __init__(self) -> None:
        if not INTERPRETED:
            raise UnsupportedError("cuda back end", expected="a CUDA device, or TRITON_INTERPRET=1 set before the start",
                                   got="device cpu with compiled kernels", fix="use the cpu device of the engine")
        super().__init__()
        self._default, self._current = HostStream(), local()

    def free_bytes(self) -> int:
        return 1 << 62  # the system's own business

    def stream(self) -> HostStream:
        return HostStream()

    def current(self) -> HostStream:
        return getattr(self._current, "stream", self._default)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        before = self.current()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def event(self, timing: bool = False) -> HostEvent:
        return HostEvent()

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def warm(self, run: Callable[[], None]) -> None:
        pass  # there is nothing to compile

    def graph(self, run: Callable[[], None], stream: Any) -> Callable[[], None]:
        return run

    def synchronize(self) -> None:
        pass
