"""O, the original: trained from scratch, or with the values of a checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hce_engine.capture import capture
from hce_engine.graph import Graph
from hce_engine.training import checkpoint
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.loop import Loss
from hce_engine.training.models import load_checkpoint, resolve

from .context import Run, phase_seed


def cross_entropy(label_smoothing: float) -> Loss:
    return lambda logits, batch: F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)


def original(run: Run) -> Graph:
    """The captured network. Its initial values depend on the seed alone."""
    path = run.out / "o.pt"
    if path.exists():
        return checkpoint.load_graph(path)
    options = run.recipe.o
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(phase_seed(run.recipe.seed, "init", options.repeat))
        network, architecture = resolve(run.arch, num_classes=run.train.classes)
    if run.checkpoint is not None:
        load_checkpoint(network, run.checkpoint, architecture.renames)
    graph = capture(network.eval(), run.spec, member="o")
    if run.checkpoint is None:
        module = GraphModule(graph).to(run.device)
        run.fit("o", module, options, cross_entropy(options.label_smoothing), run.score)
        graph = module.to_graph()
    run.save_graph(path, graph)
    return graph
