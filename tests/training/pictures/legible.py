"""What every picture owes its reader, checked on the artists themselves: no text on text, none cut off."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text

from hce_engine.training.pictures.style import drawing, encode

SLACK = 1.0  # pixels by which boxes of glyphs may touch


def texts(figure: Figure) -> list[Text]:
    """Everything written in the figure that can be seen."""
    unseen = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in axis.get_major_ticks():
                if not axes.axison or not min(limits) <= tick.get_loc() <= max(limits):
                    unseen |= {id(tick.label1), id(tick.label2)}
    found = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    return [t for t in found if id(t) not in unseen]


def words(figure: Figure) -> set[str]:
    return {t.get_text() for t in texts(figure)}


def assert_legible(figure: Figure) -> None:
    with drawing():
        figure.draw_without_rendering()
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        inside = box.x0 >= -SLACK and box.y0 >= -SLACK and box.x1 <= width + SLACK and box.y1 <= height + SLACK
        assert inside, f"{text!r} leaves the figure: {box}"
    for (one, a), (two, b) in combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= SLACK or down <= SLACK, f"{one!r} and {two!r} overlap by {across:.0f} x {down:.0f} pixels"


def assert_repeatable(make: Callable[[], Figure], kind: str) -> None:
    first = encode(make(), kind, dpi=50)
    assert first == encode(make(), kind, dpi=50)
    assert first.startswith(b"<?xml" if kind == "svg" else b"\x89PNG")
