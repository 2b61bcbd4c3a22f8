"""Which images two members get wrong, and what becomes of these errors in the ensemble (the HCE paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from .style import FAINT, INK, MEMBERS, MUTED, drawing, member_style, new_figure


def lens_area(a: float, b: float, distance: float) -> float:
    """Area that circles of radii ``a`` and ``b`` share when their centres are ``distance`` apart."""
    if distance >= a + b:
        return 0.0
    if distance <= abs(a - b):
        return math.pi * min(a, b) ** 2
    alpha = math.acos((distance**2 + a**2 - b**2) / (2 * distance * a))
    beta = math.acos((distance**2 + b**2 - a**2) / (2 * distance * b))
    return a * a * (alpha - math.sin(2 * alpha) / 2) + b * b * (beta - math.sin(2 * beta) / 2)


def distance_for(a: float, b: float, area: float) -> float:
    """The distance of centres at which the circles share ``area``, by bisection: the area falls as they part."""
    low, high = abs(a - b), a + b
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lens_area(a, b, middle) > area else (low, middle)
    return (low + high) / 2


def _venn(axes: Axes, first: str, second: str, errors: Mapping[str, int]) -> None:
    """Two circles whose areas, and the area that they share, are in proportion to the counts."""
    totals = (errors["only_first"] + errors["both"], errors["only_second"] + errors["both"])
    a, b = (math.sqrt(n / math.pi) for n in totals)
    gap = distance_for(a, b, errors["both"])
    left, right = -gap / 2 + (a - b) / 2, gap / 2 + (a - b) / 2  # the pair is centred, not its centres
    for x, radius, name in ((left, a, first), (right, b, second)):
        colour = member_style(name).colour
        axes.add_patch(Circle((x, 0), radius, facecolor=colour, alpha=0.28, edgecolor="none"))
        axes.add_patch(Circle((x, 0), radius, facecolor="none", edgecolor=colour, linewidth=1.6))
    reach = max(a, b, 0.5)
    crescents = {"only_first": (left - a, right - b), "both": (right - b, left + a), "only_second": (left + a, right + b)}
    for key, (start, end) in crescents.items():
        if errors[key]:
            inside = end - start > 0.3 * reach or key == "both"  # else the number would stand on the circles
            x = (start + end) / 2 if inside else start - 0.05 * reach if key == "only_first" else end + 0.05 * reach
            align = "center" if inside else "right" if key == "only_first" else "left"
            axes.text(x, 0, f"{errors[key]:,}", ha=align, va="center", fontsize=11)
    for x, side, name, total in ((left - a, "left", first, totals[0]), (right + b, "right", second, totals[1])):
        axes.text(x, reach * 1.12, f"{member_style(name).name}\n{total:,} errors", ha=side, va="bottom",
                  color=member_style(name).colour)
    margin = 0.45 * reach
    axes.set(xlim=(left - a - margin, right + b + margin), ylim=(-1.08 * reach, 1.62 * reach), aspect="equal")
    axes.set_axis_off()


def _fates(axes: Axes, first: str, second: str, pair: Mapping[str, Any]) -> None:
    """A bar per kind of error: what the ensemble corrects, and what stays wrong."""
    errors, corrected = pair["errors"], pair["corrected"]
    short = [name.upper() if name in MEMBERS else name for name in (first, second)]
    kinds = {"only_first": f"in {short[0]} only", "both": "in both", "only_second": f"in {short[1]} only"}
    widest = max(*(errors[kind] for kind in kinds), pair["introduced"], 1)
    style = member_style("ensemble")
    for row, (kind, name) in enumerate(kinds.items()):
        right, wrong = corrected[kind], errors[kind] - corrected[kind]
        axes.barh(row, right, color=style.colour, height=0.6)
        axes.barh(row, wrong, left=right, color=FAINT, height=0.6)
        share = f"{right:,} of {errors[kind]:,} corrected" + (f" ({100 * right / errors[kind]:.0f} %)" if errors[kind] else "")
        axes.text(errors[kind] + 0.02 * widest, row, share, va="center")
        axes.text(-0.02 * widest, row, name, ha="right", va="center")
    if pair["introduced"]:  # only other voters can do that: two that are right outvote nothing
        axes.barh(3, pair["introduced"], color=FAINT, height=0.6)
        axes.text(pair["introduced"] + 0.02 * widest, 3, f"{pair['introduced']:,} new errors", va="center")
        axes.text(-0.02 * widest, 3, "in neither", ha="right", va="center")
    axes.text(0, -0.75, "what the ensemble makes of the errors", va="center", color=MUTED)
    axes.set(xlim=(-0.36 * widest, 1.8 * widest), ylim=(3.6 if pair["introduced"] else 2.7, -0.95))
    axes.set_axis_off()


def error_overlap(first: str, second: str, pair: Mapping[str, Any], ensemble_errors: int) -> Figure:
    """pair: of ``evaluate.pair_metrics`` with an ensemble.  ensemble_errors: images that the ensemble gets wrong."""
    with drawing():
        figure = new_figure(7.8, 3.1)
        venn, fates = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _venn(venn, first, second, pair["errors"])
        _fates(fates, first, second, pair)
        overlap = "no errors" if pair["error_overlap"] is None else f"{100 * pair['error_overlap']:.1f} % of {pair['errors']['either']:,} shared"
        figure.suptitle(f"Errors of the members: {overlap}; the ensemble makes {ensemble_errors:,}", x=0.01, ha="left",
                        fontsize=10, color=INK)
    return figure
