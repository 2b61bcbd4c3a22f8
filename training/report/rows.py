"""The section on results of many runs: results/*.json, as the matrix of experiments writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from hce_engine.errors import DataError
from hce_engine.training.pictures.sweep import lambda_sweep, sweep_family, swept
from hce_engine.training.pictures.tradeoff import accuracy_against_cost, anchors, is_sparse

from .blocks import Picture, Section, Table, number, percent

Values = Mapping[str, Any]
_STAR = "* counts only weights that are not zero, of which this engine makes no use: it computes them all."
_LOW_BIT = (
    " Published low-bit networks stand at bits / 23, a rule reconstructed from the totals of the HCE paper's tables. It "
    "leaves out that their first and last layers have 8 bits; Q here pays for its own (8 / 23 at 8 bits)."
)


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and one standard deviation where there are several seeds, in percent."""
    shown = f"{100 * mean(values):.{digits}f} %"
    return shown + (f" ± {100 * stdev(values):.{digits}f}" if len(values) > 1 else "")


def _average(row: Values, key: str) -> str:
    values = [v for v in row.get(key) or () if v is not None]
    return number(mean(values)) if values else "–"


def _cost(row: Values) -> str:
    """Share of the uncompressed network; with a star where it counts only weights that are not zero."""
    return percent(row["flops_ratio"], 1) + (" *" if is_sparse(row) else "")


def results_sections(results: Values, who: str) -> list[Section]:
    """Table and pictures. Raises DataError, naming ``who``, for a row without the keys that all rows have."""
    rows = results["rows"]
    try:
        done = [row for row in rows if row.get("accuracy")]
        done.sort(key=lambda row: -mean(row["accuracy"]))
        lines = [
            (row["row"], row.get("title") or row["kind"], _spread(row["accuracy"]), str(len(row["seeds"])), _cost(row),
             _average(row, "nll"), _average(row, "ece"), _average(row, "brier")) for row in done
        ]
        absent = [str(row["row"]) for row in rows if not row.get("accuracy")]
        arch = str(results["arch"])
        section = Section(f"Results: {arch} on {results['dataset']}", [*_pictures(done, arch), Table(
            ("row", "what", "accuracy", "seeds", "FLOPs", "NLL", "ECE", "Brier"), lines, texts=2,
            note="Mean and one standard deviation over seeds, best first. FLOPs: share of the uncompressed network, in "
            "the paper's convention." + (f" {_STAR}" if any(map(is_sparse, done)) else ""),
        )])
        if absent:
            section.left_out.append("Not run: " + ", ".join(absent) + ".")
        if not swept(done):
            section.left_out.append("The sweep over the weight of the cross entropy is left out: no two rows differ in it alone.")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"report on {who}", expected="rows with row, kind, members, seeds, accuracy and flops_ratio",
                        got=repr(error)[:120], fix="write the file again with the command that made it") from None
    return [section]


def _pictures(rows: Sequence[Values], arch: str) -> list[Picture]:
    if not rows:
        return []
    published = anchors(arch)
    sources = sorted({anchor.source for anchor in published})
    pictures = [Picture(
        "accuracy-cost", accuracy_against_cost(rows, arch),
        "Accuracy against cost. Where rows of one kind cost the same, the best is named and the others are pale; bars are one "
        "standard deviation over seeds."
        + (" Hollow and coloured: the cost counts only weights that are not zero." if any(map(is_sparse, rows)) else "")
        + (" Published figures: " + "; ".join(sources) + "." if sources else "")
        + (_LOW_BIT if any(anchor.kind == "low-bit" for anchor in published) else ""),
        f"Scatter plot of {len(rows)} rows by cost and accuracy.",
    )]
    lines = swept(rows)
    if lines:
        drawn = [row for row in sweep_family(rows) if row["reading"] in lines]
        others = sum(row["kind"] == "ensemble" for row in rows) - len(drawn)
        pictures.append(Picture(
            "lambda-sweep", lambda_sweep(rows),
            "Ensemble accuracy over the share of the cross entropy in S's loss, by reading of the objective (training/objectives.py); "
            f"bars are one standard deviation over seeds. The {len(drawn)} rows drawn differ in nothing else"
            + (", and the cost of all counts only weights that are not zero" if is_sparse(drawn[0]) else "") + "."
            + (f" Not drawn: {others} ensembles that do, or whose reading has a single weight." if others else ""),
            "Lines of " + ", ".join(lines) + ".",
        ))
    return pictures
