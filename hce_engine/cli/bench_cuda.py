"""``hce bench --device cuda``: what is asked of the comparison on a GPU, and how its report is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from .bench_tables import Wording, chosen_names, figure, require_members, show_report
from .options import keep_inputs
from .output import say, write_json

_PATHS = {"device": "images and logits on the GPU", "host": "from the host and back"}
_NOTE = (
    "images/s: median over all rounds; best ms: the least sample. ratio: how many times as fast HCE is, median over rounds; SAME within 2 %. "
    "On the GPU peers get normalised images in their own type, HCE converts pixels itself; from the host all get the same pixels."
)


def compare(
    model: Path, peer_names: str, batches: Sequence[int], data: Path | None, rounds: int, seconds: float, form: str,
    members: tuple[str, ...] | None, arithmetic: str, max_batch: int | None, json_path: Path | None,
) -> int:
    """Runs the comparison; 1 if a row that should run computes something else, or if one of ours does not run."""
    from .. import artifact
    from ..backends.cuda import gpu
    from ..bench.peers import CUDA_PEERS

    keep_inputs((json_path,), (model, *([data] if data else [])))
    names = chosen_names(peer_names, CUDA_PEERS)
    reason = gpu.missing()
    if reason is not None:
        raise UnsupportedError(
            "bench --device cuda", expected="a CUDA device that the kernels run on", got=reason,
            fix="measure on a machine that has one; --dry-run shows the plan and its bounds without",
        )
    from ..bench.cuda_device import Gpu  # needs Triton
    from ..bench.cuda_measure import measure
    from ..bench.report import OURS
    from ..bench.sample import from_data, random_images
    from ..plan.cuda import require_runnable

    device = Gpu(arithmetic, max_batch)
    loaded = artifact.load(model)
    require_members(loaded.graph, members)
    require_runnable(loaded.graph if members is None else loaded.graph.only(*dict.fromkeys(members)))
    sample = from_data(data, loaded.input) if data else random_images(loaded.input)
    peers = [CUDA_PEERS[name](device.runtime) for name in names]
    report = measure(loaded, peers, sample, device, batches=batches, members=members, rounds=rounds, seconds=seconds, say=say)
    if str(json_path) != "-":
        _show(model, report, form)
    write_json(json_path, "bench", {"model": model.name, "digest": artifact.digest(model), **report})
    failed = (row["engine"] == OURS if row["skipped"] else not row["verified"] for row in report["rows"])
    return int(any(failed))


def _show(model: Path, report: Mapping[str, Any], form: str) -> None:
    clocks = {(c["batch"], c["path"]): c["clocks"] for c in report["conditions"]}

    def setting(row: Mapping[str, Any]) -> str:
        return f"batch {row['batch']}, {_PATHS[row['path']]}"

    def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        found = [_concurrency(row) for row in rows if row["concurrency"] is not None]
        sampled = clocks[rows[0]["batch"], rows[0]["path"]]
        if sampled["samples"]:
            found.append("SM clock {:.0f} to {:.0f} MHz, median {:.0f}".format(sampled["sm_mhz"][0], sampled["sm_mhz"][2], sampled["sm_mhz"][1]))
        return [*found, *([] if sampled["samples"] else [f"clocks: {sampled['why']}"])]

    def best(row: Mapping[str, Any]) -> str:
        return figure(1e3 * row["seconds"]["minimum"])

    show_report(model, report, form, Wording("best ms", best, setting, remarks, f"{_NOTE} Float members: {report['arithmetic']}."))


def _concurrency(row: Mapping[str, Any]) -> str:
    """``hce ensemble runs its parts by streams, overlap 0.48``; the times that decided it are in the JSON."""
    found = row["concurrency"]
    overlap = "" if found["overlap"] is None else f", overlap {found['overlap']:.2f}"
    return f"{row['engine']} {row['member']} runs its parts by {found['mode']}{overlap}"
