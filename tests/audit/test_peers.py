"""Other engines in an audit: their rows, their layers, their part of a sweep, and what becomes of those that cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.audit.report import audit
from hce_engine.audit.running import Setting
from hce_engine.audit.sweep import sweep
from hce_engine.bench.peers import LayerTime, Network, Peer
from hce_engine.bench.sample import random_images
from hce_engine.bench.subject import Subject
from tests.bench.conftest import fake

QUICK = Setting(batch=16, rounds=2, seconds=0.001, repeats=2)


def profiled(peer: Peer, seconds: float) -> Peer:
    """The peer with a profiler: every layer takes so long, under a name that holds the node's."""

    def profile(network: Network, batch: int, threads: int, calls: int) -> tuple[LayerTime, ...]:
        layers = [node.name for node in network.graph.nodes if node.op in ("conv2d", "linear")]
        return (LayerTime("reorder", "Reorder", "", 1.0), *(LayerTime(f"fused/{name}/relu", "Convolution", "", seconds) for name in layers))

    peer.profile = profile  # type: ignore[method-assign]
    return peer


def test_members_are_held_against_the_same_runtime(small: Artifact) -> None:
    slow, fast = profiled(fake("slow", float_peer="slow"), 4e-3), profiled(fake("fast8", "int8", float_peer="slow"), 1e-3)
    report = audit(small, random_images(small.input), [slow, fast], QUICK)
    rows = {(row["engine"], row["member"]): row for row in report["peers"]["rows"]}
    assert set(rows) == {("slow", "o"), ("slow", "s"), ("fast8", "q"), ("fast8", "ensemble")}
    assert rows["slow", "o"]["time_ratio"] == rows["slow", "o"]["flops_ratio"] == 1 and rows["slow", "o"]["realised_share"] is None
    for (_, member), row in rows.items():
        if member != "o":
            assert row["flops_ratio"] == pytest.approx(report["members"][member]["flops_ratio"])
            assert row["realised_share"] == pytest.approx((1 - row["time_ratio"]) / (1 - row["flops_ratio"]))
    layers = {(row["engine"], row["member"], row["layer"]): row for row in report["peers"]["layers"]}
    assert len(layers) == 12 and {key[:2] for key in layers} == {("slow", "s"), ("fast8", "q")}
    assert layers["slow", "s", "blocks.0.first"]["time_ratio"] == 1
    assert layers["fast8", "q", "head"]["time_ratio"] == pytest.approx(0.25)
    assert layers["fast8", "q", "head"]["seconds"] == pytest.approx(1e-3 / 16)
    assert report["peers"]["versions"]["numpy"] == np.__version__ and not report["peers"]["skipped"]


def test_peers_that_cannot_are_named_with_the_reason(small: Artifact) -> None:
    peers = [
        fake("absent", float_peer="absent", absent="not installed"), fake("broken", float_peer="broken", error=ValueError("no such operation")),
        fake("wrong", float_peer="wrong", change=lambda z: z + 1),
    ]
    report = audit(small, random_images(small.input), peers, QUICK)
    assert report["peers"]["rows"] == report["peers"]["layers"] == []
    skipped: dict[str, Any] = report["peers"]["skipped"]
    assert skipped["absent s"] == "not installed"
    assert "no such operation" in skipped["broken s"]
    assert "logits" in skipped["wrong s"]


def test_sweeps_run_on_peers_too(small: Artifact) -> None:
    sample = random_images(small.input)
    peers = [fake("floats", float_peer="floats"), fake("codes", "int8", float_peer="floats"), fake("broken", float_peer="broken", error=ValueError("no"))]
    found = sweep(Subject(small, sample, None), "o", peers, QUICK, ratios=(0.3,), multiples=(1,), bits=(8, 4))
    points = {(p["engine"], p["axis"], p["value"]) for p in found["points"]}
    assert points == {("hce", "pruning", 0.3), ("hce", "bits", 8), ("hce", "bits", 4), ("floats", "pruning", 0.3), ("codes", "bits", 8)}
    assert found["skipped"] == {"broken 30 % pruned, widths of 1": "ValueError: no"}
