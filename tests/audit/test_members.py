"""From a plan's steps to layers and totals; sums are those of the steps, and shares add up."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.audit.bound import bandwidth, bound_seconds, layer_bound, member_bound
from hce_engine.audit.layers import MemberProfile, member_profile
from hce_engine.audit.reasons import ALL_CODES, Machine
from hce_engine.audit.totals import charged, flops_ratio, lost_shares, realised_share, same_layers
from hce_engine.backends.cpu import CpuBackend
from hce_engine.ledger import ledger
from hce_engine.plan.cpu.work import Work
from tests.audit.conftest import made_up


def _profile(artifact: Artifact, member: str, seed: int) -> MemberProfile:
    """Made-up times on the member's real plan."""
    graph = artifact.graph.only(member)
    (plan,) = CpuBackend(graph, isa="portable").plans
    times = np.random.default_rng(seed).uniform(1e-5, 1e-3, len(plan.steps))
    return member_profile(graph, [(step, float(t), 32) for step, t in zip(plan.steps, times, strict=True)], 32)


def test_layers_have_one_name_in_all_members(small: Artifact) -> None:
    o, q, s = (_profile(small, name, i) for i, name in enumerate("oqs"))
    assert list(o.layers) == ["stem", "blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second", "head"]
    assert same_layers(o, q) and same_layers(o, s)
    assert {layer.kind for layer in q.layers.values()} == {"u8", "u4"}
    assert {layer.kind for layer in o.layers.values()} == {"f32"}
    assert s.layers["blocks.0.first"].macs < o.layers["blocks.0.first"].macs
    assert s.layers["stem"].macs == o.layers["stem"].macs


@pytest.mark.parametrize("member", ["o", "q", "s"])
def test_every_step_is_counted_once(small: Artifact, member: str) -> None:
    profile = _profile(small, member, 3)
    parts = sum(layer.seconds for layer in profile.layers.values()) + profile.rest_seconds
    assert parts == pytest.approx(profile.seconds) == pytest.approx(sum(s.seconds for s in profile.steps))
    assert any(layer.overhead_seconds > 0 for layer in profile.layers.values()), "halos belong to the layers that need them"
    kernels = [s.step.kernel for s in profile.rest]
    assert any(k.startswith("load") for k in kernels) and any(k.startswith("pool") for k in kernels)


@pytest.mark.parametrize("member", ["q", "s"])
def test_lost_shares_add_up(small: Artifact, machine: Machine, member: str) -> None:
    original, profile = _profile(small, "o", 1), _profile(small, member, 2)
    ratio = flops_ratio(original, profile)
    assert ratio == pytest.approx(ledger(small.graph)["flops_ratios"][member])
    seconds = charged(original, profile, machine)
    assert tuple(seconds) == ALL_CODES
    assert sum(seconds.values()) == pytest.approx(profile.seconds - ratio * original.seconds)
    lost = lost_shares(seconds, original.seconds, ratio)
    assert lost is not None
    share = realised_share(profile.seconds / original.seconds, ratio)
    assert share is not None and 1 - sum(lost.values()) == pytest.approx(share)
    assert lost_shares(seconds, original.seconds, 1.0) is None


def test_shares() -> None:
    assert realised_share(0.5, 0.5) == 1
    assert realised_share(0.75, 0.5) == 0.5
    assert realised_share(1.1, 0.5) == pytest.approx(-0.2)
    assert realised_share(0.5, 1.0) is None


def test_bounds(machine: Machine, small: Artifact) -> None:
    """100 GMAC/s, 100 GB/s for working sets above 32 kB; bytes are per tile of 16 images."""
    peaks = machine.peaks
    assert (bandwidth(peaks, 32_000), bandwidth(peaks, 32_001)) == (1000e9, 100e9)
    assert bound_seconds(Work("f32", 1_000_000, 2_000_000, 1e6, 16, 1_000, 100_000), peaks) == pytest.approx(10e-6)
    assert bound_seconds(Work("u4", 1_000_000, 1_000_000, 1e6, 16, 1_000, 100_000), peaks) == pytest.approx(2.5e-6)
    assert bound_seconds(Work("f32", 1_000, 1_000, 1e3, 16, 1_600_000, 2_000_000), peaks) == pytest.approx(1e-6)
    assert bound_seconds(Work(None, 0, 0, 0.0, 16, 1_600_000, 2_000_000), peaks) == pytest.approx(1e-6)
    assert layer_bound(made_up(1.0), peaks) == pytest.approx(10e-6)
    assert layer_bound(made_up(1.0, bytes=2e6, working_set=10**6), peaks) == pytest.approx(20e-6)
    o, q = (_profile(small, name, 0) for name in "oq")
    assert 0.2 < member_bound(q, peaks) / member_bound(o, peaks) < 0.6


def test_direct_plans_have_no_winograd(small: Artifact) -> None:
    graph = small.graph.only("o")
    assert not any("winograd" in s.kernel for plan in CpuBackend(graph, algorithm="direct").plans for s in plan.steps)


def test_tiles_of_several_sizes_are_weighted_by_their_images(small: Artifact) -> None:
    graph = small.graph.only("o")
    images = np.zeros((21, 12, 12, 3), np.uint8)
    steps = CpuBackend(graph).profile(images, 2)["o"]
    profile = member_profile(graph, steps, len(images))
    for name, layer in profile.layers.items():
        assert layer.macs == pytest.approx(layer.cost.macs), name
        assert layer.executed >= layer.unpadded * 0.999
    assert sum(s.share for s in profile.steps if s.step.method == "store_logits") == pytest.approx(1)
