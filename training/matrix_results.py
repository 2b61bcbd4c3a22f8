"""What a matrix measured, as one JSON value: accuracy, calibration, diversity and cost of every row, seed by seed.

Everything comes from the run folders: logits.npz (the test set was evaluated once, at each run's end), result.json (the
ledger), members.json (who made each member, on what). Ensembles without training of their own are means of those logits.
A row whose runs are missing stays, with the status ``not run``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hce_engine.backends.reference import mean_logits
from hce_engine.errors import CheckpointError

from .evaluate import evaluate_logits, predicted_classes
from .matrix import Homogeneous, Matrix, Row, folder
from .matrix_run import jobs_of
from .progress import MetricsLog
from .recipe import Recipe
from .run_files import LOGITS, MEMBERS, RESULT, read_json
from .stages import widths

SCHEMA_VERSION = 1
COSTS = ("flops_paper", "macs", "params", "bytes", "bops", "b23", "bb23", "bb529", "nonzero_flops")
_METRICS = ("nll", "ece", "brier")


class _Run:
    """A finished run folder: logits per split and member, labels, ledger, notes."""

    def __init__(self, path: Path) -> None:
        with np.load(path / LOGITS, allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.result, self.notes = read_json(path / RESULT), read_json(path / MEMBERS)
        self.phases = _seconds(path)

    def labels(self, split: str) -> np.ndarray | None:
        return self.arrays.get(f"{split}/labels")

    def logits(self, split: str, member: str) -> np.ndarray:
        return self.arrays[f"{split}/{member}"]

    def cost(self, member: str) -> Mapping[str, float]:
        """The ledger's figures, and ``nonzero_flops``: flops_paper without the weights that are zero."""
        costs = self.result["ledger"]["members"][member]
        return {**costs, "nonzero_flops": self.result["nonzero_flops"].get(member, costs["flops_paper"])}


def _seconds(path: Path) -> dict[str, float]:
    """Training seconds by member, of the epochs that this folder saw (an adopted member has none)."""
    seconds: dict[str, float] = {}
    for record in MetricsLog(path / "metrics.jsonl").lines():
        member = record["phase"].split("-")[0]
        seconds[member] = seconds.get(member, 0.0) + record["seconds"]
    return seconds


def results(matrix: Matrix, out: Path) -> dict[str, Any]:
    """The JSON value; ``command_line`` is what a reader types to repeat it."""
    runs = {(job.out.name): _Run(job.out) for job in jobs_of(matrix, out) if job.finished}
    wrong: dict[tuple[str, int], np.ndarray] = {}
    rows = [_trained(matrix, row, runs, wrong) for row in matrix.rows]
    rows += [_homogeneous(matrix, ensemble, runs, wrong) for ensemble in matrix.ensembles]
    for row in rows:
        _compare(row, matrix.control, wrong)
    archs = sorted({recipe.arch for row in matrix.rows for recipe in row.recipes})
    return {
        "schema_version": SCHEMA_VERSION, "matrix": matrix.name, "dataset": matrix.dataset, "arch": ", ".join(archs),
        "command_line": f"hce matrix {matrix.name} --data DIR --out RUNS --json results/{matrix.name}.json", "rows": rows,
    }


