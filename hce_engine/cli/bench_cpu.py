"""``hce bench`` on the CPU: what is asked of the comparison, and how its report is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_tables import Wording, chosen_names, require_members, show_report
from .options import keep_inputs
from .output import say, write_json

if TYPE_CHECKING:
    from ..bench.peers import Peer

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
    require_members(loaded.graph, members)
    sample = from_data(data, loaded.input) if data else random_images(loaded.input)
    report = measure(loaded, peers, sample, batches=batches, threads=threads or (available_threads(),), members=members, rounds=rounds,
                     seconds=seconds, isa=asked, limits=limits, say=say)
    if str(json_path) != "-":
        _show(model, report, form)
    write_json(json_path, "bench", {"model": model.name, "digest": artifact.digest(model), **report})
    return int(any(row["check"] and not row["verified"] for row in report["rows"]))


def named_peers(names: str) -> list[Peer]:
    from ..bench.peers import PEERS

    return [PEERS[name]() for name in chosen_names(names, PEERS)]


def _show(model: Path, report: dict[str, Any], form: str) -> None:
    def setting(row: Mapping[str, Any]) -> str:
        return f"batch {row['batch']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"

    def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        free = list(dict.fromkeys(row["engine"] for row in rows if not row["isa_held"]))
        return [f"not held to {report['isa']}, for lack of a switch: {', '.join(free)}"] if free else []

    show_report(model, report, form, Wording("threads", lambda row: str(row["threads_used"]), setting, remarks, _NOTE))
