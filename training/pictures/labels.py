"""Names beside points, placed so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .style import MUTED

_ANGLES = (0, 180, 45, -45, 135, -135, 90, -90)
_RADII = (7.0, 13.0, 20.0, 29.0, 40.0, 54.0, 70.0)  # points
_MARKER = 4.5  # points from the middle of a marker to where text may begin
_FAR = 16.0  # points from which a label needs a line to its point

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """Text beside the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    colour: str
    weight: str = "normal"


def _overlap(a: Bbox, b: Bbox) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


def place(figure: Figure, axes: Axes, labels: Sequence[Label], keep_clear: Sequence[Rectangle], size: float = 8) -> None:
    """Writes ``labels`` in their order of importance.

    keep_clear: what must stay visible, as (x0, y0, x1, y1) in data coordinates: a point, an error bar, a line.
    Greedy: each label takes the nearest place in eight directions that covers nothing, or the one that covers least. A
    label that had to go far gets a thin line to its point. The limits of the axes must be final.
    """
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = axes.get_window_extent()
    taken = []
    for x0, y0, x1, y1 in keep_clear:
        (left, low), (right, high) = axes.transData.transform([(x0, y0), (x1, y1)])
        taken.append(Bbox.from_extents(left, low, right, high).padded(_MARKER * unit))
    for label in labels:
        text = axes.annotate(label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=size,
                             color=label.colour, fontweight=label.weight, ha="center", va="center")
        text.set_in_layout(False)
        own = text.get_window_extent()
        best, reach, least = (0.0, 0.0), 0.0, math.inf
        for radius in _RADII:
            for angle in _ANGLES:
                dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                # From the point to the text's nearest edge, not to its middle.
                shift = (dx * (radius + own.width / unit / 2), dy * (radius + own.height / unit / 2))
                box = own.translated(shift[0] * unit, shift[1] * unit)
                outside = own.width * own.height - _overlap(box, frame)
                cost = sum(_overlap(box, other) for other in taken) + 4 * outside + 0.3 * unit * radius
                if cost < least:
                    best, reach, least = shift, radius, cost
        taken.append(own.translated(best[0] * unit, best[1] * unit))
        text.set_position(best)
        if reach > _FAR:
            axes.annotate("", (label.x, label.y), xytext=best, textcoords="offset points", zorder=1,
                          arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": own.height / unit / 2, "shrinkB": 4})