def _compare(row: dict[str, Any], control: str | None, wrong: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Against the control of the same seed: images that only this row, and only the control, got right."""
    shared = [seed for seed in row["seeds"] if control is not None and (control, seed) in wrong and (row["row"], seed) in wrong]
    if shared and row["row"] != control:
        pairs = [(wrong[row["row"], seed], wrong[str(control), seed]) for seed in shared]
        row["control"] = {
            "row": control, "seeds": shared, "only_this_right": [int((b & ~a).sum()) for a, b in pairs],
            "only_control_right": [int((a & ~b).sum()) for a, b in pairs],
        }


def _common_labels(split: str, runs: Sequence[_Run]) -> np.ndarray | None:
    """The labels of a split that all runs share; None for hold-outs of different seeds, which are different images.

    Raises CheckpointError when the runs were tested on different images.
    """
    first, *rest = [run.labels(split) for run in runs]
    if first is not None and all(labels is not None and np.array_equal(labels, first) for labels in rest):
        return first
    if split == "test":
        raise CheckpointError("results of a matrix", expected="runs that were tested on the same images", got="others",
                              fix="run all of them on the same --data")
    return None


def _measured(
    row: str, per_seed: Sequence[tuple[int, list[tuple[_Run, str]]]], wrong: dict[tuple[str, int], np.ndarray]
) -> dict[str, Any]:
    """Metrics of the mean of the given members, one entry per seed, and what they cost together.

    ``wrong[row, seed]`` gets which test images the mean is wrong on, bool ``(N,)``.
    """
    columns: dict[str, list[Any]] = {key: [] for key in ("accuracy", "correct", "interval", *_METRICS, "holdout", "pairs")}
    members: dict[str, list[float]] = {}
    for seed, parts in per_seed:
        names = [f"{member}{i}" if len(parts) > 1 else member for i, (_, member) in enumerate(parts)]
        split = {}
        for key in ("test", "holdout"):
            labels = _common_labels(key, [run for run, _ in parts])
            if labels is not None:
                logits = {name: run.logits(key, member) for name, (run, member) in zip(names, parts, strict=True)}
                split[key] = evaluate_logits(logits, labels)
                if key == "test":
                    wrong[row, seed] = predicted_classes(mean_logits(list(logits.values()))) != labels
        ensemble = split["test"]["members"]["ensemble"]
        for key in ("accuracy", "correct", "interval", *_METRICS):
            columns[key].append(ensemble[key])
        columns["holdout"].append(split["holdout"]["accuracy"]["ensemble"] if "holdout" in split else None)
        columns["pairs"].append(list(split["test"]["pairs"].values()))
        for name, (_, member) in zip(names, parts, strict=True):
            members.setdefault(member if len({m for _, m in parts}) == len(parts) else name, []).append(
                split["test"]["accuracy"][name])
    parts = per_seed[0][1]
    reference = parts[0][0].cost("o")["flops_paper"]
    cost = {key: sum(run.cost(member)[key] for run, member in parts) for key in COSTS}
    return {**columns, "member_accuracy": members, "cost": cost, "flops_ratio": cost["flops_paper"] / reference}


def _made_by(members: Iterable[tuple[_Run, str]]) -> dict[str, list[str]]:
    """Commits and hardware of the members, each once."""
    notes = [run.notes[name] for run, name in members]
    return {
        "commits": sorted({str(note.get("commit") or "unknown") for note in notes}),
        "hardware": sorted({str(note["hardware"]) for note in notes}),
    }


def epochs_of(recipe: Recipe) -> dict[str, int]:
    """Epochs of training of each member, from O on."""
    epochs = {"o": recipe.o.epochs}
    if recipe.q is not None:
        epochs["q"] = recipe.q.epochs + (len(widths(recipe.q)) - 1) * recipe.q.progressive_epochs
    if recipe.s is not None:
        epochs["s"] = recipe.s.epochs + recipe.s.rounds * recipe.s.round_epochs
    return epochs


def _trained(
    matrix: Matrix, row: Row, runs: Mapping[str, _Run], wrong: dict[tuple[str, int], np.ndarray]
) -> dict[str, Any]:
    recipe = row.recipes[0]
    voters = [name for name in recipe.members if name != "o"] or ["o"]
    told: dict[str, Any] = {
        "row": row.name, "title": row.title, "kind": "ensemble" if len(voters) > 1 else "member", "members": voters,
        "epochs": epochs_of(recipe), "precision": recipe.precision,
    }
    if recipe.q is not None:
        told |= {"bits": [recipe.q.weight_bits, recipe.q.activation_bits], "quantizer": recipe.q.method}
    if recipe.s is not None:
        told |= {"reading": recipe.objective.reading, "w_ce": recipe.objective.w_ce, "w_diff": recipe.objective.w_diff,
                 "temperature": recipe.objective.temperature, "criterion": recipe.s.criterion,
                 "granularity": recipe.s.granularity}
    found = [(seed, runs[folder(Path(), row.name, seed).name]) for seed in matrix.seeds
             if folder(Path(), row.name, seed).name in runs]
    if not found:
        return told | {"status": "not run", "seeds": []}
    measured = _measured(row.name, [(seed, [(run, name) for name in voters]) for seed, run in found], wrong)
    if recipe.s is not None and recipe.s.granularity == "weight":  # the budget was met in non-zero weights
        measured["flops_ratio"] = measured["cost"]["nonzero_flops"] / found[0][1].cost("o")["flops_paper"]
    seconds = {name: [run.phases[name] for _, run in found if name in run.phases] for name in recipe.members}
    return told | {"status": "run", "seeds": [seed for seed, _ in found], **measured, "seconds": seconds,
                   **_made_by((run, name) for _, run in found for name in recipe.members)}


def _homogeneous(
    matrix: Matrix, ensemble: Homogeneous, runs: Mapping[str, _Run], wrong: dict[tuple[str, int], np.ndarray]
) -> dict[str, Any]:
    told = {"row": ensemble.name, "title": ensemble.title, "kind": "homogeneous",
            "members": [f"{row}:{member}" for row, member in ensemble.members], "across_seeds": ensemble.across_seeds}

    def parts(row_member: tuple[str, str], seed: int) -> tuple[_Run, str] | None:
        run = runs.get(folder(Path(), row_member[0], seed).name)
        return None if run is None else (run, row_member[1])

    if ensemble.across_seeds:
        every = [parts(ensemble.members[0], seed) for seed in matrix.seeds]
        groups = [(list(matrix.seeds), every)] if len(matrix.seeds) > 1 else []
    else:
        groups = [([seed], [parts(member, seed) for member in ensemble.members]) for seed in matrix.seeds]
    whole = [(seeds, [p for p in found if p is not None]) for seeds, found in groups if None not in found]
    if not whole:
        return told | {"status": "not run", "seeds": []}
    measured = _measured(ensemble.name, [(seeds[0], found) for seeds, found in whole], wrong)
    return told | {"status": "run", "seeds": [s for seeds, _ in whole for s in seeds], **measured,
                   **_made_by(part for _, found in whole for part in found)}
