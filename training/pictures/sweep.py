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


def swept(rows: Sequence[Row]) -> dict[str, list[tuple[float, list[float]]]]:
    """By reading of the objective, (share of the cross entropy, accuracies in percent), ascending; at least two each.

    The share is w_ce / (w_ce + w_diff): the paper's lambda if it weighs the cross entropy. Rows of one reading count
    together if they differ in nothing else that a row states: kind, members, epochs, bits, quantizer, temperature,
    criterion, granularity and, to half a point, cost. Of several such families the largest is taken.
    """
    families: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        if row.get("kind") != "ensemble" or not row.get("accuracy") or row.get("w_ce") is None:
            continue
        fixed = ("members", "epochs", "bits", "quantizer", "temperature", "criterion", "granularity", "precision")
        family = repr([row.get(key) for key in fixed]) + f"{200 * row['flops_ratio']:.0f}"
        share = row["w_ce"] / (row["w_ce"] + row["w_diff"])
        families.setdefault((row["reading"], family), {}).setdefault(share, []).extend(100 * a for a in row["accuracy"])
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for (reading, _), values in sorted(families.items(), key=lambda item: (item[0][0], -len(item[1]))):
        if len(values) > 1:
            found.setdefault(reading, sorted(values.items()))
    return found


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
