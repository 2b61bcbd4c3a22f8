"""What ``hce bench --dry-run`` says of float members on a GPU and of ensembles: their layout and steps, and what overlap could give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .bench_gpu import byte_text, describe, show
from .output import amount, show_table

if TYPE_CHECKING:
    from ..graph import Graph
    from ..plan.cuda import Gpu
    from ..plan.cuda.ensemble_plan import EnsemblePlan
    from ..plan.cuda.lanes_plan import LanesPlan


class DryRun:
    """whole: the plan of all members, references included.  voting: of those that vote.  alone: of each by itself, by name."""

    def __init__(self, build: Callable[[Graph], EnsemblePlan], graph: Graph) -> None:
        self.whole = build(graph)
        voters = [m.name for m in graph.voters]
        self.voting = self.whole if len(voters) == len(graph.members) else build(graph.only(*voters))
        self.alone = {m.name: build(graph.only(m.name)) for m in graph.members}


def describe_ensemble(plans: DryRun, gpu: Gpu) -> dict[str, Any]:
    """What ``--json`` carries. ``parts`` are facts of each part of all members, ``alone`` of each member by itself, ``totals`` of the
    ensemble; bytes, multiply-accumulates and seconds are of the batch."""
    from ..plan.cuda.ensemble_plan import largest_ensemble_bucket
    from ..plan.cuda.lanes_plan import LanesPlan

    whole, voting = plans.whole, plans.voting
    parts = [describe_lanes(p, gpu) if isinstance(p, LanesPlan) else {"kind": "codes", **describe(p, gpu)} for p in whole.parts]
    return {
        "members": list(whole.members), "voters": list(voting.members), "batch": whole.batch, "gpu": parts[0]["gpu"], "parts": parts,
        "alone": {name: _totals(plan, gpu) for name, plan in plans.alone.items()},
        "totals": {**_totals(voting, gpu), "largest_bucket": largest_ensemble_bucket(voting)},
    }


def _totals(plan: EnsemblePlan, gpu: Gpu) -> dict[str, Any]:
    from ..plan.cuda.ensemble_plan import ensemble_bound

    least = ensemble_bound(plan, gpu)
    costs = [part.cost for part in plan.parts]
    return {
        "launches": plan.launches, "bytes": sum(c.bytes for c in costs) + plan.mean_bytes, "macs": sum(c.macs for c in costs),
        "walked_macs": sum(c.walked for c in costs), "weight_bytes": sum(part.weight_bytes for part in plan.parts),
        "sequential_bound_seconds": least.sequential, "perfect_overlap_bound_seconds": least.perfect_overlap,
        "sequential_bound_images_per_second": plan.batch / least.sequential,
        "perfect_overlap_bound_images_per_second": plan.batch / least.perfect_overlap,
    }


def describe_arithmetics(plans: Mapping[str, DryRun], gpu: Gpu) -> list[dict[str, Any]]:
    """Totals of each float member and of the ensemble, by arithmetic."""
    from ..plan.cuda.lanes_plan import LanesPlan

    return [
        {"arithmetic": arithmetic, "totals": _totals(dry.voting, gpu),
         "alone": {name: _totals(plan, gpu) for name, plan in dry.alone.items() if any(isinstance(p, LanesPlan) for p in plan.parts)}}
        for arithmetic, dry in plans.items()
    ]


def show_arithmetics(rows: list[dict[str, Any]]) -> None:
    members = list(rows[0]["alone"])
    sequential, overlap = "sequential_bound_images_per_second", "perfect_overlap_bound_images_per_second"
    show_table("bounds by arithmetic of float members, at most images/s", (
        "arithmetic", *(f"{name}, moved" for name in members), *members, "ensemble, sequential", "ensemble, perfect overlap",
    ), [
        (row["arithmetic"], *(byte_text(row["alone"][name]["bytes"]) for name in members),
         *(amount(row["alone"][name][sequential]) for name in members), amount(row["totals"][sequential]), amount(row["totals"][overlap]))
        for row in rows
    ])


def describe_lanes(plan: LanesPlan, gpu: Gpu) -> dict[str, Any]:
    from ..arithmetic import IEEE
    from ..plan.cuda.ensemble_plan import FFMA, part_bounds, products_bound
    from ..plan.cuda.roofline import LAUNCH_FLOOR

    bounds, cost = part_bounds(plan, gpu), plan.cost
    products = {True: 0.0, False: 0.0}  # seconds, by whether they are of float32 multiply-adds
    for step in plan.steps:
        products[step.arithmetic == IEEE] += products_bound(step, gpu).seconds
    seconds = sum(b.seconds for b in bounds)
    return {
        "kind": plan.layout, "why": plan.why or None, "arithmetic": plan.arithmetic, "members": list(plan.members),
        "batch": plan.batch, "tiles": plan.tiles,
        "gpu": {"name": gpu.name, "bytes_per_second": gpu.bandwidth, "int8_operations_per_second": gpu.int8,
                "ffma_operations_per_second": FFMA[gpu.name], "launch_seconds": LAUNCH_FLOOR, "source": gpu.source},
        "steps": [
            {
                "nodes": list(s.nodes), "kernel": s.kernel, "reason": s.reason, "launches": s.launches,
                "config": None if s.config is None else dict(vars(s.config)),
                "weight_bytes": s.weights.packed_bytes if s.weights is not None else 0, "read_bytes": s.cost.read,
                "written_bytes": s.cost.written, "macs": s.cost.macs, "walked_macs": s.cost.walked,
                "bound_seconds": b.seconds, "bound_by": b.by,
            }
            for s, b in zip(plan.steps, bounds, strict=True)
        ],
        "totals": {
            "arena_bytes_per_tile": plan.arena_bytes_per_tile, "slots": len(plan.slots), "weight_bytes": plan.weight_bytes,
            "launches": plan.launches, "bytes": cost.bytes, "macs": cost.macs, "walked_macs": cost.walked,
            "ffma_bound_seconds": products[True], "tensor_core_bound_seconds": products[False],
            "direct_ffma_bound_seconds": 2 * cost.macs / FFMA[gpu.name], "bound_seconds": seconds,
            "bound_images_per_second": plan.batch / seconds,
        },
    }


def show_ensemble(model: str, plan: EnsemblePlan, facts: dict[str, Any]) -> None:
    from ..plan.cuda.lanes_plan import LanesPlan

    for part, own in zip(plan.parts, facts["parts"], strict=True):
        if isinstance(part, LanesPlan):
            _show_lanes(model, part, own)
        else:
            show(model, part, own)
    def line(what: str, totals: Mapping[str, Any], bound: str) -> tuple[str, ...]:
        seconds, rate = totals[f"{bound}_bound_seconds"], totals[f"{bound}_bound_images_per_second"]
        return (what, str(totals["launches"]), byte_text(totals["bytes"]), amount(totals["macs"]), f"{1e6 * seconds:.1f}", amount(rate))

    lines = [line(name, totals, "sequential") for name, totals in facts["alone"].items()]
    if len(facts["voters"]) > 1:
        ensemble = f"ensemble of {', '.join(facts['voters'])}"
        lines += [line(f"{ensemble}, sequential", facts["totals"], "sequential"),
                  line(f"{ensemble}, perfect overlap", facts["totals"], "perfect_overlap")]
    show_table(f"{model}: batch {plan.batch}, bounds of {facts['gpu']['name']}, not measurements",
               ("what", "launches", "moved", "MACs", "at least us", "at most images/s"), lines)


def _show_lanes(model: str, plan: LanesPlan, facts: dict[str, Any]) -> None:
    from ..plan.cuda.lanes_plan import LANES

    rows = [
        ("+".join(s["nodes"]), s["kernel"], str(s["launches"]), byte_text(s["weight_bytes"]),
         byte_text(s["read_bytes"] + s["written_bytes"]), amount(s["macs"]) if s["macs"] else "",
         f"{s['walked_macs'] / s['macs']:.2f}x" if s["macs"] else "", f"{1e6 * s['bound_seconds']:.2f}", s["bound_by"],
         "" if step.config is None else str(step.config))
        for step, s in zip(plan.steps, facts["steps"], strict=True)
    ]
    gpu, total = facts["gpu"], facts["totals"]
    lanes = facts["kind"] == LANES
    layout, tiles = ("image lanes", f" in {facts['tiles']} tiles") if lanes else ("NHWC", "")
    why = f" ({facts['why']})" if facts["why"] else ""
    show_table(f"{model}: members {', '.join(facts['members'])}, float32 in {layout}{plan.arithmetic_text}, batch {facts['batch']}{tiles}, "
               f"bounds of {gpu['name']}",
               ("step", "kernel", "launches", "weights", "moved", "MACs", "walked", "bound us", "by", "configuration"), rows)
    click.echo(
        f"layout {layout}{why}; arena {byte_text(total['arena_bytes_per_tile'])} per {'tile of 32 images' if lanes else 'image'} in "
        f"{total['slots']} slots, weights "
        f"{byte_text(total['weight_bytes'])}, {total['launches']} launches, {byte_text(total['bytes'])} moved, "
        f"{amount(total['macs'])} MACs ({total['walked_macs'] / max(total['macs'], 1):.2f}x walked)"
    )
    tensor_cores = total["tensor_core_bound_seconds"]
    on_tensor_cores = f" and in {plan.arithmetic} {1e6 * tensor_cores:.1f} us" if tensor_cores else ""
    click.echo(
        f"bound, not a measurement: at least {1e6 * total['bound_seconds']:.1f} us, at most "
        f"{amount(total['bound_images_per_second'])} images/s on {gpu['name']} ({amount(gpu['ffma_operations_per_second'])} float32 "
        f"operations/s: the products of this plan alone take {1e6 * total['ffma_bound_seconds']:.1f} us{on_tensor_cores}, those of direct "
        f"convolution without padding {1e6 * total['direct_ffma_bound_seconds']:.1f} us)"
    )
