"""Decision regions: which class each network answers on one plane through a test image (the HCE paper's Fig. 2 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .plane import Plane
from .style import CLASS_COLOURS, MUTED, OTHER_CLASSES, drawing, new_figure

LABEL_SIZE = 8.0  # points
LABELLED = 0.8  # share of a class's written name that must lie on its own region
_PANEL = 133.0  # points that a panel is wide and high
_POINT: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 1.4}


def class_colours(predictions: Mapping[str, np.ndarray], classes: int) -> dict[int, str]:
    """Colour of every class that occurs: its own where there are few classes, else the nine that cover most.

    With at most ten classes a class has the same colour in every picture; the tenth, and what is not among the nine, is
    pale grey.
    """
    if classes <= len(CLASS_COLOURS) + 1:
        return {k: (*CLASS_COLOURS, OTHER_CLASSES)[k] for k in range(classes)}
    area = np.sum([np.bincount(p, minlength=classes) for p in predictions.values()], axis=0)
    common = [int(k) for k in np.argsort(-area, kind="stable") if area[k]]
    return {k: CLASS_COLOURS[i] if i < len(CLASS_COLOURS) else OTHER_CLASSES for i, k in enumerate(common)}


def _place_for(text: str, region: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the middle of ``text`` where it covers the least beside its region, None where it does not fit.

    Of equally good places the one nearest to the region's centre of mass is taken. The marker in the middle of the panel
    belongs to no region.
    """
    side = len(region)
    width = min(side, max(1, round(side * (0.62 * LABEL_SIZE * len(text) + 6) / _PANEL)))
    height = max(1, round(side * (1.5 * LABEL_SIZE) / _PANEL))
    rows, columns = np.nonzero(region)
    distance = np.hypot(*(np.mgrid[:side, :side] - side // 2))
    free = region & (distance > side * 7 / _PANEL)
    sums = np.pad(free.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    covered = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    if covered.max() < LABELLED * width * height:
        return None
    best = np.argwhere(covered == covered.max()) + np.array([height // 2, width // 2])
    row, column = best[np.argmin(((best - (rows.mean(), columns.mean())) ** 2).sum(axis=1))]
    return int(row), int(column)


def _panel(
    axes: Axes, title: str, predicted: np.ndarray, plane: Plane, colours: Mapping[int, str], names: Sequence[str]
) -> None:
    side, radius = plane.side, plane.radius
    grid = predicted.reshape(side, side)
    half = radius / (side - 1)  # pixels are centred on their points
    extent = (-radius - half, radius + half, -radius - half, radius + half)
    pixels = np.array([to_rgb(colours[int(k)]) for k in grid.ravel()]).reshape(side, side, 3)
    axes.imshow(pixels, extent=extent, interpolation="nearest")
    at = np.linspace(-radius, radius, side)
    for label in np.unique(grid):
        region = grid == label
        if not region.all():
            axes.contour(at, at[::-1], region.astype(float), [0.5], colors="white", linewidths=0.7)
        place = _place_for(names[label], region)
        if place is not None:
            text = axes.text(at[place[1]], at[::-1][place[0]], names[label], ha="center", va="center", fontsize=LABEL_SIZE)
            text.set_path_effects([effects.withStroke(linewidth=2.4, foreground="white")])
    axes.plot(0, 0, zorder=4, **_POINT)
    axes.set_title(title, loc="center", fontsize=9.5, pad=4)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)


def decision_regions(
    rows: Mapping[str, Sequence[str]], predictions: Mapping[str, np.ndarray], plane: Plane, class_names: Sequence[str],
    label: int,
) -> Figure:
    """One panel per network, all on the same plane and at the same scale.

    rows: title of each row, and the keys of ``predictions`` that stand in it.  predictions: class int64
    ``(side * side,)`` per network, its key being the panel's title.  label: class of the image in the middle.
    """
    columns = max(map(len, rows.values()))
    colours = class_colours(predictions, len(class_names))
    present = sorted({int(k) for p in predictions.values() for k in np.unique(p)})
    entries = [f"the image ({class_names[label]})", *(class_names[k] for k in present)]
    width = 1.95 * columns + 0.4
    legend_columns = _legend_columns(entries, 72 * width)
    with drawing():
        figure = new_figure(width, 2.12 * len(rows) + 0.45 + 0.18 * -(-len(entries) // legend_columns))
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for i, (title, keys) in enumerate(rows.items()):
            for j in range(columns):
                if j < len(keys):
                    _panel(axes[i, j], keys[j], predictions[keys[j]], plane, colours, class_names)
                else:
                    axes[i, j].set_axis_off()
            axes[i, 0].set_ylabel(title)
        point = Line2D([], [], linestyle="", label=entries[0], **_POINT)
        patches = [Patch(facecolor=colours[k], edgecolor=MUTED, linewidth=0.5, label=class_names[k]) for k in present]
        figure.legend(handles=[point, *patches], loc="outside lower center", ncols=legend_columns, handlelength=1.2, columnspacing=1.4)
    return figure


def _legend_columns(entries: Sequence[str], width: float) -> int:
    """Columns of a legend as few rows high as ``width`` points allow, its rows about equally long."""
    widest = max(4.9 * len(text) + 30 for text in entries)  # patch, gaps, and letters of 8.5 points
    rows = -(-len(entries) // max(1, int(width / widest)))
    return -(-len(entries) // rows)
