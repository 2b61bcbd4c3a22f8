"""The real device of a comparison, as far as it can be made where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hce_engine.artifact import Artifact
from hce_engine.bench import cuda_device
from hce_engine.bench.cuda_device import Gpu
from hce_engine.bench.cuda_timer import CudaEvents
from hce_engine.bench.turns import HostClock
from tests.bench.fake_gpu import FakeRuntime


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA X", uuid="12-34", major=9, minor=0, multi_processor_count=132, total_memory=1 << 37)
    monkeypatch.setattr(cuda_device.gpu, "GpuRuntime", FakeRuntime)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties if index == 3 else None)


def test_a_report_names_the_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cuda_device, "ask", lambda fields, gpu: asked.append((fields, gpu)) or {"driver_version": "580"})
    device = Gpu()
    facts = device.facts()
    assert (device.name, device.arithmetic) == ("NVIDIA X", "ieee")
    assert (facts["compute_capability"], facts["multiprocessors"], facts["nvidia_smi"]) == ([9, 0], 132, {"driver_version": "580"})
    ((fields, gpu),) = asked  # type: ignore[misc]
    assert gpu == device.clocks().gpu == "GPU-12-34"  # by name: nvidia-smi counts GPUs that this process may not see
    assert "driver_version" in fields


def test_paths_have_their_own_timers(card: None) -> None:
    events = Gpu().events()
    assert isinstance(events, CudaEvents) and events.index == 3
    assert isinstance(Gpu().clock(), HostClock)


def test_the_back_end_gets_arithmetic_and_largest_batch(card: None, ensemble: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Backend:
        def __init__(self, graph: object, *, arithmetic: str, max_batch: int) -> None:
            made.append((graph, arithmetic, max_batch))

    monkeypatch.setattr(cuda_device, "CudaBackend", Backend)
    Gpu().backend(ensemble.graph)
    Gpu("bf16x3", 8).backend(ensemble.graph)
    assert made == [(ensemble.graph, "ieee", 4096), (ensemble.graph, "bf16x3", 8)]
