"""The whole product on real data in minutes: train O on bundled digits, compress it to Q and S, build, run, time.

Nothing is downloaded and no GPU is needed. OUT afterwards holds ``run/`` (the training run), ``model.hce`` and
``report.json``. A second call takes the finished training from ``run/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

import hce_engine as hce
from hce_engine.builder import SAMPLES
from hce_engine.engine import Engine
from hce_engine.graph import Graph
from hce_engine.preprocess import InputSpec, to_nchw
from hce_engine.threads import available_threads

from .checkpoint import load_graph, write_json
from .data import digits
from .datasets import DIGITS, TEST_SEED
from .evaluate import evaluate_logits
from .export import RunMembers, members_of
from .graph_module import GraphModule
from .models import resolve
from .progress import TrainingProgress
from .recipe import Recipe, load_recipe
from .run import train
from .throughput import interleaved

RECIPE, BATCH = "quickstart-digits", 128
MEMBERS = ("o", "q", "s", "ensemble")


def quickstart(
    out: str | Path = "quickstart", *, recipe: Recipe | str | Path = RECIPE, threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs the pipeline into the folder ``out`` and returns what report.json holds.

    ``accuracy``, ``bytes``, ``macs``, ``flops`` (the paper's convention) and ``images_per_second`` are keyed by ``o``,
    ``q``, ``s`` and ``ensemble``; accuracies are fractions of the held-out half as the engine classifies it, from the
    artifact. ``images_per_second.torch`` is the better of eager channels_last and torch.compile for O, timed in turns
    with the engine at the same batch and threads; ``torch`` names both. ``threads``: for all of it, by default all.
    """
    out, started = Path(out), time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    threads = threads or available_threads()
    torch.set_num_threads(threads)
    train(recipe, DIGITS, out / "run", progress=progress)
    trained = time.monotonic()
    run = members_of(out / "run")
    _, test = digits(TEST_SEED)
    images, labels = test.images.numpy(), test.labels.numpy()
    artifact = hce.build(
        run.members, run.input, path=out / "model.hce", reference="o", images=images[:SAMPLES], classes=run.classes,
        provenance=run.provenance, accuracy=run.accuracy,
    )
    engine = hce.load(out / "model.hce", threads=threads)
    scores = evaluate_logits(engine.members(images), labels, voters=[m.name for m in artifact.graph.voters])
    with TrainingProgress(progress) as bar:
        bar.line("timing the engine and PyTorch in turns")
        speeds, peers = throughput(engine, run, original_module(recipe.arch, load_graph(out / "run" / "o.pt"), len(run.classes)), images)
    costs = {**artifact.ledger["members"], "ensemble": artifact.ledger["ensemble"]}
    report = {
        "schema_version": 1, "recipe": recipe.name, "recipe_digest": recipe.digest, "seed": recipe.seed,
        "total": len(labels), "batch": BATCH, "threads": threads, "isa": engine.isa,
        "accuracy": {name: scores["accuracy"][name] for name in MEMBERS},
        "correct": {name: scores["correct"][name] for name in MEMBERS},
        "flops_ratio": artifact.ledger["flops_ratio"], "flops_ratios": artifact.ledger["flops_ratios"],
        "macs": {name: costs[name]["macs"] for name in MEMBERS},
        "flops": {name: costs[name]["flops_paper"] for name in MEMBERS},
        "bytes": {name: artifact.ledger["bytes"][name] for name in MEMBERS},
        "images_per_second": {**speeds, "torch": max(v for v in peers.values() if v is not None)},
        "torch": peers, "pairs": scores["pairs"],
        "seconds": {"train": trained - started, "total": time.monotonic() - started},
    }
    write_json(out / "report.json", report)
    return report


def original_module(arch: str, graph: Graph, classes: int) -> nn.Module:
    """O as its user would run it in PyTorch: the architecture's own module with the trained values, channels-last."""
    module, _ = resolve(arch, classes)
    module.load_state_dict(GraphModule(graph).state_dict())
    return module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def normalised(images: np.ndarray, spec: InputSpec) -> torch.Tensor:
    """float32 ``(N, C, H, W)`` channels-last as the PyTorch module takes it; its cost is not charged to PyTorch."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    x = torch.from_numpy(np.ascontiguousarray(to_nchw(images, spec))).float() / 255
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def throughput(
    engine: Engine, run: RunMembers, module: nn.Module, images: np.ndarray
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Images/s at :data:`BATCH` of the engine's members and ensemble, and of O in PyTorch (None: cannot run here)."""
    batch = np.ascontiguousarray(images[:BATCH])
    work: dict[str, Callable[[], object]] = {name: partial(engine.only(name), batch) for name in ("o", "q", "s")}
    work["ensemble"] = partial(engine, batch)
    x = normalised(batch, run.input)
    compiled = torch.compile(module)
    with torch.inference_mode():
        try:
            compiled(x)
        except Exception:  # no C++ compiler, or one that inductor cannot drive: torch raises its own many types
            pass
        else:
            work["compile"] = partial(compiled, x)
        work["eager"] = partial(module, x)
        rates = interleaved(work, len(batch))
    peers = {"eager_channels_last": rates["eager"], "compile": rates.get("compile")}
    return {name: rates[name] for name in MEMBERS}, peers


def table(report: dict[str, Any]) -> Table:
    """The report as one table, members in rows."""
    title = (f"{report['total']} held-out digits; images/s at batch {report['batch']}, {report['threads']} threads, "
             f"{report['isa']}")
    view = Table("", "accuracy", "MACs", "FLOPs (paper)", "bytes", "images/s", title=title)
    names = {"o": "O  original, float32", "q": "Q  quantized", "s": "S  pruned, float32", "ensemble": "Q + S  ensemble"}
    for column in view.columns[1:]:
        column.justify = "right"
    for name in MEMBERS:
        ratio = report["flops_ratios"][name]
        view.add_row(
            names[name], f"{100 * report['accuracy'][name]:.2f} %", f"{report['macs'][name] / 1e6:.2f} M",
            f"{report['flops'][name] / 1e6:.2f} M ({100 * ratio:.1f} %)", f"{report['bytes'][name]:,}",
            f"{report['images_per_second'][name]:,.0f}",
        )
    peers = report["torch"]
    best = "torch.compile" if peers["compile"] == report["images_per_second"]["torch"] else "eager, channels_last"
    view.add_row(f"O  in PyTorch ({best})", "", "", "", "", f"{report['images_per_second']['torch']:,.0f}")
    return view
