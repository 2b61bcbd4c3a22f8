"""``hce eval``: how right each member and the ensemble are, how differently they err, how calibrated they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import common, float_arithmetic, keep_inputs, largest_batch, some_members, trace_file
from .output import percent, progress_bar, say, show_table, write_json


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True,
              help="CIFAR binary folder, image folder (one sub-folder per class, of its name) or .npz.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--skip-bad", is_flag=True, help="Leave unreadable image files out and list them at the end.")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Images per call.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine; default: all usable cores.")
@trace_file
@some_members
@float_arithmetic
@largest_batch
@common
def command(
    model: Path, data: Path, split: str, skip_bad: bool, batch: int, threads: int | None, trace_path: Path | None,
    members: tuple[str, ...] | None, arithmetic: str, max_batch: int | None, json_path: Path | None, device: str,
) -> int:
    """Measure accuracy of each member and of the ensemble of MODEL on labelled images.

    \b
    Example:
      hce eval model.hce --data cifar-10-batches-bin --json eval.json
    """
    import numpy as np

    from .. import images, load
    from ..images.files import to_input
    from ..training.evaluate import evaluate_logits

    keep_inputs((trace_path, json_path), (model, data))
    engine = load(model, device=device, threads=threads, members=members, arithmetic=arithmetic, max_batch=max_batch)
    if trace_path is not None:
        engine.require_trace()
    labelled = images.open_labelled(data, split, spec=engine.input, skip_bad=skip_bad)
    graph = engine.artifact.graph
    numbers = images.class_numbers(labelled, engine.artifact.classes, graph[graph.voters[0].output].spec.shape[0])
    parts: dict[str, list[Any]] = {}
    labels: list[Any] = []
    with progress_bar("evaluating", len(labelled.labels)) as bar:
        for pixels, some in labelled.batches(batch):
            chunk = to_input(pixels, engine.input)
            if trace_path is not None and not labels:
                engine.trace(chunk, trace_path)
            for name, logits in engine.members(chunk).items():
                parts.setdefault(name, []).append(np.asarray(logits))
            labels.append(numbers[some])
            bar.advance(len(some))
    voters = [m.name for m in graph.voters]
    result = evaluate_logits({k: np.concatenate(v) for k, v in parts.items()}, np.concatenate(labels), voters)
    if str(json_path) != "-":
        _show(model, data, split, result)
    for name, reason in labelled.skipped:
        say(f"skipped {name}: {reason}")
    write_json(json_path, "eval", {
        "model": str(model), "data": labelled.source, "split": split, **result, "ledger": dict(engine.artifact.ledger),
        "skipped": [{"name": name, "reason": reason} for name, reason in labelled.skipped],
        "concurrency": engine.report(),
    })
    return 0


def _show(model: Path, data: Path, split: str, result: dict[str, Any]) -> None:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    entries = list(result["members"].items())
    if result["pairs"]:  # with one member there is nothing to average
        entries.append(("ensemble, mean of probabilities", result["probability_mean"]))
    rows = [
        (name, str(m["correct"]), percent(m["accuracy"]), " to ".join(percent(v) for v in m["interval"]),
         number(m["nll"]), number(m["ece"]), number(m["brier"]))
        for name, m in entries
    ]
    show_table(f"{model} on {data} ({split}, {result['total']} images)",
               ("member", "correct", "accuracy", "95 % interval", "NLL", "ECE", "Brier"), rows)
    if result["pairs"]:
        show_table("How differently the members err", ("pair", "disagree", "both wrong", "Q statistic", "error overlap"), [
            (pair, percent(p["disagreement"]), percent(p["double_fault"]), number(p["q_statistic"]), number(p["error_overlap"]))
            for pair, p in result["pairs"].items()
        ])
