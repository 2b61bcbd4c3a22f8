"""What ``hce audit`` prints: totals, where the missing share went, layers with their reasons, peers, the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .output import show_table

_TOTALS = ("member", "images/s", "FLOPs", "MACs", "bits / 23", "bytes", "time", "realised", "peaks allow", "of that", "of the bound")
_LOST = {
    "unit": "arithmetic unit: what the peaks of its products allow, against its FLOPs",
    "algorithm": "algorithm: Winograd saves the original more operations than this",
    "padding": "padding: channels filled up to units, tiles partly filled",
    "memory": "memory: products slowed down by moving maps and weights",
    "dispatch": "dispatch: starting steps",
    "instructions": "instructions: loads, weights and epilogues around the products",
    "overhead": "halos and logits around the products",
    "no products": "steps without products: pixels, pools, copies",
    "distribution": "distribution: FLOPs were saved in layers that take little time per FLOP",
}


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _interval(row: dict[str, Any]) -> str:
    return "" if row["interval"] is None else f" ({100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f})"


def show_audit(model: Path, report: dict[str, Any]) -> None:
    """Everything but the sweep."""
    machine, setting, original = report["machine"], report["setting"], report["original"]
    title = (f"{model}: batch {setting['batch']}, {setting['threads']} thread{'s' * (setting['threads'] > 1)}, {setting['algorithm']} "
             f"convolutions; {machine['processor']}, {machine['isa']}")
    rows = [(f"{original['member']} (original)", f"{original['images_per_second']:,.0f}", *["100.0 %"] * 5, "", "", "",
             _ratio(original["bound_reached"]))]
    rows += [_total(name, values) for name, values in report["members"].items()]
    show_table(title, _TOTALS, rows)
    for name, values in report["members"].items():
        _say_lost(name, values)
    _show_layers(report)
    _show_peers(report)
    conditions = machine["conditions"]
    if conditions["crowded"] or conditions["other_processors"] > 0.1 or conditions["steal"] > 0.01 or conditions["restless_turns"]:
        click.echo(f"not alone: other programs used {conditions['other_processors']:.2f} processors, {100 * conditions['steal']:.1f} % of the "
                   f"machine's time was stolen, {conditions['restless_turns']} turns began before the process was quiet"
                   + ("; CROWDED: that is more than these threads leave free, so measure again" if conditions["crowded"] else ""))
    click.echo("FLOPs in the paper's convention; every ratio is of the original in the same engine. docs/AUDIT.md has the definitions.")


def _total(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    ratios = [_ratio(values[key]) for key in ("flops_ratio", "macs_ratio", "bb23_ratio", "bytes_ratio")]
    return (name, f"{values['images_per_second']:,.0f}", *ratios, _ratio(values["time_ratio"]) + _interval(values),
            _ratio(values["realised_share"]), _ratio(values["bound_ratio"]), _ratio(values["bound_share"]), _ratio(values["bound_reached"]))


def _say_lost(name: str, values: dict[str, Any]) -> None:
    """Where the share that is missing to 1 went, largest part first; parts under a percent are left out."""
    if values["lost"] is None:
        click.echo(f"{name}: its layers are not those of the original, so nothing can be charged to them" if values["realised_share"] is not None
                   else f"{name}: saves no FLOPs")
        return
    parts = sorted((item for item in values["lost"].items() if abs(item[1]) >= 0.01), key=lambda item: -item[1])
    click.echo(f"{name}: {_ratio(values['profile_realised_share'])} of the saving was realised in profiled steps; of the promised saving")
    for code, share in parts:
        click.echo(f"  {100 * abs(share):5.1f} % {'lost  ' if share > 0 else 'gained'}  {_LOST[code]}")


def _show_layers(report: dict[str, Any]) -> None:
    """A table per member; other engines that can tell have a column of their own times for the layer, against the original's there."""
    for member in report["members"]:
        own = [row for row in report["layers"] if row["member"] == member]
        if not own:
            continue
        theirs: dict[str, dict[str, float]] = {}
        for row in report["peers"]["layers"]:
            if row["member"] == member:
                theirs.setdefault(row["engine"], {})[row["layer"]] = row["time_ratio"]
        rows = [(*_layer(row), *(_ratio(times.get(row["layer"])) for times in theirs.values()), _codes(row)) for row in own]
        columns = ("layer", "kernel", "us/image", "FLOPs", "time", "realised", "of peak", "executed", "GB/s", "from")
        show_table(f"Layers of {member} against the original's", (*columns, *(f"time in {engine}" for engine in theirs), "why not all"), rows)
        _say_reasons(own)


