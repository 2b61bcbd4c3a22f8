"""A sweep: time against FLOPs over many sizes of one network, in our engine and in others, all in turns.

A point's shares are against the original in the same engine. Over pruning ratios our engine's points should lie on the straight
line from 1 to the time of what cannot be pruned; ``lines`` fits one through the unrounded widths and gives the largest distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bench.peers import Peer
from ..bench.subject import Subject
from .peers import Say, variant_call
from .running import Call, Setting, Times, engine_call, measure
from .totals import realised_share
from .variants import BITS, MULTIPLES, RATIOS, Variant, flops, pruned, quantized

OURS = "hce"
_BASELINE = "original"
_LEAST_POINTS = 3  # of a line


def sweep(
    subject: Subject, original: str, peers: Sequence[Peer], setting: Setting, *, ratios: Sequence[float] = RATIOS,
    multiples: Sequence[int] = MULTIPLES, bits: Sequence[int] = BITS, say: Say = lambda text: None,
) -> dict[str, Any]:
    """``points``: one per variant and engine; ``lines``: per engine; ``skipped``: what a peer could not do.

    fp32 peers run the pruned networks, int8 peers their own int8 form of the original, which stands at 8 bits and is held against
    the float sister's original.
    """
    say("making the networks of the sweep")
    graph = subject.graph.only(original)
    variants = pruned(graph, ratios, multiples)
    variants += quantized(graph, subject.artifact.input, subject.sample.calibration[:64], bits)
    images = subject.batch(setting.batch)
    calls: dict[str, Call] = {f"{OURS} {_BASELINE}": engine_call(graph, images, setting)}
    baselines = {f"{OURS} {_BASELINE}": f"{OURS} {_BASELINE}"}
    owners: dict[str, tuple[str, Variant]] = {}
    skipped: dict[str, str] = {}
    for variant in variants:
        name = f"{OURS} {variant.name}"
        calls[name], owners[name], baselines[name] = engine_call(variant.graph, images, setting), (OURS, variant), f"{OURS} {_BASELINE}"
    for peer in peers:
        problem = peer.missing()
        base = f"{peer.float_peer} {_BASELINE}"
        for variant in [v for v in variants if _runs(peer, v)]:
            name = f"{peer.name} {variant.name}"
            say(f"building {variant.name} on {peer.name}")
            try:
                if problem is None and base not in calls:
                    calls[base], baselines[base] = variant_call(_float_peer(peer, peers), graph, subject, setting), base
                if problem is None:
                    network = graph if variant.axis == "bits" else variant.graph
                    calls[name], owners[name], baselines[name] = variant_call(peer, network, subject, setting), (peer.name, variant), base
            except Exception as error:  # peers raise whatever they like, and none of it may end the sweep
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if problem is not None:
                skipped[name] = problem
    say(f"timing {len(calls)} calls in {setting.rounds} rounds")
    times, restless = measure(calls, baselines, setting)
    points = [_point(engine, variant, flops(variant.graph) / flops(graph), times[name]) for name, (engine, variant) in owners.items()]
    return {"points": points, "lines": lines(points), "skipped": skipped, "restless_turns": restless}


def _runs(peer: Peer, variant: Variant) -> bool:
    return variant.axis == "pruning" if peer.precision == "fp32" else variant.axis == "bits" and variant.value == 8


def _float_peer(peer: Peer, peers: Sequence[Peer]) -> Peer:
    """The object of the float sister, which keeps what it made of the original."""
    from ..bench.peers import PEERS

    return next((p for p in peers if p.name == peer.float_peer), None) or PEERS[peer.float_peer]()


def _point(engine: str, variant: Variant, flops_ratio: float, times: Times) -> dict[str, Any]:
    return {
        "engine": engine, "axis": variant.axis, "value": variant.value, "multiple": variant.multiple, "flops_ratio": flops_ratio,
        "time_ratio": times.ratio, "interval": times.interval, "realised_share": realised_share(times.ratio, flops_ratio),
        "seconds": times.seconds,
    }


def lines(points: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per engine, least squares through (flops_ratio, time_ratio) of the pruned networks of any width: ``slope``, ``fixed`` (time
    without FLOPs), ``largest_distance`` of a point from the line and ``least_share`` of them. Engines with few points are left out."""
    found = {}
    for engine in dict.fromkeys(p["engine"] for p in points):
        own = [p for p in points if p["engine"] == engine and p["axis"] == "pruning" and p["multiple"] == 1]
        if len(own) < _LEAST_POINTS:
            continue
        x, y = (np.array([p[key] for p in own]) for key in ("flops_ratio", "time_ratio"))
        slope, fixed = np.polyfit(x, y, 1)
        found[engine] = {"slope": float(slope), "fixed": float(fixed), "largest_distance": float(np.abs(slope * x + fixed - y).max()),
                         "least_share": float(min(p["realised_share"] for p in own))}
    return found
