"""A small ensemble with its original, and layers with made-up times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hce_engine as hce
from hce_engine.artifact import Artifact, load
from hce_engine.audit.layers import Layer
from hce_engine.audit.reasons import Machine
from hce_engine.audit.variants import flops
from hce_engine.capture import capture
from hce_engine.ledger import Cost
from hce_engine.peaks import KINDS, Peaks
from hce_engine.preprocess import UINT8_NHWC, InputSpec
from hce_engine.training.freeze import freeze
from hce_engine.training.prune import channel_groups, prune_to_ratio
from hce_engine.training.quantize import QuantModule, calibrate
from tests.training.own_network import Small

GIGA = 10**9


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """q in 4 bits, s at half of the FLOPs, and o, on 3x12x12 pixels; random weights."""
    torch.manual_seed(0)
    spec = InputSpec(UINT8_NHWC, (3, 12, 12), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    original = capture(Small().eval(), spec)
    twin = QuantModule(original, 4, 4)
    calibrate(twin, torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8))
    groups = [group for group in channel_groups(original) if group.internal]
    pruned = prune_to_ratio(original, groups, flops, 0.5 * flops(original))
    path = tmp_path_factory.mktemp("audit") / "small.hce"
    hce.build({"q": freeze(twin), "s": pruned, "o": original}, spec, path=path, reference="o")
    return path


@pytest.fixture(scope="session")
def small(small_path: Path) -> Artifact:
    return load(small_path)


@pytest.fixture
def machine() -> Machine:
    """100 GMAC/s of float32 and 400 of codes; 100 GB/s from the second cache on, 1000 from the first of 32 kB; 10 ns per step."""
    places = {"l1": 1000.0 * GIGA, "l2": 100.0 * GIGA, "l3": 100.0 * GIGA, "memory": 100.0 * GIGA}
    sizes = {"l1": 16_000, "l2": 500_000, "l3": 8_000_000, "memory": 64_000_000}
    macs = {"f32": 100.0 * GIGA, "u8": 400.0 * GIGA, "u4": 400.0 * GIGA}
    return Machine(Peaks("avx512vnni", 1, macs, dict.fromkeys(KINDS, ""), places, places, sizes), 10e-9)


def made_up(seconds: float, **changes: Any) -> Layer:
    """A float layer of a million products, computed directly at 90 % of the peak of ``machine`` if it takes 11.1 us."""
    values: dict[str, Any] = {
        "name": "conv", "cost": Cost(macs=1_000_000, params=1, bytes=1, flops_paper=1e6, bb23=1e6), "kind": "f32", "kernel": "conv2d_f32",
        "seconds": seconds, "product_seconds": seconds, "macs": 1_000_000, "executed": 1_000_000, "unpadded": 1e6, "bytes": 1000.0,
        "images": 16, "working_set": 20_000,
    }
    return Layer(**(values | changes))


def random_layer(rng: np.random.Generator, **changes: Any) -> Layer:
    """Any consistent layer: what holds for all must hold for it."""
    macs = int(rng.integers(10**5, 10**7))
    unpadded = macs * float(rng.uniform(0.25, 1))
    product = float(rng.uniform(1e-6, 1e-3))
    return made_up(
        product * float(rng.uniform(1, 1.3)), product_seconds=product, macs=macs, unpadded=unpadded,
        executed=int(unpadded * rng.uniform(1, 1.5)), kind=str(rng.choice(KINDS)),
        cost=Cost(macs=macs, params=1, bytes=1, flops_paper=macs * float(rng.uniform(0.1, 1.1)), bb23=1.0),
        bytes=float(rng.uniform(1e3, 1e6)), **changes,
    )
