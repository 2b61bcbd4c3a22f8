"""The comparison on a GPU, all of it but the GPU: PyTorch's peers on tensors of the CPU, our engine by the reference, made-up time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hce_engine.artifact import Artifact
from hce_engine.bench import conditions
from hce_engine.bench.cuda_measure import measure
from hce_engine.bench.peers import CUDA_PEERS, CudaPeer, CudaSession, Network
from hce_engine.bench.peers.cuda_torch import TorchFp32
from hce_engine.bench.sample import Sample
from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph
from tests.bench.fake_gpu import FakeBackend, FakeDevice

KEYS = {
    "engine", "member", "batch", "path", "runs", "versions", "skipped", "verified", "check", "build_seconds", "images_per_second", "seconds",
    "noisy", "against", "rounds", "precision", "tf32", "concurrency",
}
pytestmark = pytest.mark.usefixtures("quiet_machine")


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: False)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """torch.compile that only notes how it is called: nothing here tests the compiler."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: calls.append(options) or function)
    return calls


def run(artifact: Artifact, sample: Sample, device: FakeDevice, *peers: type[CudaPeer], **options: Any) -> tuple[dict[str, Any], dict[Any, Any]]:
    settings = {"batches": (4,), "rounds": 6, "seconds": 0.001, **options}
    report = measure(artifact, [peer(device.runtime) for peer in peers], sample, device, **settings)
    return report, {(row["path"], row["engine"], row["member"]): row for row in report["rows"]}


def test_a_report_has_both_paths_with_every_row(ensemble: Artifact, noise: Sample, compiled: list[dict[str, Any]]) -> None:
    device = FakeDevice()
    torch_peers = [peer for name, peer in CUDA_PEERS.items() if name.startswith("torch")]
    report, rows = run(ensemble, noise, device, *torch_peers)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = ["torch-fp32", "torch-compile-fp32", "torch-compile-tf32", "torch-fp16", "torch-bf16"]
    expected = [("hce", m) for m in ("q", "s", "o", "ensemble")] + [(name, m) for name in names for m in ("s", "o", "ensemble")]
    assert list(rows) == [(path, *row) for path in ("device", "host") for row in expected]
    for (path, engine, _), row in rows.items():
        assert set(row) == KEYS
        assert row["verified"] is True, row["check"] or row["skipped"]
        assert (row["batch"], row["path"]) == (4, path)
        assert row["tf32"] is (engine == "torch-compile-tf32")
        assert row["seconds"]["median"] == row["seconds"]["minimum"] == (1.0 if engine == "hce" else 2.0)
        assert row["images_per_second"] == 4 / row["seconds"]["median"]
        assert row["against"] == (None if engine == "hce" else {"ratio": 2.0, "interval": [2.0, 2.0], "verdict": "FASTER"})
    assert "to the bit; logits of 10 images are the CPU's to the bit; tensors and arrays give the same bytes" in rows["device", "hce", "q"]["check"]
    assert "from pixels of the host" in rows["host", "torch-bf16", "ensemble"]["check"]
    concurrency = rows["device", "hce", "ensemble"]["concurrency"]
    assert (concurrency["mode"], concurrency["overlap"]) == ("streams", 0.5)
    assert [(c["mode"], c["seconds"]) for c in concurrency["candidates"]] == [("sequential", 0.004), ("streams", 0.003)]
    assert rows["device", "hce", "s"]["concurrency"] is None
    assert [rows["device", "hce", m]["precision"] for m in ("q", "s", "o", "ensemble")] == ["codes", "ieee", "ieee", "ieee"]
    assert [(c["path"], c["precision"], c["ratio"]) for c in report["claims"]] == [
        (path, precision, 2.0) for path in ("device", "host") for precision in ("fp32", "tf32", "fp16", "bf16")
    ]
    assert [(c["batch"], c["path"], c["clocks"]["samples"]) for c in report["conditions"]] == [(4, "device", 0), (4, "host", 0)]
    assert (report["device"], report["machine"], report["arithmetic"], report["gpu"]) == ("cuda", "a GPU", "ieee", {"name": "a GPU"})


def test_networks_are_compiled_once_and_timed_by_path(ensemble: Artifact, noise: Sample, compiled: list[dict[str, Any]]) -> None:
    device = FakeDevice()
    lines: list[str] = []
    run(ensemble, noise, device, CUDA_PEERS["torch-compile-fp32"], members=("q", "s"), batches=(2, 4), say=lines.append)
    networks = [options for options in compiled if "mode" in options]
    assert networks == [{"fullgraph": True, "dynamic": False, "mode": "max-autotune-no-cudagraphs"}] * 4  # s and o, two batch sizes
    assert len(compiled) == 4 + 2 * 3  # the way from pixels: of s, and of o and s in the ensemble
    turns = 6 * 5 * 4  # rounds, rows, readings: one to warm up and three samples
    assert device.timed == (["events"] * turns + ["clock"] * turns) * 2
    assert [backend.log[0] for backend in device.backends] == [2, 2, 2, 4, 4, 4]
    assert lines.count("warming up ensemble") == 2
    assert device.released == 2


