"""``hce bench --dry-run``: what a plan for the GPU moves, computes and needs at least, without running it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import keep_inputs
from .output import amount, show_table, write_json

if TYPE_CHECKING:
    from ..graph import Graph
    from ..plan.cuda import Gpu, Plan, Step

FLOAT_BITS = 32
_ALIASES = {"mobilenet_v2": "mobilenetv2"}


def dry_run(
    model: str, batch: int, gpu_name: str, bits: int, members: tuple[str, ...] | None, arithmetic: str, json_path: Path | None
) -> int:
    """Shows what each step of the plan moves, computes and takes at least: bounds from the GPU's datasheet, never measurements."""
    from ..arithmetic import ARITHMETICS, IEEE
    from ..errors import InputError
    from ..plan.cuda import GPUS, build_plan
    from ..plan.cuda.ensemble_plan import build_ensemble_plan, only_codes
    from .bench_ensemble import DryRun, describe_arithmetics, describe_ensemble, show_arithmetics, show_ensemble

    gpu = GPUS[gpu_name]
    graph = _graph(model, bits, members, json_path)
    shown = str(json_path) != "-"
    if only_codes(graph):
        if arithmetic != IEEE:
            raise InputError("--arithmetic", expected="a float member", got="quantized ones alone", fix="leave --arithmetic out")
        plan = build_plan(graph, batch, gpu.name)
        facts = describe(plan, gpu)
        if shown:
            show(model, plan, facts)
    else:
        plans = {name: DryRun(partial(build_ensemble_plan, batch=batch, gpu=gpu.name, arithmetic=name), graph) for name in ARITHMETICS}
        facts = {**describe_ensemble(plans[arithmetic], gpu), "arithmetics": describe_arithmetics(plans, gpu)}
        if shown:
            show_ensemble(model, plans[arithmetic].whole, facts)
            show_arithmetics(facts["arithmetics"])
    write_json(json_path, "bench", {"model": model, "dry_run": True, **facts})
    return 0


def _graph(model: str, bits: int, members: tuple[str, ...] | None, json_path: Path | None) -> Graph:
    from .. import artifact
    from ..errors import InputError

    if model.endswith(".hce") or Path(model).exists():
        keep_inputs((json_path,), (Path(model),))
        graph = artifact.load(model).graph
        return graph if members is None else graph.only(*dict.fromkeys(members))
    if members is not None:
        raise InputError("--members", expected="a .hce file", got=f"the architecture {model!r}", fix="leave --members out")
    name = _ALIASES.get(model, model)
    return random_member(name, bits) if bits < FLOAT_BITS else float_member(name)


def random_member(name: str, bits: int) -> Graph:
    """The quantized graph of an architecture with random weights: everything but accuracy is that of a trained one."""
    import torch

    from ..capture import capture
    from ..training.freeze import freeze
    from ..training.models import resolve
    from ..training.quantize import QuantModule, calibrate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, arch = resolve(name)
        quantized = QuantModule(capture(module.eval(), arch.input, member="q"), bits, bits)
        pixels = torch.randint(0, 256, (1, *arch.input.shape), dtype=torch.uint8)
    low_to_high = pixels if arch.input.numpy_dtype == "uint8" else pixels / 255
    calibrate(quantized, low_to_high, method="lsq", reestimate=False)
    return freeze(quantized.eval())


def float_member(name: str) -> Graph:
    """The float graph of an architecture with random weights."""
    import torch

    from ..capture import capture
    from ..graph.passes import lower
    from ..training.models import resolve

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, arch = resolve(name)
        return lower(capture(module.eval(), arch.input, member="o"))


