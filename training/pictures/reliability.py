"""Reliability diagrams: how often a prediction of a given confidence is right, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from hce_engine.training.evaluate import expected_calibration_error, softmax

from .style import FAINT, INK, MUTED, drawing, member_style, new_figure, open_grid

BINS = 15
LEAST = 10  # images in a bin that is drawn: fewer say nothing about a share


def reliability(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean confidence, accuracy, share of the images) of every bin with at least :data:`LEAST` images.

    The bins are those of ``expected_calibration_error``, which counts all of them.
    """
    p = softmax(logits)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    full = count >= LEAST
    sums = (np.bincount(index, weights=w, minlength=BINS)[full] / count[full] for w in (confidence, right))
    return (*sums, count[full] / len(labels))  # type: ignore[return-value]


def reliability_diagrams(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, temperatures: Mapping[str, float]
) -> Figure:
    """One panel per member. Markers grow with the share of images in their bin; a member without a temperature is only
    drawn as it is. Logits must be finite."""
    with drawing():
        figure = new_figure(1.95 * len(logits) + 0.4, 2.9)
        axes = figure.subplots(1, len(logits), squeeze=False, sharey=True)[0]
        for panel, (name, z) in zip(axes, logits.items(), strict=True):
            style = member_style(name)
            panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
            kinds = [(1.0, "white", ":")] + ([(temperatures[name], style.colour, "-")] if name in temperatures else [])
            notes = []
            for temperature, face, line in kinds:
                confidence, accuracy, share = reliability(z / temperature, labels)
                panel.plot(confidence, accuracy, color=style.colour, linestyle=line, linewidth=1.1, zorder=2)
                panel.scatter(confidence, accuracy, s=10 + 70 * share, facecolor=face, edgecolor=style.colour, linewidth=1, zorder=3)
                notes.append(f"{100 * expected_calibration_error(softmax(z / temperature), labels):.1f} %")
            panel.set_title(style.name, pad=18)
            panel.text(0, 1.04, "ECE " + " → ".join(notes), transform=panel.transAxes, fontsize=8.5, color=MUTED)
            panel.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal", xlabel="confidence")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            panel.set(xticks=[0, 0.5, 1], yticks=[0, 0.25, 0.5, 0.75, 1])
            open_grid(panel, "both")
        axes[0].set_ylabel("accuracy")
        handles = [Line2D([], [], color=INK, linestyle=":", marker="o", markerfacecolor="white", markersize=5, label="as trained"),
                   Line2D([], [], color=INK, marker="o", markersize=5, label="scaled by the hold-out's temperature")]
        figure.legend(handles=handles if temperatures else handles[:1], loc="outside lower center", ncols=2)
    return figure
