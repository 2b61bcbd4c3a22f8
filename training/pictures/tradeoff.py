"""Accuracy against cost, beside published results (the HCE paper's Fig. 1)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .labels import Label, place
from .style import MUTED, drawing, member_style, new_figure, open_grid

Row = Mapping[str, Any]
SHOWN_BELOW_BEST = 6.0  # points of accuracy: rows that failed would squeeze all others into a line
_HOMOGENEOUS = ("#aa4499", "P")
_ANCHOR_MARKERS = {"low-bit": "s", "pruned": "^", "ensemble": "o"}


@dataclass(frozen=True)
class Anchor:
    """A published result. accuracy and cost in percent; source: where it stands."""

    arch: str
    name: str
    kind: str
    accuracy: float
    cost: float
    source: str


def anchors(arch: str) -> list[Anchor]:
    """Those of an architecture on CIFAR-10, from anchors.toml; none for one without."""
    table = tomllib.loads((Path(__file__).parent / "anchors.toml").read_text(encoding="utf-8"))
    return [Anchor(**{**entry, "source": table["sources"][entry["source"]]}) for entry in table["anchor"] if entry["arch"] == arch]


def is_sparse(row: Row) -> bool:
    """Whether ``flops_ratio`` of a row counts only weights that are not zero, as of single weights pruned."""
    return row.get("granularity") == "weight"


@dataclass(frozen=True)
class _Point:
    row: str
    kind: str
    cost: float
    accuracy: float
    spread: float
    sparse: bool

    @property
    def style(self) -> tuple[str, str]:
        if self.kind == "homogeneous":
            return _HOMOGENEOUS
        style = member_style(self.kind)
        return style.colour, style.marker

    @property
    def face(self) -> dict[str, Any]:
        """Filled, or hollow where the cost is one that no dense engine has."""
        colour = self.style[0]
        if self.sparse:
            return {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.5}
        return {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.6}


def _points(rows: Sequence[Row]) -> list[_Point]:
    """One point per row that was run; accuracies and their standard deviation in percent."""
    points = []
    for row in rows:
        if not row.get("accuracy") or row.get("flops_ratio") is None:
            continue
        kind = row["kind"] if row["kind"] != "member" else row["members"][0]
        values = [100 * a for a in row["accuracy"]]
        spread = stdev(values) if len(values) > 1 else 0.0
        points.append(_Point(row["row"], kind, 100 * row["flops_ratio"], mean(values), spread, is_sparse(row)))
    return points


def _best(points: Sequence[_Point]) -> list[tuple[_Point, int]]:
    """The best point of every kind, granularity and cost, best first, and how many it was chosen from."""
    clusters: dict[tuple[str, bool, int], list[_Point]] = {}
    for p in points:
        clusters.setdefault((p.kind, p.sparse, round(p.cost / 2)), []).append(p)
    chosen = [(max(cluster, key=lambda p: p.accuracy), len(cluster)) for cluster in clusters.values()]
    return sorted(chosen, key=lambda pair: -pair[0].accuracy)


def accuracy_against_cost(rows: Sequence[Row], arch: str) -> Figure:
    """rows: of a results JSON (``row``, ``kind``, ``members``, ``accuracy`` per seed, ``flops_ratio``); those without an
    accuracy are left out. Cost is in the paper's convention. Where rows of one kind cost the same, the best is named, with
    one standard deviation over seeds, and the others are pale. Hollow: see :func:`is_sparse`.
    """
    points, published = _points(rows), anchors(arch)
    top = max([p.accuracy + p.spread for p in points] + [a.accuracy for a in published], default=100.0)
    shown = [p for p in points if p.accuracy >= top - SHOWN_BELOW_BEST]
    floor = min([p.accuracy - p.spread for p in shown] + [a.accuracy for a in published], default=0.0)
    best = _best(shown)
    with drawing():
        figure = new_figure(7.8, 5.0)
        axes = figure.subplots()
        for p in shown:
            colour, marker = p.style
            face = p.face if p.sparse else {"markeredgewidth": 0}
            axes.plot(p.cost, p.accuracy, color=colour, marker=marker, markersize=5, alpha=0.35, linestyle="", **face)
        for p, _ in best:
            colour, marker = p.style
            axes.errorbar(p.cost, p.accuracy, yerr=p.spread or None, color=colour, marker=marker, markersize=7.5, zorder=4,
                          capsize=2.5, elinewidth=1, linestyle="", **p.face)
        for a in published:
            axes.plot(a.cost, a.accuracy, marker=_ANCHOR_MARKERS[a.kind], markersize=6, markerfacecolor="white",
                      markeredgecolor=MUTED, linestyle="", zorder=3)
        room = 0.05 * (top - floor or 1.0)
        right = max([62.0] + [p.cost * 1.07 for p in shown])
        axes.set(xlabel="cost, % of O's FLOPs (paper's convention)", ylabel="accuracy, %", xlim=(0, right),
                 ylim=(floor - 1.5 * room, top + 2 * room))
        clear = [(p.cost, p.accuracy - p.spread, p.cost, p.accuracy + p.spread) for p in shown]
        clear += [(a.cost, a.accuracy, a.cost, a.accuracy) for a in published]
        for p, _ in best:
            if p.kind == "o":
                axes.axhline(p.accuracy, color=member_style("o").colour, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                clear.append((0, p.accuracy, right, p.accuracy))
        open_grid(axes, "both")
        if len(shown) < len(points):
            axes.text(0.99, 0.015, f"not shown, below {top - SHOWN_BELOW_BEST:.1f} %: {len(points) - len(shown)}",
                      transform=axes.transAxes, ha="right", fontsize=8, color=MUTED)
        figure.legend(handles=_legend(shown, published), loc="outside lower center", ncols=4)
        names = [Label(p.cost, p.accuracy, p.row + (f" (best of {n})" if n > 1 else ""), p.style[0], "bold") for p, n in best]
        place(figure, axes, names + [Label(a.cost, a.accuracy, a.name, MUTED) for a in published], clear)
    return figure


def _legend(points: Sequence[_Point], published: Sequence[Anchor]) -> list[Line2D]:
    kinds = {"o": "O", "q": "Q alone", "s": "S alone", "ensemble": "Q and S", "homogeneous": "several of one kind"}
    handles = []
    for kind, name in kinds.items():
        found = next((p for p in points if p.kind == kind), None)
        if found is not None:
            colour, marker = found.style
            handles.append(Line2D([], [], color=colour, marker=marker, markersize=7, markeredgecolor="white", linestyle="", label=name))
    sparse = next((p for p in points if p.sparse), None)
    if sparse is not None:  # coloured, for what was published is hollow and grey
        handles.append(Line2D([], [], marker=sparse.style[1], markersize=7, linestyle="",
                              label="hollow: non-zero weights counted", **sparse.face))
    for kind, marker in _ANCHOR_MARKERS.items():
        if any(a.kind == kind for a in published):
            handles.append(Line2D([], [], marker=marker, markersize=6, markerfacecolor="white", markeredgecolor=MUTED, linestyle="",
                                  label=f"published: {kind}"))
    return handles
