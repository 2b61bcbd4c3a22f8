"""How a comparison is asked for and shown, on whatever device: peers by name, one table per setting, then what a reader must know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .output import show_table

if TYPE_CHECKING:
    from ..graph import Graph

_PRECISIONS = {"fp32": "float32", "tf32": "TF32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Wording:
    """What differs between devices. column: head of the column behind the spread.  cell: its text for a row.  setting: that of a row or
    condition, in words.  remarks: on the rows of a setting.  note: what the columns mean."""

    column: str
    cell: Callable[[Mapping[str, Any]], str]
    setting: Callable[[Mapping[str, Any]], str]
    remarks: Callable[[Sequence[Mapping[str, Any]]], list[str]]
    note: str


def chosen_names(names: str, known: Iterable[str]) -> list[str]:
    """``all``, ``none`` or some of ``known``, each once; raises InputError for others."""
    every = list(known)
    wanted = every if names == "all" else [] if names == "none" else list(dict.fromkeys(n.strip() for n in names.split(",")))
    wrong = [name for name in wanted if name not in every]
    if wrong:
        raise InputError("--peers", expected="all, none, or some of " + ", ".join(every), got=", ".join(wrong), fix="name existing peers")
    return wanted


def require_members(graph: Graph, members: Sequence[str] | None) -> None:
    known = [m.name for m in graph.members]
    wrong = [name for name in members or () if name not in known]
    if wrong:
        raise InputError("--members", expected="members of " + ", ".join(known), got=", ".join(wrong), fix="name existing members")


def show_report(model: Path, report: Mapping[str, Any], form: str, wording: Wording) -> None:
    """One table per setting, then what they ran beside, and what did not run."""
    from ..bench.report import setting_of

    columns = ("member", "engine", "images/s", "ms/batch", "spread", wording.column, "ratio", "95 % interval", "HCE is")
    for condition in report["conditions"]:
        rows = [row for row in report["rows"] if setting_of(row) == setting_of(condition)]
        members = list(dict.fromkeys(row["member"] for row in rows))
        title = f"{model}: {wording.setting(condition)}; {report['machine']}"
        cells = [_cells(row, wording) for member in members for row in rows if row["member"] == member]
        if form == "markdown":
            click.echo(f"{title}\n\n{markdown(columns, cells)}\n")
        else:
            show_table(title, columns, cells)
        for text in [*_skipped(rows), *wording.remarks(rows), *_disturbances(rows, condition)]:
            click.echo(text)
    for claim in report["claims"]:
        click.echo(f"{wording.setting(claim)}: the ensemble on HCE is {claim['ratio']:.2f}x the uncompressed original on {claim['peer']}, "
                   f"the fastest {_PRECISIONS[claim['precision']]} peer ({_interval(claim)}): {claim['verdict']}")
    click.echo(wording.note)
    click.echo(f"{report['sample']}.")


def _cells(row: Mapping[str, Any], wording: Wording) -> tuple[str, ...]:
    if row["rounds"] is None:
        return (row["member"], row["engine"], *[""] * 6, "skipped" if row["skipped"] else "NOT VERIFIED")
    seconds, against = row["seconds"], row["against"]
    figures = (figure(row["images_per_second"]), figure(1e3 * seconds["median"]), f"{100 * seconds['spread']:.1f} %", wording.cell(row))
    verdict = (f"{against['ratio']:.2f}x", _interval(against), against["verdict"]) if against else ("", "", "")
    return (row["member"], row["engine"], *figures, *verdict)


def figure(value: float) -> str:
    """Three digits at least: 0.0421, 4.21, 421, 42,100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _interval(values: Mapping[str, Any]) -> str:
    return "too few rounds" if values["interval"] is None else "{:.2f} to {:.2f}".format(*values["interval"])


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The same table for an issue or a page."""
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _skipped(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows did not run, or were not timed."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["rounds"] is None:
            reason = f"skipped: {row['skipped']}" if row["skipped"] else f"not timed: {row['check']}"
            reasons.setdefault(reason, []).append(f"{row['engine']} {row['member']}")
    return [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]


def _disturbances(rows: Sequence[Mapping[str, Any]], condition: Mapping[str, Any]) -> list[str]:
    remarks = []
    noisy = [f"{row['engine']} {row['member']}" for row in rows if row["noisy"]]
    if noisy:
        remarks.append(f"noisy (quartiles over 5 % apart): {', '.join(noisy)}")
    if condition["crowded"] or condition["other_processors"] > 0.1 or condition["steal"] > 0.01 or condition["restless_turns"]:
        remarks.append(f"not alone: other programs used {condition['other_processors']:.2f} processors, {100 * condition['steal']:.1f} % of the "
                       f"machine's time was stolen, {condition['restless_turns']} turns began before the process was quiet; load {condition['load'][0]}")
    if condition["crowded"]:
        remarks.append("CROWDED: others used more than these threads leave free, so that no verdict is given; measure on a quiet machine")
    return remarks
