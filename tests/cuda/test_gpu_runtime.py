"""Captures on a GPU (gpu.py), beside what torch does of them: a model of its allocator, generator and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from threading import Event, Thread
from typing import Any

import pytest
import torch

from hce_engine.backends.cuda import gpu
from hce_engine.backends.cuda.gpu import GpuRuntime


class Torch:
    """recovers: as torch from 2.12 on, whose allocator notices a capture that fails.  invalid: whether CUDA refuses to end
    one.  lost: to do anything."""

    def __init__(self, patch: pytest.MonkeyPatch, recovers: bool) -> None:
        self.recovers, self.invalid, self.lost = recovers, False, False
        self.underway: list[object] = []
        self.generator_captures, self.stream, self.pools = False, "the caller's", 0
        self.entered: list[Any] = []
        for name in ("graph", "set_stream", "synchronize", "graph_pool_handle", "is_current_stream_capturing"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.stream)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext(self.entered.append(device)))
        patch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": lambda graph: None}))
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate, raising=False)
        patch.setattr(gpu, "_FAILED", [])

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def end_allocate(self, device: int, pool: object) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def synchronize(self, device: int | None = None) -> None:
        assert not self.underway, "device-wide, while a capture is under way"

    def is_current_stream_capturing(self) -> bool:
        return self.stream == "capturing"

    @contextmanager
    def graph(self, graph: object, pool: object = "its own", *, stream: str, capture_error_mode: str) -> Iterator[None]:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        before, self.stream = self.stream, stream
        self.underway.append(pool)
        self.generator_captures = True
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failed = error
        if self.invalid:
            self.invalid = False
            if self.recovers:
                self.underway.remove(pool)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from failed
        self.underway.remove(pool)
        self.generator_captures = False
        self.stream = before
        if failed is not None:
            raise failed


@pytest.fixture(params=[False, True], ids=["2.11", "2.12"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Torch:
    return Torch(monkeypatch, request.param)


def runtime() -> GpuRuntime:
    made = object.__new__(GpuRuntime)
    made.index, made.device, made._partitions = 3, "cpu", {}  # cpu: where tensors can be made here
    return made


def failing(cuda: Torch, kind: type[BaseException] = RuntimeError) -> Callable[[], None]:
    def run() -> None:
        cuda.invalid = True
        raise kind("what went wrong")

    return run


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_fails_does_not_keep_the_next_from_beginning(cuda: Torch, kind: type[BaseException]) -> None:
    with pytest.raises(RuntimeError, match="previous error during capture") as caught:
        runtime().graph(failing(cuda, kind), "a side stream")
    assert isinstance(caught.value.__cause__, kind)
    assert not cuda.underway
    assert not cuda.generator_captures, "torch.rand would fail from now on"
    assert cuda.stream == "the caller's"
    assert len(gpu._FAILED) == 1
    ran: list[str] = []
    runtime().graph(lambda: ran.append(cuda.stream), "a side stream")()
    assert ran == ["a side stream"]
    assert set(cuda.entered) == {3}
    assert len(gpu._FAILED) == 1


def test_a_device_that_is_lost_is_what_the_error_says(cuda: Torch) -> None:
    def run() -> None:
        cuda.lost = cuda.invalid = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="previous error during capture"):
        runtime().graph(run, "a side stream")
    assert cuda.stream == "the caller's"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runtime().graph(run, "a side stream")


def test_engines_of_a_process_capture_and_wait_for_the_device_in_turns(cuda: Torch) -> None:
    inside, failures = Event(), []

    def other() -> None:
        try:
            assert inside.wait(10)
            runtime().synchronize()
            runtime().graph(lambda: None, "another side stream")
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=other)
    thread.start()

    def run() -> None:
        inside.set()
        thread.join(0.05)
        assert thread.is_alive()

    runtime().graph(run, "a side stream")
    thread.join()
    assert not failures


def test_capturing_is_asked_of_the_engines_device(cuda: Torch) -> None:
    assert not runtime().capturing()
    cuda.stream = "capturing"
    assert runtime().capturing()
    assert set(cuda.entered) == {3}


def test_engines_share_green_contexts_and_no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, float]] = []
    handles = count(100)

    class Contexts:
        sizes = (64, 68)

        def __init__(self, device: int, share: float) -> None:
            made.append((device, share))

        def new_stream(self, side: int) -> int:
            return next(handles)

    monkeypatch.setattr(gpu, "_CUTS", {})
    monkeypatch.setattr(gpu, "GreenContexts", Contexts)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: (handle, device))
    one, two = runtime(), runtime()
    streams = [r.partition(share).stream(side, 0) for share in (0.5, 0.25) for r in (one, two, one) for side in (0, 1)]
    assert made == [(3, 0.5), (3, 0.25)]
    assert len(set(streams)) == 8 and streams[:2] == streams[4:6]
    assert {device for _, device in streams} == {3}
