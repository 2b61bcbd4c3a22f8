"""S, the pruned member: made smaller in rounds, and trained for the ensemble with Q."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from hce_engine.graph import Graph
from hce_engine.training import checkpoint
from hce_engine.training.evaluate import frozen_logits
from hce_engine.training.folder_data import pixel_batches
from hce_engine.training.loop import Score, accuracy, predict
from hce_engine.training.prune import Pruning
from hce_engine.training.quantize import QuantModule

from .context import Run
from .quantized import budget
from .teachers import ensemble_loss


def ensemble_score(run: Run, q: Graph | None) -> Score:
    """Accuracy on the hold-out of S beside the integers of ``q``, and of S alone."""
    split = run.holdout
    if q is None or split is None:
        return run.score
    fixed = torch.from_numpy(frozen_logits(q, run.spec, pixel_batches(split))).to(run.device)

    def score(module: nn.Module) -> dict[str, float]:
        logits = predict(module, split)
        return {"holdout": accuracy((logits + fixed) / 2, split.labels), "holdout_s": accuracy(logits, split.labels)}

    return score


def pruned(run: Run, o: Graph, q: Graph | None, twin: QuantModule | None) -> Graph:
    """S: pruned in rounds from O to what Q leaves of the budget, and trained for the ensemble with Q.

    The cost falls by the same factor in every round, so early rounds remove more channels. The hold-out picks the epoch
    by the accuracy of the *ensemble*, with Q's logits from its integers.
    """
    path = run.out / "s.pt"
    if path.exists():
        return checkpoint.load_graph(path)
    options = run.recipe.s
    assert options is not None
    pruning = Pruning(options, o, *run.sample("scoring", options.scoring_images))
    full, target = pruning.cost(o), budget(run.recipe, o, q)
    loss = ensemble_loss(run, o, twin)
    score = ensemble_score(run, q)
    variants = run.recipe.objective.cached_augmentations
    graph = o
    for number in range(1, options.rounds + 1):
        round_path = run.out / f"s-{number}.pt"
        if round_path.exists():
            graph = checkpoint.load_graph(round_path)
            continue
        ceiling = full * (target / full) ** (number / options.rounds)
        graph = pruning.step(graph, ceiling)
        module = pruning.module(graph).to(run.device)
        short = replace(options, epochs=options.round_epochs, lr=options.round_lr)
        run.fit(f"s-{number}", module, short, loss, score, after_epoch=pruning.after_epoch(ceiling), variants=variants)
        graph = module.to_graph()
        run.save_graph(round_path, graph)
    graph = pruning.finish(graph, target)
    module = pruning.module(graph).to(run.device)
    run.fit("s", module, options, loss, score, variants=variants)
    graph = module.to_graph()
    run.save_graph(path, graph)
    return graph
