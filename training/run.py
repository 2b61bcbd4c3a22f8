"""A whole training run: the members of a recipe one after the other, then one look at the test set.

``train`` is resumable by stage and inside a stage: call it again with the same recipe, data and folder and it goes on
where it was, to the same bits (given the same number of torch threads, by which sums are split). What it leaves in the
folder stands in training/run_files.py.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
from .quantize import QuantModule
from .recipe import Recipe, load_recipe
from .run_files import IDENTITY, LOGITS, RESULT, adopt, claim, held, identity, note_member, noted, read_json
from .stages import Run, original, pruned, quantized, require_budget


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("training", expected="a CUDA device", got="none", fix="use --device cpu")
    return distributed.device_of(name)


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
    whole, test = read_data(data, recipe.data)
    module, architecture = resolve(arch, whole.classes)
    spec = input_for(architecture.input, whole, recipe.data)
    if source is not None:
        load_checkpoint(module, source, architecture.renames)  # a wrong one is refused before a folder is claimed
    require_budget(recipe, capture(module.eval(), spec, member="o"), whole.sample(torch.arange(min(16, len(whole)))))
    training, holdout = whole, None
    if recipe.data.holdout:
        rest, taken = stratified(whole.labels, recipe.data.holdout, recipe.seed)
        training, holdout = whole.take(rest), whole.take(taken).to(target)
    told = identity(recipe, arch, source, spec, whole, test)
    with (
        held(out) if distributed.is_first() else nullcontext(), distributed.joined(target), TrainingProgress(progress) as bar,
    ):
        if distributed.is_first():
            claim(out, told, resume)
        distributed.wait_for_all()
        finished = (RESULT, LOGITS, *(f"{name}.pt" for name in recipe.members))
        if all((out / name).exists() for name in finished):  # a member that was deleted is made again
            return read_json(out / RESULT)
        run = Run(recipe, arch, source, out, spec, training.to(target), holdout, MetricsLog(out / "metrics.jsonl"), bar, target)
        if distributed.is_first():
            for name, donor in adopt(out, recipe, [Path(donor) for donor in reuse]).items():
                bar.line(f"{name:<9} taken from {donor}")
        distributed.wait_for_all()
        graphs = make_members(run)
        bar.line("evaluating on the test set")
        result = evaluate_run(graphs, spec, test.to(target), holdout, out / LOGITS)
        checkpoint.write_json(out / RESULT, result)
        if distributed.is_first():
            (out / "state.pt").unlink(missing_ok=True)
    return result


def make_members(run: Run) -> dict[str, Graph]:
    """Every member of the recipe, in order; those that are there already are read."""
    graphs: dict[str, Graph] = {}
    twin: QuantModule | None = None
    for name in run.recipe.members:
        is_new = not (run.out / f"{name}.pt").exists()
        if name == "o":
            graphs["o"] = original(run)
        elif name == "q":
            graphs["q"], twin = quantized(run, graphs["o"])
        else:
            graphs["s"] = pruned(run, graphs["o"], graphs.get("q"), twin)
        if is_new or not noted(run.out, name):  # a kill may come between a member and its note
            note_member(run.out, run.recipe, name, run.device)
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
