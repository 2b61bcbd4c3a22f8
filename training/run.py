"""A whole training run: the members of a recipe one after the other, then one look at the test set.

``train`` is resumable by stage and inside a stage: call it again with the same recipe, data and folder and it goes on
where it was, to the same bits (given the same number of torch threads, by which sums are split). Everything below OUT
is written atomically:

    run.json        what the run is: recipe, architecture, data, input, classes; a second call must agree with it
    o.pt q.pt s.pt  the members as graphs, q as integers     q-module.pt, s-1.pt ...  what later stages start from
    members.json    for each finished member: digest of the keys it depends on, code, machine, seconds
    state.pt        the phase in progress                    metrics.jsonl            one line per epoch
    logits.npz      of every member on test set and hold-out, with the labels
    result.json     accuracy, diversity and cost, written last
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hce_engine.capture import capture
from hce_engine.errors import CheckpointError, RecipeError, UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.ledger import ledger
from hce_engine.preprocess import InputSpec

from . import checkpoint, distributed
from .data import stratified
from .datasets import input_for, read_data
from .evaluate import evaluate_logits, frozen_logits
from .folder_data import AnySplit, pixel_batches
from .graph_module import GraphModule
from .loop import predict
from .masks import sparse_flops
from .models import load_checkpoint, resolve
from .progress import MetricsLog, TrainingProgress
from .provenance import hardware, versions
from .recipe import Recipe, load_recipe
from .stages import Run, original, pruned, quantized, require_budget

RESULT, IDENTITY, MEMBERS, LOGITS, FORMAT = "result.json", "run.json", "members.json", "logits.npz", 1
_PRODUCED = (RESULT, IDENTITY, MEMBERS, LOGITS, "metrics.jsonl", "*.pt")


def _identity(recipe: Recipe, arch: str, source: Path | None, spec: InputSpec, train: AnySplit, test: AnySplit) -> dict[str, Any]:
    return {
        "format": FORMAT, "recipe": recipe.to_dict(), "recipe_digest": recipe.digest, "arch": arch,
        "checkpoint": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()} if source else None,
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "input": json.loads(json.dumps(asdict(spec))), "classes": list(train.class_names), "versions": versions(),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run; raises CheckpointError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"reading {path}", expected="a file of a training run", got=str(error)[:120],
                              fix="name the folder that `hce train --out` wrote") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"reading {path}", expected="a JSON object", got=type(value).__name__, fix="repeat the run")
    return value


def _claim(out: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Makes ``out`` the folder of this run, or checks that it is; without ``resume`` what a run left is removed."""
    path = out / IDENTITY
    if not resume and path.exists():
        for pattern in _PRODUCED:
            for file in out.glob(pattern):
                file.unlink()
    if not path.exists():
        checkpoint.write_json(path, identity)
        return
    before = read_json(path)
    # The digest speaks for the recipe: a key that this version added at its default changes nothing.
    changed = [k for k in identity if k not in ("versions", "recipe") and before.get(k) != identity[k]]
    if changed:
        raise RecipeError(f"resuming {out}", expected="the same run as the one in this folder",
                          got="another " + ", ".join(k.removesuffix("_digest") for k in changed), fix="choose another --out, or start over with --no-resume")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("training", expected="a CUDA device", got="none", fix="use --device cpu")
    return distributed.device_of(name)


def _note_member(run: Run, name: str, donor: Mapping[str, Any] | None = None) -> None:
    """Enters a finished member in members.json, with what the run that made it entered if it was another."""
    path = run.out / MEMBERS
    notes = read_json(path) if path.exists() else {}
    if name not in notes:
        notes[name] = donor or {"digest": run.recipe.member_digest(name), "hardware": hardware(run.device), **versions()}
        checkpoint.write_json(path, notes)


def _adopt(run: Run, identity: Mapping[str, Any], donors: Sequence[Path]) -> None:
    """Copies from other runs the members that they share with this one: same keys, architecture, checkpoint and data."""
    for name in run.recipe.members:
        for donor in donors:
            if (run.out / f"{name}.pt").exists() or not (donor / MEMBERS).exists():
                continue
            theirs, notes = read_json(donor / IDENTITY), read_json(donor / MEMBERS)
            same = all(theirs.get(key) == identity[key] for key in ("arch", "checkpoint", "data", "input"))
            if not same or notes.get(name, {}).get("digest") != run.recipe.member_digest(name):
                continue
            for file in [donor / "q-module.pt"] * (name == "q") + [donor / f"{name}.pt"]:
                checkpoint.write_bytes(run.out / file.name, file.read_bytes())
            _note_member(run, name, notes[name])
            run.progress.line(f"{name:<9} taken from {donor}")


