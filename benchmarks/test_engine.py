"""Throughput of the engine on ResNet-20: original, 4-bit and pruned member, and both together.

The weights are random: speed does not depend on them. Peers are timed elsewhere, in turns with the engine in one
process (``hce quickstart``); the figures here compare one commit with the next.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import hce_engine as hce
from benchmarks.models import make

S_RATIO = 0.39  # what a W4A4 member leaves of 56.8 % of the FLOPs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "resnet20.hce"
    make("resnet20", path, bits=4, ratio=S_RATIO)
    return path


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("member", ["o", "q", "s", "ensemble"])
def test_resnet20(benchmark: BenchmarkFixture, model: Path, member: str, batch: int) -> None:
    engine = hce.load(model)
    if member != "ensemble":
        engine = engine.only(member)
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    benchmark.extra_info.update(isa=engine.isa, threads=engine.threads, batch=batch)
    logits = benchmark(engine, images)
    assert logits.shape == (batch, 10)
    assert np.isfinite(logits).all()
