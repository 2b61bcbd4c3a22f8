"""The rows of a comparison as plain values, and what they say about each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from .checks import Check
from .conditions import ThreadUse
from .statistics import NOISY, UNCLEAR, compare, summarize
from .work import ENSEMBLE

OURS = "hce"


def new_row(engine: str, member: str, batch: int, threads: int, runs: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """A row of which nothing is known yet: not checked, not timed. runs: what exactly the engine does.

    ``isa_held`` becomes False where a run is held to an instruction set and the peer has no switch for it.
    """
    return {
        "engine": engine, "member": member, "batch": batch, "threads": threads, "runs": runs, "versions": dict(versions),
        "isa_held": True, "skipped": None, "verified": False, "check": None, "build_seconds": None, "threads_used": None, "processors_used": None,
        "images_per_second": None, "seconds": None, "noisy": None, "against": None, "rounds": None,
    }


def add_check(row: dict[str, Any], checks: Sequence[Check], use: ThreadUse) -> None:
    """A row is verified if all its parts compute what they should on no more threads than they may use."""
    within = use.within(row["threads"])
    row["check"] = "; ".join([*(check.text for check in checks), *([] if within else [f"used {use.threads} threads"])])
    row["verified"] = within and all(check.passed for check in checks)
    row["threads_used"], row["processors_used"] = use.threads, round(use.processors, 2)


def add_times(row: dict[str, Any], rounds: Sequence[Sequence[float]]) -> None:
    summary = summarize(rounds)
    row["images_per_second"] = row["batch"] / summary.median
    row["seconds"] = {
        "median": summary.median, "quartiles": list(summary.quartiles), "spread": summary.spread, "minimum": summary.minimum,
        "samples": summary.samples,
    }
    row["noisy"] = summary.spread > NOISY
    row["rounds"] = [[float(f"{value:.4g}") for value in series] for series in rounds]


def add_verdicts(rows: Sequence[dict[str, Any]], crowded: Set[tuple[int, int]]) -> None:
    """``against`` of every timed row of a peer: our row of the same member, batch size and thread count beside it.

    crowded: batch sizes and thread counts whose measurement others disturbed; their verdicts are UNCLEAR.
    """
    ours = {_key(row): row for row in rows if row["engine"] == OURS and row["rounds"]}
    for row in rows:
        if row["engine"] != OURS and row["rounds"] and _key(row) in ours:
            row["against"] = _against(ours[_key(row)], row, crowded)


def claims(rows: Sequence[dict[str, Any]], crowded: Set[tuple[int, int]]) -> list[dict[str, Any]]:
    """The compressed ensemble on our engine against the uncompressed original on the fastest float32 peer, per setting."""
    found = []
    for ours in rows:
        if ours["engine"] != OURS or ours["member"] != ENSEMBLE or not ours["rounds"]:
            continue
        rivals = [row for row in rows if row["engine"] != OURS and row["member"] == "o" and row["rounds"] and row["isa_held"]
                  and _setting(row) == _setting(ours)]
        if rivals:
            best = max(rivals, key=lambda row: float(row["images_per_second"]))
            found.append({
                "claim": "hce ensemble against o", "peer": best["engine"], "batch": ours["batch"], "threads": ours["threads"],
                **_against(ours, best, crowded),
            })
    return found


def _against(ours: Mapping[str, Any], theirs: Mapping[str, Any], crowded: Set[tuple[int, int]]) -> dict[str, Any]:
    """ratio: how many times as fast ours is."""
    comparison = compare(ours["rounds"], theirs["rounds"])
    interval = None if comparison.interval is None else list(comparison.interval)
    verdict = UNCLEAR if _setting(ours) in crowded else comparison.verdict
    return {"ratio": comparison.ratio, "interval": interval, "verdict": verdict}


def _setting(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["batch"], row["threads"]


def _key(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return (row["member"], *_setting(row))