def test_calls_end_where_the_path_says(ensemble: Artifact, noise: Sample) -> None:
    device = FakeDevice()
    run(ensemble, noise, device, members=("s",), rounds=1)
    (backend,) = device.backends
    # Warm up; the sample in 3 batches, a tensor and an array to compare; then 4 calls on each path.
    assert backend.log == [4, "array", "array", "array", "tensor", "array", *["tensor"] * 4, *["array"] * 4]


class _Changed(CudaSession):
    def __init__(self, session: CudaSession, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(session.input)
        self.session, self.change = session, change

    @property
    def logits(self) -> Tensor:
        return self.change(self.session.logits)

    def launch(self) -> None:
        self.session.launch()


class Wrong(TorchFp32):
    name = float_peer = "wrong"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        return _Changed(super().build(network, batch, threads), lambda z: z + 0.1)


class Forgetful(TorchFp32):
    """Computes with what was loaded first, whatever comes from the host later."""

    name = float_peer = "forgetful"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        session = super().build(network, batch, threads)
        session.input = session.input.clone()  # type: ignore[attr-defined]
        own = session.input

        class Loads(_Changed):
            def load(self, images: np.ndarray) -> None:
                own.copy_(torch.from_numpy(images))

        loads = Loads(session, lambda z: z)
        loads.input = torch.zeros_like(own)
        return loads


class Broken(TorchFp32):
    name = float_peer = "broken"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        raise RuntimeError("CUDA out of memory")


class Absent(TorchFp32):
    name = float_peer = "absent"
    packages = ("no-such-package",)
    install = "pip install no-such-package"


def test_peers_that_compute_something_else_are_not_timed(ensemble: Artifact, noise: Sample) -> None:
    report, rows = run(ensemble, noise, FakeDevice(), Wrong, Forgetful, Broken, Absent)
    for path in ("device", "host"):
        assert rows[path, "wrong", "o"]["check"] and not rows[path, "wrong", "o"]["verified"]
        assert rows[path, "wrong", "ensemble"]["rounds"] is None
        assert "RuntimeError while building: CUDA out of memory" in rows[path, "broken", "s"]["skipped"]
        assert rows[path, "absent", "o"]["skipped"] == "no-such-package not installed; pip install no-such-package"
    assert rows["device", "forgetful", "o"]["verified"]
    assert not rows["host", "forgetful", "o"]["verified"]
    assert "from pixels of the host: logits of 4 images differ" in rows["host", "forgetful", "o"]["check"]
    assert [(c["path"], c["peer"]) for c in report["claims"]] == [("device", "forgetful")]


def test_our_engine_is_checked_like_the_others(ensemble: Artifact, noise: Sample) -> None:
    def off(graph: Graph) -> FakeBackend:
        return FakeBackend(graph, lambda z: z + np.float32(1e-3 * np.abs(z).max()))

    _, rows = run(ensemble, noise, FakeDevice(off), members=("q", "s"))
    assert not [row["check"] for row in rows.values() if row["verified"]]
    assert "differ by at most" in rows["host", "hce", "s"]["check"]

    class Inconsistent(FakeBackend):
        def run(self, images: Any, *, ensemble_only: bool = False) -> dict[str, Any]:
            found = super().run(images, ensemble_only=ensemble_only)
            return {"ensemble": found["ensemble"] * (1 + 1e-6)} if isinstance(images, Tensor) else found

    _, rows = run(ensemble, noise, FakeDevice(Inconsistent), members=("s",))
    assert not rows["device", "hce", "s"]["verified"]
    assert "tensors and arrays give different logits" in rows["device", "hce", "s"]["check"]


def test_what_our_engine_cannot_run_is_a_row(ensemble: Artifact, noise: Sample) -> None:
    class Full(FakeBackend):
        def warm_up(self, batches: Any) -> None:
            if len(self.graph.members) > 1:
                raise UnsupportedError("cuda back end", expected="9 bytes", got="8 bytes", fix="use a smaller batch")

    _, rows = run(ensemble, noise, FakeDevice(Full), members=("q", "s"))
    assert rows["device", "hce", "q"]["verified"]
    for path in ("device", "host"):
        row = rows[path, "hce", "ensemble"]
        assert row["skipped"] == "cuda back end: expected 9 bytes, got 8 bytes; use a smaller batch"
        assert row["rounds"] is None and not row["verified"]


def test_a_crowded_machine_gives_no_verdicts(ensemble: Artifact, noise: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: True)
    report, rows = run(ensemble, noise, FakeDevice(), TorchFp32)
    assert {row["against"]["verdict"] for row in rows.values() if row["against"]} == {"UNCLEAR"}
    assert {claim["verdict"] for claim in report["claims"]} == {"UNCLEAR"}
