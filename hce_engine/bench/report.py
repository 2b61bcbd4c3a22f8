"""The rows of a comparison as plain values, and what they say about each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from .checks import Check
from .conditions import ThreadUse
from .statistics import NOISY, UNCLEAR, compare, summarize
from .work import ENSEMBLE

OURS = "hce"
# What a row was measured with, by the keys that it has of these: rows are compared where all of them are equal.
SETTING = ("batch", "threads", "path")

Setting = Mapping[str, int | str]


def new_row(engine: str, member: str, setting: Setting, runs: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """A row of which nothing is known yet: not checked, not timed. runs: what exactly the engine does.

    Other keys depend on the device: ``isa_held`` is False where a run is held to an instruction set and the peer has no switch for it.
    """
    return {
        "engine": engine, "member": member, **setting, "runs": runs, "versions": dict(versions), "skipped": None, "verified": False,
        "check": None, "build_seconds": None, "images_per_second": None, "seconds": None, "noisy": None, "against": None, "rounds": None,
    }


def add_check(row: dict[str, Any], checks: Sequence[Check], use: ThreadUse | None) -> None:
    """A row is verified if all its parts compute what they should, and, where threads are counted, on no more than they may use."""
    within = use is None or use.within(row["threads"])
    row["check"] = "; ".join([*(check.text for check in checks), *([] if within or use is None else [f"used {use.threads} threads"])])
    row["verified"] = within and all(check.passed for check in checks)
    if use is not None:
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


def setting_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row, or a condition, belongs to; hashable."""
    return tuple(row.get(key) for key in SETTING)


def add_verdicts(rows: Sequence[dict[str, Any]], crowded: Set[tuple[Any, ...]]) -> None:
    """``against`` of every timed row of a peer: our row of the same member and setting beside it.

    crowded: settings whose measurement others disturbed; their verdicts are UNCLEAR.
    """
    ours = {_key(row): row for row in rows if row["engine"] == OURS and row["rounds"]}
    for row in rows:
        if row["engine"] != OURS and row["rounds"] and _key(row) in ours:
            row["against"] = _against(ours[_key(row)], row, crowded)


def claims(rows: Sequence[dict[str, Any]], crowded: Set[tuple[Any, ...]], precisions: Mapping[str, str]) -> list[dict[str, Any]]:
    """The compressed ensemble on our engine against the uncompressed original on the fastest peer of each precision, per setting.

    precisions: of peers, by name.
    """
    found = []
    for ours in rows:
        if ours["engine"] != OURS or ours["member"] != ENSEMBLE or not ours["rounds"]:
            continue
        rivals = [row for row in rows if row["engine"] in precisions and row["member"] == "o" and row["rounds"] and row.get("isa_held", True)
                  and setting_of(row) == setting_of(ours)]
        for precision in dict.fromkeys(precisions.values()):
            equal = [row for row in rivals if precisions[row["engine"]] == precision]
            if equal:
                best = max(equal, key=lambda row: float(row["images_per_second"]))
                found.append({
                    "claim": "hce ensemble against o", "peer": best["engine"], "precision": precision,
                    **{key: ours[key] for key in SETTING if key in ours}, **_against(ours, best, crowded),
                })
    return found


def _against(ours: Mapping[str, Any], theirs: Mapping[str, Any], crowded: Set[tuple[Any, ...]]) -> dict[str, Any]:
    """ratio: how many times as fast ours is."""
    comparison = compare(ours["rounds"], theirs["rounds"])
    interval = None if comparison.interval is None else list(comparison.interval)
    verdict = UNCLEAR if setting_of(ours) in crowded else comparison.verdict
    return {"ratio": comparison.ratio, "interval": interval, "verdict": verdict}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["member"], *setting_of(row))