def describe(plan: Plan, gpu: Gpu) -> dict[str, Any]:
    """What ``--json`` carries. Bytes, multiply-accumulates and seconds are of the whole batch."""
    from ..plan.cuda.arena import largest_bucket
    from ..plan.cuda.roofline import LAUNCH_FLOOR, total

    seconds = total(plan.steps, gpu)
    cost = plan.cost
    return {
        "members": list(plan.members), "batch": plan.batch,
        "gpu": {"name": gpu.name, "bytes_per_second": gpu.bandwidth, "int8_operations_per_second": gpu.int8,
                "launch_seconds": LAUNCH_FLOOR, "source": gpu.source},
        "steps": [_step(step, plan.batch, gpu) for step in plan.steps],
        "totals": {
            "arena_bytes_per_image": plan.arena_bytes_per_image, "slots": len(plan.slots), "weight_bytes": plan.weight_bytes,
            "largest_bucket": largest_bucket(plan), "workspace_bytes": plan.workspace_bytes, "launches": plan.launches,
            "bytes": cost.bytes, "macs": cost.macs,
            "walked_macs": cost.walked, "bound_seconds": seconds, "bound_images_per_second": plan.batch / seconds,
        },
    }


def _step(step: Step, batch: int, gpu: Gpu) -> dict[str, Any]:
    from ..plan.cuda import Map, bound

    least = bound(step.cost, step.launches, gpu)
    maps = {id(v): sum(v.form.image_bytes) for v in step.writes.values() if isinstance(v, Map)}
    return {
        "nodes": list(step.nodes), "kernel": step.kernel, "reason": step.reason, "launches": step.launches,
        "config": None if step.config is None else dict(vars(step.config)), "config_source": step.source or None,
        "writes": {key: str(v.form) if isinstance(v, Map) else f"f32[{v.classes}]" for key, v in step.writes.items()},
        "map_bytes": batch * sum(maps.values()), "weight_bytes": step.weights.bytes if step.weights else 0,
        "read_bytes": step.cost.read, "written_bytes": step.cost.written, "macs": step.cost.macs,
        "walked_macs": step.cost.walked, "bound_seconds": least.seconds, "bound_by": least.by,
    }


def show(model: str, plan: Plan, facts: dict[str, Any]) -> None:
    from ..plan.cuda.plan import short

    rows = []
    for step, s in zip(plan.steps, facts["steps"], strict=True):
        config = short(step.config) + ("" if step.source in ("", "default") else f" ({step.source})")
        rows.append((
            "+".join(s["nodes"]), s["kernel"], str(s["launches"]), byte_text(s["map_bytes"]), byte_text(s["weight_bytes"]),
            byte_text(s["read_bytes"] + s["written_bytes"]), amount(s["macs"]) if s["macs"] else "",
            f"{s['walked_macs'] / s['macs']:.2f}x" if s["macs"] and s["walked_macs"] else "",
            f"{1e6 * s['bound_seconds']:.2f}", s["bound_by"], config,
        ))
    gpu, total = facts["gpu"], facts["totals"]
    show_table(f"{model}: members {', '.join(facts['members'])}, batch {facts['batch']}, bounds of {gpu['name']}",
               ("step", "kernel", "launches", "maps", "weights", "moved", "MACs", "walked", "bound us", "by", "configuration"), rows)
    click.echo(
        f"arena {byte_text(total['arena_bytes_per_image'])} per image in {total['slots']} slots (launches take up to "
        f"{total['largest_bucket']} images), weights "
        f"{byte_text(total['weight_bytes'])}, {total['launches']} launches, {byte_text(total['bytes'])} moved, "
        f"{amount(total['macs'])} MACs ({total['walked_macs'] / max(total['macs'], 1):.2f}x walked)"
    )
    click.echo(
        f"bound, not a measurement: at least {1e6 * total['bound_seconds']:.1f} us, at most "
        f"{amount(total['bound_images_per_second'])} images/s on {gpu['name']} ({gpu['source']}; "
        f"{1e6 * gpu['launch_seconds']:.1f} us per launch assumed)"
    )


def byte_text(value: int) -> str:
    return amount(value, (" B", " kB", " MB", " GB")) if value else ""
