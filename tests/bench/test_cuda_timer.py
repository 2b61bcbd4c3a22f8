"""What is queued between which events, with the events of a GPU that is none."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from hce_engine.bench import cuda_timer
from hce_engine.bench.cuda_timer import CudaEvents


def test_calls_lie_between_two_events_behind_a_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 3.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(log.append(f"device {index}")))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("lead"), raising=False)
    assert CudaEvents(1).seconds(lambda: log.append("call"), 3) == pytest.approx(0.003)
    assert log == ["device 1", "lead", "record", "call", "call", "call", "record", "wait"]


def test_the_gpu_is_waited_for_before_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(cuda_timer, "settle", lambda: False)
    assert CudaEvents(2).settle() is False
    assert waited == [2]