def _layer(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["layer"], row["kernel"], f"{1e6 * row['seconds']:.2f}", _ratio(row["flops_ratio"]), _ratio(row["time_ratio"]),
            _ratio(row["realised_share"]), f"{100 * row['peak_share']:.0f} %", f"{100 * row['executed_share']:.0f} %",
            f"{row['bytes_per_second'] / 1e9:.1f}", row["place"])


def _codes(row: dict[str, Any]) -> str:
    return ", ".join(reason["code"] for reason in row["reasons"])


def _say_reasons(rows: Sequence[dict[str, Any]]) -> None:
    """A line per code: what it costs in all layers, and the sentence of the layer where it costs most."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for reason in row["reasons"]:
            found.setdefault(reason["code"], []).append({**reason, "layer": row["layer"]})
    for code, reasons in sorted(found.items(), key=lambda item: -sum(r["seconds"] for r in item[1])):
        worst = max(reasons, key=lambda r: r["seconds"])
        cost, layers = 1e6 * sum(r["seconds"] for r in reasons), f"{len(reasons)} layers, most in " if len(reasons) > 1 else ""
        click.echo(f"  {code}: {cost:.2f} us/image in {layers}{worst['layer']} ({1e6 * worst['seconds']:.2f} us, a factor of {worst['factor']:.2f}): "
                   f"{worst['text']}")


def _show_peers(report: dict[str, Any]) -> None:
    rows = [
        (row["engine"], row["member"], f"{row['images_per_second']:,.0f}", _ratio(row["flops_ratio"]), _ratio(row["time_ratio"]) + _interval(row),
         _ratio(row["realised_share"]))
        for row in report["peers"]["rows"]
    ]
    if rows:
        show_table("Other engines, each against its own time for the original", ("engine", "member", "images/s", "FLOPs", "time", "realised"), rows)
    for name, reason in report["peers"]["skipped"].items():
        click.echo(f"{name} skipped: {reason}")


def show_sweep(sweep: dict[str, Any]) -> None:
    """One table per axis, a column of shares per engine."""
    engines = list(dict.fromkeys(point["engine"] for point in sweep["points"]))
    for axis, title in (("pruning", "Pruning sweep"), ("bits", "Bits sweep")):
        points = [point for point in sweep["points"] if point["axis"] == axis]
        keys = list(dict.fromkeys((p["value"], p["multiple"], p["flops_ratio"]) for p in points))
        rows = []
        for value, multiple, flops in keys:
            label = f"{100 * value:g} %, widths of {multiple}" if axis == "pruning" else f"{value:.0f} bits"
            of = {p["engine"]: p for p in points if (p["value"], p["multiple"]) == (value, multiple)}
            rows.append((label, _ratio(flops), *(f"{_ratio(of[e]['time_ratio'])}, {_ratio(of[e]['realised_share'])}" if e in of else "" for e in engines)))
        if rows:
            show_table(f"{title}: time and realised share by engine", (axis, "FLOPs", *engines), rows)
    for engine, line in sweep["lines"].items():
        click.echo(f"{engine}: time = {line['fixed']:.3f} + {line['slope']:.3f} x FLOPs over any widths, no point further from it than "
                   f"{100 * line['largest_distance']:.1f} % of the original's time; least share {100 * line['least_share']:.1f} %")
    for name, reason in sweep["skipped"].items():
        click.echo(f"{name} skipped: {reason}")
