"""What a page is made of: sections of sentences, tables and pictures. The template knows these and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read. texts: how many columns, from the left, are text; the others are numbers.  strong: rows
    that stand out.  Without column titles it is a list of facts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: Sequence[int] = ()
    texts: int = 1
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """name: of its file, without a suffix.  format: ``svg``, or ``png`` where a picture consists of many coloured points.
    alt: what a reader who cannot see it should know."""

    name: str
    figure: Figure
    caption: str
    alt: str
    format: str = "svg"
    kind: str = "picture"


@dataclass(frozen=True)
class Details:
    """Long things that open on request."""

    title: str
    text: str
    kind: str = "details"


Block = Text | Table | Picture | Details


@dataclass
class Section:
    """left_out: sentences on parts that could not be made, and why."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """Three significant digits with a unit: 41.2 M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {unit}"
    return f"{value:.0f}"
