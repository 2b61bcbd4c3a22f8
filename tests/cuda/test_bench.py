"""The comparison on a GPU with the back end that it is made for: kernels in Triton's interpreter and built for the host."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from hce_engine.artifact import Artifact
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.bench.cuda_measure import measure
from hce_engine.bench.peers.cuda_torch import TorchFp32
from hce_engine.bench.sample import random_images
from hce_engine.graph import merge
from tests.bench.conftest import SPEC, members
from tests.bench.fake_gpu import FakeDevice


def test_our_back_end_is_measured_by_members_and_together(cuda_device: str, host_cuda: ModuleType) -> None:
    if cuda_device != "cpu":
        pytest.skip("the real comparison runs there: hce bench --device cuda")
    artifact = Artifact(merge(members(), {"o": "reference"}), SPEC)
    sample = random_images(SPEC)
    sample = replace(sample, images=sample.images[:5], calibration=sample.calibration[:2])
    device = FakeDevice(lambda graph: CudaBackend(graph, "cpu", extension=host_cuda, poison=True))
    report = measure(artifact, [TorchFp32(device.runtime)], sample, device, batches=(4,), rounds=1, seconds=0.001)
    rows = {(row["path"], row["engine"], row["member"]): row for row in report["rows"]}
    assert len(rows) == 2 * (4 + 3)
    for row in rows.values():
        assert row["verified"], row["check"] or row["skipped"]
    assert "reference's to the bit" in rows["host", "hce", "q"]["check"]
    assert rows["device", "hce", "ensemble"]["concurrency"] is None  # nothing runs at the same time here
