"""Q, the quantized member: calibrated, trained with its quantizers, and frozen to integers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hce_engine.errors import RecipeError
from hce_engine.graph import Graph
from hce_engine.training import checkpoint
from hce_engine.training.data import Batch
from hce_engine.training.freeze import freeze
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.objectives import EnsembleObjective
from hce_engine.training.quantize import QuantModule, calibrate, lowered
from hce_engine.training.recipe import QuantizeSection, Recipe

from .context import Run, flops


def twin_of(o: Graph, options: QuantizeSection, w_bits: int, a_bits: int) -> QuantModule:
    return QuantModule(o, w_bits, a_bits, method=options.method, edge_bits=options.edge_bits)


def widths(options: QuantizeSection) -> list[tuple[int, int]]:
    """(weight bits, activation bits) that Q is trained at, the final ones last."""
    final = (options.weight_bits, options.activation_bits)
    steps = [(max(bits, final[0]), max(bits, final[1])) for bits in options.progressive]
    return [step for step in steps if step != final] + [final]


def budget(recipe: Recipe, o: Graph, q: Graph | None) -> float:
    """What is left for S, in the paper's FLOPs; raises RecipeError when that is nothing."""
    assert recipe.s is not None
    full, spent = flops(o), flops(q) if q is not None else 0.0
    left = recipe.s.flops_ratio * full - spent
    if left <= 0:
        raise RecipeError(
            f"recipe {recipe.name}", expected="s.flops_ratio above what Q alone costs", fix="raise it, or lower Q's bits",
            got=f"{recipe.s.flops_ratio} with Q at {spent / full:.3f}",
        )
    return left


def require_budget(recipe: Recipe, o: Graph, images: Tensor) -> None:
    """Refuses an impossible ``s.flops_ratio`` before anything is trained: Q's cost is known from the layers and bits.

    images: a few, uint8 ``(N, C, H, W)``; Q's grids must exist for it to be frozen, whatever they are.
    """
    if recipe.q is None or recipe.s is None:
        return
    module = twin_of(o, recipe.q, recipe.q.weight_bits, recipe.q.activation_bits)
    calibrate(module, images, method="min-max", reestimate=False)
    budget(recipe, o, freeze(module))


def quantized(run: Run, o: Graph) -> tuple[Graph, QuantModule]:
    """Q: the frozen integer graph, and its trainable twin (which S learns beside).

    Post-training quantization, then quantization-aware training, first at the wider of progressive widths. The hold-out
    picks the epoch by the twin's accuracy; what is reported afterwards is the integers'.
    """
    options = run.recipe.q
    assert options is not None
    steps = widths(options)
    graph_path, module_path = run.out / "q.pt", run.out / "q-module.pt"
    if graph_path.exists():
        module = twin_of(o, options, *steps[-1]).to(run.device)
        module.load_state_dict(checkpoint.load(module_path)["module"])
        return checkpoint.load_graph(graph_path), module.eval()
    images, _ = run.sample("calibration", options.calibration_images)
    wider: QuantModule | None = None
    for bits in steps:
        name = "q" if bits == steps[-1] else f"q-w{bits[0]}a{bits[1]}"
        path = module_path if name == "q" else run.out / f"{name}.pt"
        if wider is None:
            module = twin_of(o, options, *bits).to(run.device)
            calibrate(module, images, method=options.calibration, reestimate=options.reestimate)
        else:
            module = lowered(wider, *bits, images)
        if path.exists():
            module.load_state_dict(checkpoint.load(path)["module"])
        else:
            _train(run, name, o, module, options)
            run.save(path, {"module": module.state_dict()})
        wider = module
    graph = freeze(module)
    run.save_graph(graph_path, graph)
    return graph, module.eval()


def _train(run: Run, name: str, o: Graph, module: QuantModule, options: QuantizeSection) -> None:
    """One width. Batch norms end frozen at the final one; before, their statistics still have to move."""
    final = name == "q"
    epochs = options.epochs if final else options.progressive_epochs
    if run.holdout is not None:
        run.progress.line(f"{name:<9} before training  holdout {run.score(module)['holdout']:.4f}")
    teach = run.forward(GraphModule(o).to(run.device).eval())
    objective = EnsembleObjective(
        "kd", 1 - options.distill, options.distill, options.temperature, options.label_smoothing
    )

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = teach(batch.images) if options.distill else logits
        return objective(logits, target, target, batch.labels)

    def freeze_norms(module: nn.Module, epoch: int) -> None:
        assert isinstance(module, QuantModule)
        module.freeze_bn(final and epoch >= epochs - options.frozen_norm_epochs)

    run.fit(name, module, replace(options, epochs=epochs), loss, run.score, on_epoch=freeze_norms)
