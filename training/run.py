"""A whole training run: O, then Q, then S, then one look at the test set.

``train`` is resumable by stage and inside a stage: call it again with the same recipe, data and folder and it goes on
where it was, to the same bits (given the same number of torch threads, by which sums are split). Everything below OUT
is written atomically:

    run.json        what the run is: recipe, architecture, data, input, classes; a second call must agree with it
    o.pt q.pt s.pt  the members as graphs, q as integers     q-module.pt, s-1.pt ...  what later stages start from
    state.pt        the phase in progress                    metrics.jsonl            one line per epoch
    result.json     accuracy, diversity and cost, written last
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hce_engine
from hce_engine.capture import capture
from hce_engine.errors import CheckpointError, DataError, RecipeError, UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.images import load_labelled
from hce_engine.ledger import ledger
from hce_engine.preprocess import InputSpec

from . import checkpoint
from .data import Split, digits, mean_codes, stratified, to_split
from .evaluate import evaluate_logits, frozen_logits
from .graph_module import GraphModule
from .loop import predict
from .models import load_checkpoint, resolve
from .progress import MetricsLog, TrainingProgress
from .recipe import Recipe, load_recipe
from .stages import Run, original, pruned, quantized, require_budget

DIGITS = "digits"
RESULT, IDENTITY, FORMAT = "result.json", "run.json", 1
_PRODUCED = ("run.json", "result.json", "metrics.jsonl", "*.pt")


def read_data(source: str | Path, seed: int) -> tuple[Split, Split]:
    """``(train, test)``: ``digits``, or whatever :func:`hce_engine.images.load_labelled` reads.

    Where a source has one set for both, a fifth of every class is set aside as the test set.
    """
    if str(source) == DIGITS:
        return digits(seed)
    parts = [load_labelled(source, split=name) for name in ("train", "test")]
    if parts[0].class_names != parts[1].class_names:
        raise DataError(f"data {source}", expected="the same classes for training and test",
                        got=f"{len(parts[0].class_names)} and {len(parts[1].class_names)}", fix="correct the folders")
    whole, test = (to_split(p.images, p.labels, p.class_names) for p in parts)
    if torch.equal(whole.images, test.images):
        rest, taken = stratified(whole.labels, len(whole) // 5, seed)
        return whole.take(rest), whole.take(taken)
    return whole, test


def input_for(arch_input: InputSpec, split: Split) -> InputSpec:
    """The architecture's own mean and std, at the size of the images."""
    if arch_input.shape[0] != split.shape[0]:
        raise DataError("training data", expected=f"images of {arch_input.shape[0]} channels, as the architecture takes",
                        got=f"{split.shape[0]}", fix="convert the images, or give the model an input_spec")
    spec = replace(arch_input, shape=split.shape)
    mean_codes(spec)  # refuses float input
    return spec


def _fingerprint(split: Split) -> str:
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    digest.update(split.images.contiguous().numpy().tobytes())
    return f"{len(split)}x{'x'.join(map(str, split.shape))}:{digest.hexdigest()[:16]}"


def versions() -> dict[str, str]:
    """What a result depends on beside the recipe and the data."""
    return {"hce_engine": hce_engine.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "torch_threads": str(torch.get_num_threads())}


def _identity(recipe: Recipe, arch: str, source: Path | None, spec: InputSpec, train: Split, test: Split) -> dict[str, Any]:
    return {
        "format": FORMAT, "recipe": recipe.to_dict(), "recipe_digest": recipe.digest, "arch": arch,
        "checkpoint": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()} if source else None,
        "data": {"train": _fingerprint(train), "test": _fingerprint(test)},
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
    changed = [k for k in identity if k != "versions" and before.get(k) != identity[k]]
    if changed:
        raise RecipeError(f"resuming {out}", expected="the same run as the one in this folder",
                          got="another " + ", ".join(changed), fix="choose another --out, or start over with --no-resume")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("training", expected="a CUDA device", got="none", fix="use --device cpu")
    return torch.device(name)


def train(
    recipe: Recipe | str | Path, data: str | Path, out: str | Path, *, arch: str | None = None,
    checkpoint_path: str | Path | None = None, resume: bool = True, device: str = "cpu", progress: bool = True,
) -> dict[str, Any]:
    """Runs ``recipe`` on ``data`` into the folder ``out``; returns what result.json holds.

    data: a folder or file for :func:`hce_engine.images.load_labelled`, or ``digits``.  arch: wins over the recipe's.
    checkpoint_path: O is read from it instead of being trained.  Raises RecipeError, DataError, CheckpointError, and
    UnsupportedError for a device that is not there.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    source = Path(checkpoint_path) if checkpoint_path is not None else None
    if recipe.checkpoint_required and source is None:
        raise RecipeError(f"recipe {recipe.name}", expected="a checkpoint of O", got="none",
                          fix="give --checkpoint FILE, or use a recipe that trains O")
    if source is not None and not source.is_file():
        raise CheckpointError(f"checkpoint {source}", expected="a file", got="nothing there", fix="check the path")
    out, arch, target = Path(out), arch or recipe.arch, _device(device)
    whole, test = read_data(data, recipe.seed)
    module, architecture = resolve(arch, whole.classes)
    spec = input_for(architecture.input, whole)
    if source is not None:
        load_checkpoint(module, source, architecture.renames)  # a wrong one is refused before a folder is claimed
    require_budget(recipe, capture(module.eval(), spec, member="o"), whole.images[:16].permute(0, 3, 1, 2))
    training, holdout = whole, None
    if recipe.data.holdout:
        rest, taken = stratified(whole.labels, recipe.data.holdout, recipe.seed)
        training, holdout = whole.take(rest), whole.take(taken).to(target)
    _claim(out, _identity(recipe, arch, source, spec, whole, test), resume)
    if all((out / name).exists() for name in (RESULT, "o.pt", "q.pt", "s.pt")):  # a member that was deleted is made again
        return read_json(out / RESULT)
    with TrainingProgress(progress) as bar:
        run = Run(recipe, arch, source, out, spec, training.to(target), holdout, MetricsLog(out / "metrics.jsonl"), bar, target)
        o = original(run)
        q, twin = quantized(run, o)
        s = pruned(run, o, q, twin)
        bar.line("evaluating on the test set")
        result = evaluate_run({"o": o, "q": q, "s": s}, spec, test.to(target))
    checkpoint.write_json(out / RESULT, result)
    (out / "state.pt").unlink(missing_ok=True)
    return result


def evaluate_run(graphs: Mapping[str, Graph], spec: InputSpec, test: Split) -> dict[str, Any]:
    """Metrics of ``o``, ``q``, ``s`` and of the ensemble of q and s on ``test``, and the ledger, as JSON values."""
    images = test.images.cpu().numpy()
    logits = {
        name: frozen_logits(graph, spec, images) if name == "q"
        else predict(GraphModule(graph).to(test.images.device), test).cpu().numpy()
        for name, graph in graphs.items()
    }
    merged = merge({name: graph if name == "q" else lower(graph) for name, graph in graphs.items()}, {"o": "reference"})
    return {
        "schema_version": 1, **evaluate_logits(logits, test.labels.cpu().numpy(), voters=["q", "s"]),
        "ledger": ledger(merged),
    }
