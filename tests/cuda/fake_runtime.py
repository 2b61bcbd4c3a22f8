"""A device that checks the order of work instead of keeping to it: streams, events, graphs and copies on memory of the CPU.

Work is done when it is issued, so results are right whatever the order of streams. What is checked is whether a GPU would have
had to keep to that order. Every operation knows its past: what its stream held, what the events that the stream waited for
held, and what the host had waited for when it issued the operation. A read whose past lacks the last write of a byte, a write
whose past lacks the last write or a read since, by a kernel, a copy or the host, is a :class:`Race`.

Times are those of streams that run at the same time without hindering each other: an operation takes the seconds that it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import local
from typing import Any

import numpy as np
import torch

from hce_engine.backends.cuda.runtime import Runtime
from hce_engine.errors import UnsupportedError

COPY_SECONDS = 1e-6


class Race(AssertionError):
    """Two accesses to the same bytes that nothing orders."""


@dataclass
class Clock:
    """past: the set of operations that are done, as bits.  time: when they are."""

    past: int = 0
    time: float = 0.0

    def join(self, other: Clock) -> None:
        self.past, self.time = self.past | other.past, max(self.time, other.time)

    def copy(self) -> Clock:
        return Clock(self.past, self.time)


class FakeStream:
    def __init__(self, runtime: FakeRuntime, name: str) -> None:
        self.runtime, self.name, self.clock = runtime, name, Clock()

    def wait_event(self, event: FakeEvent) -> None:
        self.runtime.operation(("wait", self, event))

    def synchronize(self) -> None:
        self.runtime.operation(("synchronize", self))

    def __repr__(self) -> str:
        return self.name


class FakeEvent:
    def __init__(self, runtime: FakeRuntime, timing: bool) -> None:
        self.runtime, self.timing, self.clock = runtime, timing, Clock()

    def record(self, stream: FakeStream) -> None:
        self.runtime.operation(("record", self, stream))

    def synchronize(self) -> None:
        self.runtime.operation(("synchronize", self))

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.timing and end.timing
        assert not (self.clock.past | end.clock.past) & ~self.runtime.host.past, "asked for a time that may not be there yet"
        return 1e3 * (end.clock.time - self.clock.time)


@dataclass
class Access:
    start: int
    stop: int
    operation: int  # its bit
    name: str


@dataclass(frozen=True)
class Done:
    """An operation that was performed: its bit, and those that were done before it."""

    name: str
    stream: FakeStream
    bit: int
    past: int


@dataclass(eq=False)
class FakeRuntime(Runtime):
    """memory: bytes that are free.  drop: number of the wait of a stream that is left out, of those that hold something up.
    fail: number of the operation that raises ``error``; ``lost``: and so does every one after it.  contexts: whether
    multiprocessors can be cut.  history: kernels and copies."""

    memory: int = 1 << 40
    drop: int | None = None
    fail: int | None = None
    lost: bool = True
    error: Callable[[], BaseException] = lambda: RuntimeError("CUDA error: an illegal memory access was encountered")
    contexts: bool = True
    history: list[Done] = field(default_factory=list)

    device = "cpu"
    gpu = None
    concurrent = True

    def __post_init__(self) -> None:
        self.host, self.operations, self.waits, self._bits = Clock(), 0, 0, 0
        self._reads: list[Access] = []
        self._writes: list[Access] = []
        self._default, self._current = FakeStream(self, "default"), local()
        self._capturing: list[tuple[Any, ...]] | None = None
        self._captured: set[FakeStream] = set()
        self._cuts: dict[float, FakePartition] = {}
        self._streams = 0
        super().__init__()

    # -- the runtime ------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        return self.memory

    def stream(self) -> FakeStream:
        self._streams += 1
        return FakeStream(self, f"stream {self._streams}")

    def current(self) -> FakeStream:
        return getattr(self._current, "stream", self._default)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        before = self.current()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def event(self, timing: bool = False) -> FakeEvent:
        return FakeEvent(self, timing)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).random_(0, 100)

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        self.kernel("copy", [source], [to], lambda: to.copy_(source), COPY_SECONDS)

    def write_host(self, pinned: torch.Tensor, rows: np.ndarray) -> None:
        self.operation(("host", "write", (), (pinned,)))
        super().write_host(pinned, rows)

    def read_host(self, pinned: torch.Tensor, rows: np.ndarray) -> None:
        self.operation(("host", "read", (pinned,), ()))
        super().read_host(pinned, rows)

    def synchronize(self) -> None:
        self.operation(("synchronize", None))

    def partition(self, share: float) -> FakePartition:
        if not self.contexts:
            raise UnsupportedError("green contexts", expected="a driver that makes them", got="one of 2019", fix="do without")
        return self._cuts.setdefault(share, FakePartition(self, share))

    def capturing(self) -> bool:
        return self._capturing is not None

    def graph(self, run: Callable[[], None], stream: Any) -> Callable[[], None]:
        assert self._capturing is None
        self._capturing, self._captured = [], {stream}
        try:
            with self.use(stream):
                run()
            captured, streams = self._capturing, self._captured
        finally:
            self._capturing = None
        ends = {stream: Clock()}  # a dry run: does the capture stream end behind all others?
        self._perform(captured, ends, dry=True)
        joined = all(not clock.past & ~ends[stream].past for clock in ends.values())
        assert joined, "a stream was not joined before the capture ended"
        assert set(ends) == streams
        return lambda: self.operation(("graph", captured, stream, self.current()))

    # -- operations -------------------------------------------------------------------------------------------------------

    def kernel(
        self, name: str, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor], compute: Callable[[], object],
        seconds: float = 0.0,
    ) -> None:
        self.operation(("kernel", self.current(), name, tuple(reads), tuple(writes), compute, seconds))

    def operation(self, what: tuple[Any, ...]) -> None:
        """Issues one, or captures it."""
        self.operations += 1
        if self.fail is not None and (self.operations == self.fail or (self.lost and self.operations > self.fail)):
            raise self.error()
        if self._capturing is None:
            streams = _LiveClocks()
            self._perform([what], streams)
            return
        if what[0] == "kernel":
            assert what[1] in self._captured, "work on a stream that the capture does not know"
        elif what[0] == "wait":
            _, stream, event = what
            recorded = [w for w in self._capturing if w[0] == "record" and w[1] is event]
            assert recorded, "a wait for an event from outside of the capture"
            self._captured.add(stream)
        elif what[0] == "record":
            assert what[2] in self._captured
        else:
            raise AssertionError(f"{what[0]} inside of a capture")
        self._capturing.append(what)

    def _perform(self, operations: Sequence[tuple[Any, ...]], clocks: Any, dry: bool = False) -> None:
        """clocks: of streams, and of events that a graph has for itself."""
        events: dict[FakeEvent, Clock] = {}
        for kind, *rest in operations:
            if kind == "kernel":
                stream, name, reads, writes, compute, seconds = rest
                clock = clocks.setdefault(stream, Clock())
                if not dry:
                    clock.join(Clock(self.host.past, 0.0))
                bit = self._next()
                if not dry:
                    self._check(f"{name} on {stream}", bit, clock.past, reads, writes)
                    self.history.append(Done(name, stream, bit, clock.past))
                    compute()
                clock.past, clock.time = clock.past | bit, clock.time + seconds
            elif kind == "record":
                event, stream = rest
                clock = clocks.setdefault(stream, Clock())
                if isinstance(clocks, _LiveClocks):
                    event.clock = clock.copy()
                else:
                    events[event] = clock.copy()
            elif kind == "wait":
                stream, event = rest
                target = clocks.setdefault(stream, Clock())
                source = event.clock if isinstance(clocks, _LiveClocks) else events[event]
                if source.past & ~target.past and not dry:
                    self.waits += 1
                    if self.waits - 1 == self.drop:
                        continue
                target.join(source)
            elif kind == "synchronize":
                (point,) = rest
                self.host.past = (1 << self._bits) - 1 if point is None else self.host.past | point.clock.past
            elif kind == "graph":
                captured, origin, caller = rest
                # Other streams of a graph are its own: they begin where the graph does.
                inside = {origin: caller.clock.copy()}
                self._perform(captured, inside)
                caller.clock.join(inside[origin])
            else:
                name, reads, writes = rest
                self._check(f"the host's {name}", self._next(), self.host.past, reads, writes)
                self.host.past |= 1 << (self._bits - 1)

    def _next(self) -> int:
        self._bits += 1
        return 1 << (self._bits - 1)

    def _check(self, who: str, bit: int, past: int, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> None:
        for tensor in reads:
            for other in _overlapping(self._writes, tensor):
                if not other.operation & past:
                    raise Race(f"{who} reads what {other.name} writes")
        for tensor in writes:
            for other in (*_overlapping(self._writes, tensor), *_overlapping(self._reads, tensor)):
                if not other.operation & past:
                    raise Race(f"{who} overwrites what {other.name} uses")
        self._reads += [Access(*_bytes(tensor), bit, who) for tensor in reads]
        for tensor in writes:
            start, stop = _bytes(tensor)
            for accesses in (self._reads, self._writes):  # those inside are ordered before this one, so it stands for them
                accesses[:] = [a for a in accesses if a.start < start or a.stop > stop]
            self._writes.append(Access(start, stop, bit, who))


class _LiveClocks:
    """Clocks of streams themselves, where graphs have their own."""

    def setdefault(self, stream: FakeStream, _: Clock) -> Clock:
        return stream.clock


class FakePartition:
    def __init__(self, runtime: FakeRuntime, share: float) -> None:
        self.runtime, self.sizes, self._made = runtime, (round(64 * share), 64 - round(64 * share)), {}

    def stream(self, side: int, index: int) -> FakeStream:
        return self._made.setdefault((side, index), FakeStream(self.runtime, f"side {side} of {self.sizes}, {index}"))


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    assert tensor.is_contiguous()
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.element_size()


def _overlapping(accesses: Sequence[Access], tensor: torch.Tensor) -> list[Access]:
    start, stop = _bytes(tensor)
    return [a for a in accesses if a.start < stop and start < a.stop]
