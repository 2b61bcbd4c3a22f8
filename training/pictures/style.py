"""How every picture looks: one colour, marker and name per member, colour-blind safe, the same bytes for the same data.

Members have colours of Okabe and Ito (2008), classes those of Paul Tol's "muted" scheme (2021); both stay apart under
the common colour-vision deficiencies. Figures are made without pyplot: no global state, no window system.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hce_engine.errors import UnsupportedError

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:
    raise UnsupportedError("pictures", expected="matplotlib", got="no such package",
                           fix='pip install "hce-engine[report]"') from None


@dataclass(frozen=True)
class MemberStyle:
    colour: str
    marker: str
    line: str
    name: str


MEMBERS = {
    "o": MemberStyle("#4d4d4d", "D", "-", "O, original"),
    "q": MemberStyle("#0072b2", "s", "-", "Q, quantized"),
    "s": MemberStyle("#d55e00", "^", "-", "S, pruned"),
    "ensemble": MemberStyle("#009e73", "o", "-", "ensemble"),
}
INK, MUTED, FAINT = "#222222", "#666666", "#d0d0d0"
CLASS_COLOURS = ("#88ccee", "#cc6677", "#ddcc77", "#117733", "#aa4499", "#44aa99", "#332288", "#999933", "#882255")
OTHER_CLASSES = "#dddddd"

_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "lines.linewidth": 1.6, "legend.frameon": False, "savefig.facecolor": "white",
    "svg.hashsalt": "hce", "svg.fonttype": "path",
}


def member_style(name: str) -> MemberStyle:
    """The style of a member; one that is not o, q, s or ensemble is drawn like a remark."""
    return MEMBERS.get(name, MemberStyle(MUTED, "v", "-", name))


@contextmanager
def drawing() -> Iterator[None]:
    """The settings of this project, and no others, while a figure is made or written."""
    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in _SETTINGS.items():
            mpl.rcParams[key] = value  # type: ignore[index]
        yield


def new_figure(width: float, height: float) -> Figure:
    """width, height: inches."""
    return Figure(figsize=(width, height), layout="constrained")


def open_grid(axes: Axes, axis: str = "y") -> None:
    """Faint lines to read values by."""
    axes.grid(True, axis=axis)  # type: ignore[arg-type]
    axes.tick_params(length=3)


def encode(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """The file of a figure, ``svg`` or ``png``; without dates, so that equal figures are equal bytes."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """What an ``<img>`` holds instead of the name of a file."""
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
