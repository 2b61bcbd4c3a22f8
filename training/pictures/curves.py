"""Training curves, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .style import FAINT, INK, MUTED, drawing, member_style, new_figure, open_grid

Record = Mapping[str, Any]


def member_of(phase: str) -> str:
    """``s-2`` and ``s`` are phases of s."""
    return phase.split("-")[0]


def by_member(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Lines of each member in the order in which they were written: o, q, s."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(member_of(record["phase"]), []).append(record)
    return {name: found[name] for name in sorted(found, key=lambda n: "oqs".find(n) % 4)}


def _accuracies(axes: Axes, name: str, lines: Sequence[Record]) -> None:
    style, epochs = member_style(name), range(1, len(lines) + 1)
    marker = "o" if len(lines) <= 20 else ""
    axes.plot(epochs, [r["train"] for r in lines], color=style.colour, linestyle=":")
    # What picks the epoch of S beside Q is the ensemble's accuracy; S's own then has a key of its own.
    beside = any(f"holdout_{name}" in r for r in lines)
    shown = {"holdout": member_style("ensemble" if beside else name).colour, f"holdout_{name}": style.colour}
    for key, colour in shown.items():
        points = [(e, r[key]) for e, r in zip(epochs, lines, strict=True) if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
    axes.set_title(member_style(name).name, pad=16)


def _losses(axes: Axes, name: str, lines: Sequence[Record]) -> None:
    epochs = range(1, len(lines) + 1)
    axes.plot(epochs, [r["loss"] for r in lines], color=member_style(name).colour)
    axes.set_xlabel("epoch")


def _phases(axes: Axes, lines: Sequence[Record], named: bool) -> None:
    """A line where a new phase starts, with its name if it is ``named``."""
    starts = [i for i in range(1, len(lines)) if lines[i]["phase"] != lines[i - 1]["phase"]]
    for i in starts:
        axes.axvline(i + 0.5, color=FAINT, linewidth=0.9, zorder=0)
    if not starts or not named:
        return
    for i, j in zip([0, *starts], [*starts, len(lines)], strict=True):
        if (j - i) / len(lines) > 0.09:  # wide enough for its name
            axes.text((i + j + 1) / 2, 1.01, lines[i]["phase"], transform=axes.get_xaxis_transform(), ha="center",
                      va="bottom", fontsize=7.5, color=MUTED)


def training_curves(records: Sequence[Record]) -> Figure:
    """Accuracy and loss per epoch, one column per member.

    records: with ``phase``, ``loss``, ``train`` and, where there was a hold-out, ``holdout`` (of S: of the ensemble) and
    ``holdout_s``, in the order in which they were written.
    """
    members = by_member(records)
    with drawing():
        figure = new_figure(max(4.8, 2.8 * len(members) + 0.4), 4.3)
        axes = figure.subplots(2, len(members), squeeze=False, sharex="col", height_ratios=(2, 1))
        for column, (name, lines) in enumerate(members.items()):
            _accuracies(axes[0, column], name, lines)
            _losses(axes[1, column], name, lines)
            for row in (0, 1):
                open_grid(axes[row, column])
                _phases(axes[row, column], lines, named=row == 0)
            axes[1, column].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("loss")
        kinds = [Line2D([], [], color=INK, linestyle=":", label="training batches"),
                 Line2D([], [], color=INK, label="hold-out"),
                 Line2D([], [], color=member_style("ensemble").colour, label="hold-out, Q and S together")]
        figure.legend(handles=kinds if "s" in members else kinds[:2], loc="outside lower center", ncols=3)
    return figure
