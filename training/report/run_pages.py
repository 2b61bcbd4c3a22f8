"""The sections of one training run, finished or not, from what its folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hce_engine.errors import CheckpointError
from hce_engine.training import checkpoint
from hce_engine.training.evaluate import evaluate_logits
from hce_engine.training.pictures.curves import training_curves
from hce_engine.training.progress import MetricsLog
from hce_engine.training.run_files import IDENTITY, LOGITS, RESULT, read_json

from .blocks import Block, Details, Picture, Section, Table, Text
from .measured import accuracy_section, calibration_section, difference_sections, ledger_section
from .regions import regions_section
from .run_data import RunData

MEMBERS = ("o", "q", "s")


@dataclass(frozen=True)
class Regions:
    """How decision regions are drawn. data: the data of the run, None for none of them.  image: number of a test image,
    None for the first that all members get right.  radius: of the plane, in codes.  side: points per axis, odd."""

    data: str | Path | None = None
    image: int | None = None
    radius: float = 24.0
    side: int = 101
    seed: int = 0


def read_logits(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of logits.npz by split and then by member (``labels`` among them); raises CheckpointError for another file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            splits: dict[str, dict[str, np.ndarray]] = {}
            for key in arrays.files:
                split, member = key.split("/")
                splits.setdefault(split, {})[member] = arrays[key]
        if "labels" not in splits.get("test", {}) or len(splits["test"]) < 2:
            raise ValueError("no labels, or no member, of the test set")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"reading {path}", expected="logits and labels of a training run", got=str(error)[:120],
                              fix="delete it; the same `hce train` command writes it again") from None
    return splits


def _split(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {name: z for name, z in arrays.items() if name != "labels"}, arrays["labels"]


def run_sections(run: Path, regions: Regions, device: str, tell: Callable[[str], None]) -> list[Section]:
    """Everything about the run, in the order of the page. Raises CheckpointError for a damaged folder, DataError for
    data that are not the run's."""
    identity = read_json(run / IDENTITY)
    try:
        data = RunData.of(identity) if regions.data is not None else None
        sections = [_about(run, identity), *_measured(run, identity), _training(run)]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"report on {run}", expected="a run as this version writes it", got=repr(error)[:120],
                              fix="repeat the run in another folder") from None
    return [*sections, _regions(run, data, regions, device, tell), _recipe(identity)]


def _about(run: Path, identity: Mapping[str, Any]) -> Section:
    checkpointed = identity.get("checkpoint")
    facts = {
        "recipe": identity["recipe"]["name"], "architecture": identity["arch"], "seed": str(identity["recipe"]["seed"]),
        "O": f"from {checkpointed['name']}" if checkpointed else "trained from scratch",
        "classes": str(len(identity["classes"])), "training data": identity["data"]["train"], "test data": identity["data"]["test"],
        "recipe digest": identity["recipe_digest"][:16],
        "versions": ", ".join(f"{name} {version}" for name, version in identity["versions"].items()),
    }
    return Section(f"Run {run.name}", [Table((), list(facts.items()), texts=2)])


def _measured(run: Path, identity: Mapping[str, Any]) -> list[Section]:
    """What the test set says; from the logits where they were kept, so that a report is not older than its own code."""
    if not (run / RESULT).exists():
        return [Section("Accuracy", left_out=["The run is not finished: the test set has not been looked at."])]
    result = read_json(run / RESULT)
    if (run / LOGITS).exists():
        sections = _from_logits(run, bool(identity.get("checkpoint")))
    else:
        sections = [accuracy_section(result, "Test set"), *difference_sections(result)]
        sections[0].left_out.append(f"Reliability diagrams are left out: the run kept no {LOGITS}.")
    return [*sections, ledger_section(result["ledger"])]


def _from_logits(run: Path, checkpointed: bool) -> list[Section]:
    splits = read_logits(run / LOGITS)
    logits, labels = _split(splits["test"])
    voters = [name for name in logits if name != "o"] or ["o"]
    holdout = _split(splits["holdout"]) if "holdout" in splits else None
    result = evaluate_logits(logits, labels, voters, holdout=holdout)
    accuracy = accuracy_section(result, "Test set")
    if holdout is not None and checkpointed:
        accuracy.blocks.append(Text(
            "O comes from a checkpoint. If that was trained on the hold-out, too, the temperatures of O and of what was made of it "
            "are too low: they were fitted where the networks are surer than elsewhere."
        ))
    return [accuracy, *difference_sections(result), calibration_section(logits, labels, result, voters)]


def _training(run: Path) -> Section:
    section = Section("Training")
    lines = MetricsLog(run / "metrics.jsonl").lines()
    if lines:
        section.blocks.append(Picture(
            "training-curves", training_curves(lines),
            "Accuracy and loss of every epoch. Upright lines separate the phases of a member, such as rounds of pruning; where S is "
            "trained beside Q, the hold-out picks the epoch by the accuracy of both together.",
            f"Curves of {len(lines)} epochs.",
        ))
    else:
        section.left_out.append("Training curves are left out: metrics.jsonl has no line yet.")
    return section


def _regions(run: Path, data: RunData | None, options: Regions, device: str, tell: Callable[[str], None]) -> Section:
    def without(reason: str) -> Section:
        return Section("Decision regions", left_out=[f"Decision regions are left out: {reason}."])

    if data is None or options.data is None:
        return without("no data was given (--data)")
    if not (run / "o.pt").exists():
        return without("the run has no O yet")
    splits = data.read(options.data)
    if splits is None:
        return without("they are drawn of data that is held in memory, and this is read image by image")
    graphs = {name: checkpoint.load_graph(run / f"{name}.pt") for name in MEMBERS if (run / f"{name}.pt").exists()}
    return regions_section(
        graphs, data.input, *splits, image=options.image, radius=options.radius, side=options.side, seed=options.seed,
        device=device, tell=tell,
    )


def _recipe(identity: Mapping[str, Any]) -> Section:
    block: Block = Details("Every key of the recipe", json.dumps(identity["recipe"], indent=2))
    return Section("Recipe", [block])