def train(
    recipe: Recipe | str | Path, data: str | Path, out: str | Path, *, arch: str | None = None,
    checkpoint_path: str | Path | None = None, reuse: Sequence[str | Path] = (), resume: bool = True, device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Runs ``recipe`` on ``data`` into the folder ``out``; returns what result.json holds.

    data: see :func:`training.datasets.read_data`.  arch: wins over the recipe's.
    checkpoint_path: O is read from it instead of being trained.  reuse: other runs; members that depend on the same keys
    and data are copied from them.  Raises RecipeError, DataError, CheckpointError, and UnsupportedError for a device that
    is not there.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    source = Path(checkpoint_path) if checkpoint_path is not None else None
    if recipe.checkpoint_required and source is None:
        raise RecipeError(f"recipe {recipe.name}", expected="a checkpoint of O", got="none",
                          fix="give --checkpoint FILE, or use a recipe that trains O")
    if source is not None and not source.is_file():
        raise CheckpointError(f"checkpoint {source}", expected="a file", got="nothing there", fix="check the path")
    for donor in reuse:
        if not (Path(donor) / IDENTITY).is_file():
            raise CheckpointError(f"--reuse {donor}", expected="the folder of a training run", got="no run.json",
                                  fix="name the folder that `hce train --out` wrote")
    out, arch, target = Path(out), arch or recipe.arch, _device(device)
    whole, test = read_data(data, recipe.data, recipe.seed)
    module, architecture = resolve(arch, whole.classes)
    spec = input_for(architecture.input, whole, recipe.data)
    if source is not None:
        load_checkpoint(module, source, architecture.renames)  # a wrong one is refused before a folder is claimed
    require_budget(recipe, capture(module.eval(), spec, member="o"), whole.sample(torch.arange(min(16, len(whole)))))
    training, holdout = whole, None
    if recipe.data.holdout:
        rest, taken = stratified(whole.labels, recipe.data.holdout, recipe.seed)
        training, holdout = whole.take(rest), whole.take(taken).to(target)
    identity = _identity(recipe, arch, source, spec, whole, test)
    with distributed.joined(target), TrainingProgress(progress) as bar:
        if distributed.is_first():
            _claim(out, identity, resume)
        distributed.wait_for_all()
        finished = (RESULT, LOGITS, *(f"{name}.pt" for name in recipe.members))
        if all((out / name).exists() for name in finished):  # a member that was deleted is made again
            return read_json(out / RESULT)
        run = Run(recipe, arch, source, out, spec, training.to(target), holdout, MetricsLog(out / "metrics.jsonl"), bar, target)
        if distributed.is_first():
            _adopt(run, identity, [Path(donor) for donor in reuse])
        distributed.wait_for_all()
        graphs = make_members(run)
        bar.line("evaluating on the test set")
        result = evaluate_run(graphs, spec, test.to(target), holdout, out / LOGITS)
    checkpoint.write_json(out / RESULT, result)
    if distributed.is_first():
        (out / "state.pt").unlink(missing_ok=True)
    return result


def make_members(run: Run) -> dict[str, Graph]:
    """Every member of the recipe, in order."""
    graphs = {"o": original(run)}
    _note_member(run, "o")
    q, twin = None, None
    if run.recipe.q is not None:
        q, twin = quantized(run, graphs["o"])
        graphs["q"] = q
        _note_member(run, "q")
    if run.recipe.s is not None:
        graphs["s"] = pruned(run, graphs["o"], q, twin)
        _note_member(run, "s")
    return graphs


def evaluate_run(
    graphs: Mapping[str, Graph], spec: InputSpec, test: AnySplit, holdout: AnySplit | None, logits_path: Path
) -> dict[str, Any]:
    """Metrics of each member and of the ensemble of q and s on ``test``, and the ledger, as JSON values.

    With a hold-out, temperatures are fitted on it, and ``holdout`` holds its accuracies, which selection may look at.
    ``nonzero_flops`` counts the float members' weights that are not zero, in the paper's convention: the ledger counts all,
    as this engine computes all. ``logits_path`` gets all logits.
    """
    voters = [name for name in graphs if name != "o"] or ["o"]

    def on(split: AnySplit) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {name: member_logits(graph, spec, split) for name, graph in graphs.items()}, split.labels.cpu().numpy()

    measured = {"test": on(test)} | ({"holdout": on(holdout)} if holdout is not None else {})
    arrays = {f"{key}/{name}": z for key, (logits, _) in measured.items() for name, z in logits.items()}
    arrays |= {f"{key}/labels": labels for key, (_, labels) in measured.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    checkpoint.write_bytes(logits_path, buffer.getvalue())
    roles = {"o": "reference"} if voters != ["o"] else {}
    merged = merge({name: graph if name == "q" else lower(graph) for name, graph in graphs.items()}, roles)
    result = {
        "schema_version": 1, **evaluate_logits(*measured["test"], voters, holdout=measured.get("holdout")),
        "ledger": ledger(merged),
        "nonzero_flops": {name: sparse_flops(graph) for name, graph in graphs.items() if name != "q"},
    }
    if holdout is not None:
        result["holdout"] = {"accuracy": evaluate_logits(*measured["holdout"], voters)["accuracy"]}
    return result


def member_logits(graph: Graph, spec: InputSpec, split: AnySplit) -> np.ndarray:
    """float32 ``(N, classes)`` on the CPU; of a quantized member from its integers."""
    if any(node.op == "qconv2d" for node in graph.nodes):
        return frozen_logits(graph, spec, pixel_batches(split))
    return predict(GraphModule(graph).to(split.device), split).cpu().numpy()
