"""``hce bench`` on the CPU: what is asked of the comparison, and how its report is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import keep_inputs
from .output import say, show_table, write_json

if TYPE_CHECKING:
    from ..bench.peers import Peer

_COLUMNS = ("member", "engine", "images/s", "ms/batch", "spread", "threads", "ratio", "95 % interval", "HCE is")
_NOTE = (
    "images/s: median over all rounds. ratio: how many times as fast HCE is, median over rounds; SAME within 2 %. Peers get normalised "
    "float32 images, HCE converts pixels itself."
)


def compare(
    model: Path, peer_names: str, batches: Sequence[int], threads: Sequence[int] | None, data: Path | None, rounds: int, seconds: float,
    isa: str | None, form: str, members: tuple[str, ...] | None, json_path: Path | None,
) -> int:
    """Runs the comparison; 1 if a row that should run computes something else or uses more threads than it may."""
    from .. import _native, artifact
    from ..bench.isa import hold_peers

    keep_inputs((json_path,), (model, *([data] if data else [])))
    asked = isa or os.environ.get(_native.ISA_VARIABLE)
    limits = hold_peers(_native.choose_isa(asked)) if asked else {}
    from ..bench.measure import measure
    from ..bench.sample import from_data, random_images
    from ..threads import available_threads

    peers = named_peers(peer_names)
    loaded = artifact.load(model)
    known = [m.name for m in loaded.graph.members]
    wrong = [name for name in members or () if name not in known]
    if wrong:
        raise InputError("--members", expected="members of " + ", ".join(known), got=", ".join(wrong), fix="name existing members")
    sample = from_data(data, loaded.input) if data else random_images(loaded.input)
    report = measure(loaded, peers, sample, batches=batches, threads=threads or (available_threads(),), members=members, rounds=rounds,
                     seconds=seconds, isa=asked, limits=limits, say=say)
    if str(json_path) != "-":
        show(model, report, form)
    write_json(json_path, "bench", {"model": model.name, "digest": artifact.digest(model), **report})
    return int(any(row["check"] and not row["verified"] for row in report["rows"]))


def named_peers(names: str) -> list[Peer]:
    from ..bench.peers import PEERS

    wanted = list(PEERS) if names == "all" else [] if names == "none" else list(dict.fromkeys(n.strip() for n in names.split(",")))
    wrong = [name for name in wanted if name not in PEERS]
    if wrong:
        raise InputError("--peers", expected="all, none, or some of " + ", ".join(PEERS), got=", ".join(wrong), fix="name existing peers")
    return [PEERS[name]() for name in wanted]


def show(model: Path, report: dict[str, Any], form: str) -> None:
    """One table per batch size and thread count, then what they ran beside, and what did not run."""
    for condition in report["conditions"]:
        batch, threads = condition["batch"], condition["threads"]
        rows = [row for row in report["rows"] if (row["batch"], row["threads"]) == (batch, threads)]
        members = list(dict.fromkeys(row["member"] for row in rows))
        title = f"{model}: batch {batch}, {threads} thread{'s' * (threads > 1)}; {report['machine']}"
        cells = [_cells(row) for member in members for row in rows if row["member"] == member]
        if form == "markdown":
            click.echo(f"{title}\n\n{markdown(cells)}\n")
        else:
            show_table(title, _COLUMNS, cells)
        for text in _remarks(rows, condition, report["isa"]):
            click.echo(text)
    for claim in report["claims"]:
        click.echo(f"batch {claim['batch']}, {claim['threads']} thread{'s' * (claim['threads'] > 1)}: the ensemble on HCE is {claim['ratio']:.2f}x the "
                   f"uncompressed original on {claim['peer']}, the fastest float32 peer ({_interval(claim)}): {claim['verdict']}")
    click.echo(_NOTE)
    click.echo(f"{report['sample']}.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["rounds"] is None:
        return (row["member"], row["engine"], *[""] * 6, "skipped" if row["skipped"] else "NOT VERIFIED")
    seconds, against = row["seconds"], row["against"]
    figures = (_figure(row["images_per_second"]), _figure(1e3 * seconds["median"]), f"{100 * seconds['spread']:.1f} %", str(row["threads_used"]))
    verdict = (f"{against['ratio']:.2f}x", _interval(against), against["verdict"]) if against else ("", "", "")
    return (row["member"], row["engine"], *figures, *verdict)


def _figure(value: float) -> str:
    """Three digits at least: 0.0421, 4.21, 421, 42,100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _interval(values: dict[str, Any]) -> str:
    return "too few rounds" if values["interval"] is None else "{:.2f} to {:.2f}".format(*values["interval"])


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """The same table for an issue or a page."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---|---|" + "---:|" * (len(_COLUMNS) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _remarks(rows: Sequence[dict[str, Any]], condition: dict[str, Any], isa: str) -> list[str]:
    """What a reader of the table must know: rows that did not run, failed checks, noise."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["rounds"] is None:
            reason = f"skipped: {row['skipped']}" if row["skipped"] else f"not timed: {row['check']}"
            reasons.setdefault(reason, []).append(f"{row['engine']} {row['member']}")
    remarks = [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]
    free = list(dict.fromkeys(row["engine"] for row in rows if not row["isa_held"]))
    if free:
        remarks.append(f"not held to {isa}, for lack of a switch: {', '.join(free)}")
    noisy = [f"{row['engine']} {row['member']}" for row in rows if row["noisy"]]
    if noisy:
        remarks.append(f"noisy (quartiles over 5 % apart): {', '.join(noisy)}")
    if condition["crowded"] or condition["other_processors"] > 0.1 or condition["steal"] > 0.01 or condition["restless_turns"]:
        remarks.append(f"not alone: other programs used {condition['other_processors']:.2f} processors, {100 * condition['steal']:.1f} % of the "
                       f"machine's time was stolen, {condition['restless_turns']} turns began before the process was quiet; load {condition['load'][0]}")
    if condition["crowded"]:
        remarks.append("CROWDED: others used more than these threads leave free, so that no verdict is given; measure on a quiet machine")
    return remarks
