"""Ensemble accuracy over the weight of the cross entropy in S's loss (the HCE paper's Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from .style import MUTED, drawing, member_style, new_figure, open_grid

Row = Mapping[str, Any]
# The ensemble's own colour first; the others are no member's.
_LINES = (("#009e73", "o", "-"), ("#aa4499", "s", "--"), ("#332288", "^", "-."), ("#999933", "D", ":"), ("#882255", "v", "-"),
          ("#44aa99", "P", "--"), ("#cc6677", "X", "-."), ("#88ccee", "*", ":"), ("#117733", "<", "-"))


Lines = dict[str, list[tuple[float, list[float]]]]
_FIXED = ("members", "epochs", "bits", "quantizer", "temperature", "criterion", "granularity", "precision")
_SAME_COST = 0.005  # of O's FLOPs: pruning meets one budget to within a filter


def _lines(family: Sequence[Row]) -> Lines:
    """Of the readings that ``family`` has with several weights."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in family:
        share = row["w_ce"] / (row["w_ce"] + row["w_diff"])
        found.setdefault(row["reading"], {}).setdefault(share, []).extend(100 * a for a in row["accuracy"])
    return {reading: sorted(values.items()) for reading, values in sorted(found.items()) if len(values) > 1}


def sweep_family(rows: Sequence[Row]) -> list[Row]:
    """The ensembles that are compared in one picture: they differ in reading, weights and seeds, and in nothing else
    that a row states: members, epochs, bits, quantizer, temperature, criterion, granularity, precision and, to half a point,
    cost. Of several such families the one whose lines have the most points, then the most accuracies; empty where no
    reading was run with several weights.
    """
    alike: dict[str, list[Row]] = {}
    for row in sorted((row for row in rows if row.get("accuracy")), key=lambda row: row["flops_ratio"]):
        if row.get("kind") == "ensemble" and row.get("w_ce") is not None:
            alike.setdefault(repr([row.get(key) for key in _FIXED]), []).append(row)
    families: list[list[Row]] = []
    for _, group in sorted(alike.items()):
        start = None
        for row in group:  # ascending in cost
            if start is None or row["flops_ratio"] - start > _SAME_COST:
                families.append([])
                start = row["flops_ratio"]
            families[-1].append(row)

    def points(family: Sequence[Row]) -> tuple[int, int]:
        every = [values for line in _lines(family).values() for _, values in line]
        return len(every), sum(map(len, every))

    best = max(families, key=points, default=[])
    return best if points(best) > (0, 0) else []


def swept(rows: Sequence[Row]) -> Lines:
    """By reading of the objective, (share of the cross entropy, accuracies in percent), ascending; at least two each,
    and all of them from one :func:`sweep_family`. The share is w_ce / (w_ce + w_diff): the paper's lambda if it weighs
    the cross entropy.
    """
    return _lines(sweep_family(rows))


def lambda_sweep(rows: Sequence[Row]) -> Figure:
    """rows: of a results JSON. Bars are one standard deviation over seeds; O's accuracy is the dashed line. Readings stand
    in the order of their best mean."""
    lines = dict(sorted(swept(rows).items(), key=lambda line: -max(mean(v) for _, v in line[1])))
    originals = [100 * a for row in rows if row.get("kind") == "member" and row.get("members") == ["o"] for a in row.get("accuracy", [])]
    with drawing():
        figure = new_figure(6.0, 3.7)
        axes = figure.subplots()
        for (reading, values), (colour, marker, line) in zip(lines.items(), _LINES, strict=False):
            spread = [stdev(v) if len(v) > 1 else 0.0 for _, v in values]
            axes.errorbar([x for x, _ in values], [mean(v) for _, v in values], yerr=spread if any(spread) else None, color=colour,
                          marker=marker, markersize=6, markeredgecolor="white", markeredgewidth=0.6, linestyle=line, capsize=2.5,
                          elinewidth=1, label=reading)
        if originals:
            axes.axhline(mean(originals), color=member_style("o").colour, linestyle=(0, (4, 3)), linewidth=1, label="O")
        axes.set(xlabel="share of the cross entropy", ylabel="ensemble accuracy, %")
        axes.margins(x=0.04, y=0.12)
        open_grid(axes)
        handles, names = axes.get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: names[i] == "O")
        figure.legend([handles[i] for i in order], [names[i] for i in order], loc="outside right upper", title="reading")
        for x, side, text in ((0, "left", "learn from the difference"), (1, "right", "learn from the labels")):
            axes.text(x, -0.125, text, transform=axes.transAxes, fontsize=8, color=MUTED, va="top", ha=side)
    return figure
