"""A sweep as a picture: measured against ideal speed-up, one panel for pruning, one for bits.

Ideal is what FLOPs say: 1 / flops_ratio. Every engine is held against its own time for the original, so engines are compared by
how much of a saving they realise, not by how fast they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ..atomic import atomic_write
from ..training.pictures.style import INK, MUTED, drawing, encode, new_figure, open_grid
from .sweep import OURS

# Okabe and Ito (2008), as the members of other pictures; ours keeps the ensemble's green.
_LOOKS = {
    OURS: ("#009e73", "o"), "openvino-fp32": ("#0072b2", "s"), "openvino-int8": ("#0072b2", "s"), "onnxruntime-fp32": ("#d55e00", "^"),
    "onnxruntime-int8": ("#d55e00", "^"), "torch": ("#cc79a7", "D"), "torch-compile": ("#e69f00", "v"),
}
_OTHER = (MUTED, "P")
_NAMES = {OURS: "HCE Engine"}
_TICKS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
_DASHES = (0, (4, 3))
_BAR = 0.28  # width, of a place of 1


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Writes ``path``, .png or .svg. report: an audit with a sweep."""
    sweep, setting = report["sweep"], report["setting"]
    with drawing():
        figure = new_figure(9.6, 4.3)
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _pruning(left, [p for p in sweep["points"] if p["axis"] == "pruning"])
        _bits(right, [p for p in sweep["points"] if p["axis"] == "bits"], report["peaks"][0]["macs"])
        threads = f"{setting['threads']} thread{'s' * (setting['threads'] > 1)}"
        figure.suptitle(f"{report['model']}: batch {setting['batch']}, {threads}, {setting['isa']}, {setting['algorithm']} convolutions",
                        x=0.01, ha="left", fontsize=10.5)
        data = encode(figure, path.suffix.removeprefix("."))
    with atomic_write(path) as file:
        file.write(data)


def _look(engine: str) -> tuple[str, str]:
    return _LOOKS.get(engine, _OTHER)


def _pruning(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    """Both scales are logarithmic: equal steps are equal factors, and the ideal is the diagonal."""
    if not points:
        axes.set_axis_off()
        return
    top = max(1 / p["flops_ratio"] for p in points) * 1.06
    axes.plot([1, top], [1, top], color=INK, linewidth=1, linestyle=_DASHES, label="ideal: as FLOPs say", zorder=1)
    for engine in dict.fromkeys(p["engine"] for p in points):
        colour, marker = _look(engine)
        for multiple in dict.fromkeys(p["multiple"] for p in points if p["engine"] == engine):
            own = sorted((p for p in points if (p["engine"], p["multiple"]) == (engine, multiple)), key=lambda p: -p["flops_ratio"])
            any_width, ours = multiple == 1, engine == OURS
            x, y = [1.0, *(1 / p["flops_ratio"] for p in own)], [1.0, *(1 / p["time_ratio"] for p in own)]
            axes.plot(x, y, color=colour, marker=marker, markersize=5 if ours else 4, linewidth=2 if ours else 1.2,
                      linestyle="-" if any_width else ":", markerfacecolor=colour if any_width else "white", zorder=4 if ours else 3,
                      label=_NAMES.get(engine, engine) if any_width else None)
    rounded = next((p["multiple"] for p in points if p["multiple"] != 1), None)
    if rounded:
        axes.plot([], [], color=MUTED, marker="o", markersize=4, linestyle=":", markerfacecolor="white", label=f"the same, widths in steps of {rounded}")
    axes.set_title("Pruning to any width")
    axes.set_xlabel("ideal speed-up: FLOPs of the original over FLOPs")
    axes.set_ylabel("measured speed-up, in the same engine")
    lowest = min(1.0, *(1 / p["time_ratio"] for p in points)) * 0.97
    axes.set_xscale("log")
    axes.set_yscale("log")
    for scale, ticks, low in ((axes.xaxis, axes.set_xticks, 1.0), (axes.yaxis, axes.set_yticks, lowest)):
        scale.set_minor_locator(NullLocator())
        ticks([t for t in _TICKS if low <= t <= top], [f"{t:g}" for t in _TICKS if low <= t <= top])
    axes.set_xlim(1, top)
    axes.set_ylim(lowest, top)
    open_grid(axes, "both")
    axes.legend(loc="upper left")


def _bits(axes: Axes, points: Sequence[dict[str, Any]], peaks: Mapping[str, float]) -> None:
    """Bars side by side where several engines have a width, with the ideal above them and what the peaks allow across."""
    if not points:
        axes.set_axis_off()
        return
    widths = sorted({int(p["value"]) for p in points}, reverse=True)
    named: set[str] = set()
    for place, width in enumerate(widths):
        own = [p for p in points if p["value"] == width]
        for i, point in enumerate(own):
            engine, height, at = point["engine"], 1 / point["time_ratio"], place + (i - (len(own) - 1) / 2) * _BAR
            axes.bar(at, height, _BAR * 0.94, color=_look(engine)[0], zorder=2, label=None if engine in named else _NAMES.get(engine, engine))
            axes.annotate(f"{height:.2f}", (at, height), (0, -3), textcoords="offset points", ha="center", va="top", fontsize=8, color="white")
            named.add(engine)
        ideal = 1 / own[0]["flops_ratio"]
        axes.plot([place - 0.4, place + 0.4], [ideal] * 2, color=INK, linewidth=1.2, linestyle=_DASHES,
                  label="ideal: as FLOPs say" if place == 0 else None)
        axes.annotate(f"{ideal:.2f}", (place, ideal), (0, 2), textcoords="offset points", ha="center", fontsize=8, color=INK)
    unit = peaks["u8"] / peaks["f32"]
    axes.axhline(unit, color=MUTED, linewidth=1.2, linestyle=":", label=f"peak, 8-bit over float: {unit:.1f}", zorder=1)
    axes.set_xticks(range(len(widths)), [f"{w} bits" for w in widths])
    axes.set_title("Quantization of the original")
    axes.set_ylabel("measured speed-up, in the same engine")
    open_grid(axes)
    axes.set_ylim(0, max([1 / p["flops_ratio"] for p in points] + [unit]) * 1.32)
    axes.legend(loc="upper left")
