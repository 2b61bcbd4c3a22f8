"""The logits that S learns from: of O, and of Q beside which S votes.

They are constants of the image, so with a fixed set of augmentations they are computed once, before S is trained, and
looked up afterwards: two forward passes less per step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hce_engine.graph import Graph
from hce_engine.training import checkpoint
from hce_engine.training.data import Batch
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.loop import Loss
from hce_engine.training.objectives import WITHOUT_Q, EnsembleObjective
from hce_engine.training.quantize import QuantModule

from .context import Run

_CACHE_BATCH = 500
Forward = Callable[[Tensor], Tensor]


def ensemble_loss(run: Run, o: Graph, twin: QuantModule | None) -> Loss:
    """The recipe's objective for S. O and Q see the same augmented batch and get no gradient; plain distillation
    does not ask Q, and cross entropy alone asks nobody."""
    section = run.recipe.objective
    assert run.recipe.s is not None
    smoothing = run.recipe.s.label_smoothing
    objective = EnsembleObjective(section.reading, section.w_ce, section.w_diff, section.temperature, smoothing)
    if not section.w_diff:
        return lambda logits, batch: objective(logits, logits, logits, batch.labels)
    forwards = [run.forward(GraphModule(o).to(run.device).eval())]
    if twin is not None and section.reading not in WITHOUT_Q:
        forwards.append(run.forward(twin.eval()))
    if section.cached_augmentations:
        tables = _tables(run, forwards, section.cached_augmentations)

        def cached(logits: Tensor, batch: Batch) -> Tensor:
            assert batch.variant is not None
            o_logits, q_logits = (table[batch.variant, batch.index] for table in (tables[0], tables[-1]))
            return objective(logits, o_logits, q_logits, batch.labels)

        return cached

    def computed(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teachers = [forward(batch.images) for forward in forwards]
        return objective(logits, teachers[0], teachers[-1], batch.labels)

    return computed


@torch.no_grad()
def _tables(run: Run, forwards: list[Forward], variants: int) -> list[Tensor]:
    """Logits float32 ``(variants, N, classes)`` of each teacher, from ``teachers.pt`` if that was written before."""
    path = run.out / "teachers.pt"
    if path.exists():
        stored = checkpoint.load(path)
        return [stored[str(i)].to(run.device) for i in range(len(forwards))]
    batches, tables = run.batches(_CACHE_BATCH, variants), []
    for forward in forwards:
        rows = [[forward(images) for images in batches.of_variant(k)] for k in range(variants)]
        tables.append(torch.stack([torch.cat(parts) for parts in rows]))
    checkpoint.save(path, {str(i): table.cpu() for i, table in enumerate(tables)})
    return tables
