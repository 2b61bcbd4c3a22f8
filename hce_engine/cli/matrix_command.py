"""``hce matrix``: many training runs from one file, and their results as one JSON file."""

from __future__ import annotations

from pathlib import Path

import click

from .options import common, find_own_models, training_device
from .output import percent, say, show_table, write_json


@click.command()
@click.argument("matrix")
@click.option("--data", required=True, help="As for `hce train`.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs, one folder each.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time; they share the device.")
@click.option("--collect", is_flag=True, help="Train nothing: only gather what is finished.")
@common
def command(matrix: str, data: str, out: Path, jobs: int, collect: bool, json_path: Path | None, device: str) -> int:
    """Train every row of MATRIX (a file, or the name of one that ships) for every seed, and compare them.

    Members that rows share are trained once. Interrupt it whenever you like: the same command goes on. Exit code 1 if a
    run failed; the others are finished first.

    \b
    Example:
      hce matrix resnet20-cifar10 --data cifar-10-batches-bin --out runs/r20 --jobs 4 --json results/resnet20-cifar10.json
    """
    device = training_device(device)
    find_own_models()
    from ..training.matrix import load_matrix
    from ..training.matrix_results import results
    from ..training.matrix_run import run_matrix

    plan = load_matrix(matrix)
    failed = {} if collect else run_matrix(plan, data, out, jobs=jobs, device=device, say=say)
    value = results(plan, out)
    if str(json_path) != "-":
        show_table(f"{matrix} in {out}", ("row", "seeds", "test accuracy", "hold-out", "FLOPs"), [
            (row["title"], str(len(row["seeds"])), _mean(row.get("accuracy")), _mean(row.get("holdout")),
             percent(row["flops_ratio"]) if "flops_ratio" in row else "-")
            for row in value["rows"]
        ])
    for name, error in failed.items():
        say(f"{name} failed: {error}")
    write_json(json_path, "matrix", value)
    return 1 if failed else 0


def _mean(values: list[float | None] | None) -> str:
    known = [v for v in values or () if v is not None]
    return percent(sum(known) / len(known)) if known else "-"
