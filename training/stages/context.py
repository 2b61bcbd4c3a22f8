"""The three members of a run: O trained or loaded, Q quantized from O, S pruned from O beside Q.

Each function makes one member and leaves it in the run's folder; a file that is there already is the result of that
phase and is read instead. Graphs keep their batch norms here (training needs them) and are lowered on export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine.capture import capture
from hce_engine.errors import RecipeError
from hce_engine.graph import Graph
from hce_engine.ledger import ensemble_cost
from hce_engine.preprocess import InputSpec

from . import checkpoint
from .data import Augmentation, Batch, Batches, Split, mean_codes
from .evaluate import frozen_logits
from .freeze import freeze
from .graph_module import GraphModule
from .loop import Loss, Phase, Score, accuracy, fit, forward_of, predict
from .models import load_checkpoint, resolve
from .objectives import EnsembleObjective
from .progress import MetricsLog, TrainingProgress
from .prune import channel_groups, prune_to_ratio
from .quantize import QuantModule, calibrate
from .recipe import FitSection, Recipe


def flops(graph: Graph) -> float:
    """Cost of a graph's voting members in the paper's convention."""
    return ensemble_cost(graph).flops_paper


def phase_seed(seed: int, name: str) -> int:
    """A seed of its own for every phase, so that changing one phase leaves the others' randomness alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Run:
    """What every phase shares. ``checkpoint`` is where O comes from if it is not trained."""

    recipe: Recipe
    arch: str
    checkpoint: Path | None
    out: Path
    spec: InputSpec
    train: Split
    holdout: Split | None
    log: MetricsLog
    progress: TrainingProgress
    device: torch.device

    def fit(
        self, name: str, module: nn.Module, options: FitSection, loss: Loss, score: Score | None,
        on_epoch: Callable[[nn.Module, int], None] | None = None,
    ) -> None:
        """One resumable phase of training; arguments as of :class:`training.loop.Phase`."""
        data = self.recipe.data
        batches = Batches(
            self.train, options.batch_size, Augmentation(data.padding, data.flip), mean_codes(self.spec),
            drop_last=self.recipe.compile,
        )
        fit(module, Phase(
            name, options, batches, loss, phase_seed(self.recipe.seed, name), self.out / "state.pt", self.log,
            self.progress, compile=self.recipe.compile, precision=self.recipe.precision, score=score if self.holdout is not None else None, on_epoch=on_epoch,
        ))

    def forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """``module`` as the recipe says that networks run: compiled or not, in float32 or bfloat16."""
        return forward_of(module, self.recipe.compile, self.recipe.precision)

    def score(self, module: nn.Module) -> dict[str, float]:
        assert self.holdout is not None
        return {"holdout": accuracy(predict(module, self.holdout), self.holdout.labels)}

    def calibration_images(self, count: int) -> Tensor:
        """Up to ``count`` training images, uint8 ``(N, C, H, W)``, without augmentation."""
        generator = torch.Generator().manual_seed(phase_seed(self.recipe.seed, "calibration"))
        index = torch.randperm(len(self.train), generator=generator)[:count]
        return self.train.images[index.to(self.train.images.device)].permute(0, 3, 1, 2)

    def ensemble_loss(self, o: Graph, twin: QuantModule) -> Loss:
        """The recipe's objective for S; O and Q see the same augmented batch and get no gradient."""
        section = self.recipe.objective
        objective = EnsembleObjective(section.reading, section.w_ce, section.w_diff, section.temperature)
        original_logits = self.forward(GraphModule(o).to(self.device).eval())
        quantized_logits = self.forward(twin.eval())

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad():
                teachers = original_logits(batch.images), quantized_logits(batch.images)
            return objective(logits, *teachers, batch.labels)

        return loss

    def ensemble_score(self, q: Graph) -> Score:
        """Accuracy on the hold-out of S beside the integers of ``q``, and of S alone."""
        assert self.holdout is not None
        split = self.holdout
        fixed = torch.from_numpy(frozen_logits(q, self.spec, split.images.cpu().numpy())).to(self.device)

        def score(module: nn.Module) -> dict[str, float]:
            logits = predict(module, split)
            return {"holdout": accuracy((logits + fixed) / 2, split.labels), "holdout_s": accuracy(logits, split.labels)}

        return score


def cross_entropy(label_smoothing: float) -> Loss:
    return lambda logits, batch: F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)


def original(run: Run) -> Graph:
    """O: the captured network, trained from scratch, or with the values of a checkpoint."""
    path = run.out / "o.pt"
    if path.exists():
        return checkpoint.load_graph(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(phase_seed(run.recipe.seed, "init"))
        network, architecture = resolve(run.arch, num_classes=run.train.classes)
    if run.checkpoint is not None:
        load_checkpoint(network, run.checkpoint, architecture.renames)
    graph = capture(network.eval(), run.spec, member="o")
    if run.checkpoint is None:
        options = run.recipe.o
        module = GraphModule(graph).to(run.device)
        run.fit("o", module, options, cross_entropy(options.label_smoothing), run.score)
        graph = module.to_graph()
    checkpoint.save_graph(path, graph)
    return graph


def budget(recipe: Recipe, o: Graph, q: Graph) -> float:
    """What Q leaves for S, in the paper's FLOPs; raises RecipeError when that is nothing."""
    full, spent = flops(o), flops(q)
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
    module = QuantModule(o, recipe.q.weight_bits, recipe.q.activation_bits)
    calibrate(module, images, method="min-max", reestimate=False)
    budget(recipe, o, freeze(module))


def quantized(run: Run, o: Graph) -> tuple[Graph, QuantModule]:
    """Q: the frozen integer graph, and its trainable twin (which S learns beside).

    Post-training quantization (MSE clipping, batch norm re-estimated), then LSQ. The hold-out picks the epoch by the
    twin's accuracy; what is reported afterwards is the integers'.
    """
    options = run.recipe.q
    module = QuantModule(o, options.weight_bits, options.activation_bits).to(run.device)
    graph_path, module_path = run.out / "q.pt", run.out / "q-module.pt"
    if graph_path.exists():
        module.load_state_dict(checkpoint.load(module_path)["module"])
        return checkpoint.load_graph(graph_path), module.eval()
    images = run.calibration_images(options.calibration_images)
    calibrate(module, images)
    if run.holdout is not None:
        run.progress.line(f"q         post-training  holdout {run.score(module)['holdout']:.4f}")
    teacher = GraphModule(o).to(run.device).eval()
    teach = run.forward(teacher)
    objective = EnsembleObjective("kd", 1 - options.distill, options.distill, options.temperature)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = teach(batch.images) if options.distill else logits
        return objective(logits, target, target, batch.labels)

    def freeze_norms(module: nn.Module, epoch: int) -> None:
        assert isinstance(module, QuantModule)
        module.freeze_bn(epoch >= options.epochs - options.frozen_norm_epochs)

    run.fit("q", module, options, loss, run.score, on_epoch=freeze_norms)
    checkpoint.save(module_path, {"module": module.state_dict()})
    graph = freeze(module)
    checkpoint.save_graph(graph_path, graph)
    return graph, module.eval()


def pruned(run: Run, o: Graph, q: Graph, twin: QuantModule) -> Graph:
    """S: pruned in rounds from O to what Q leaves of the budget, and trained for the ensemble with Q.

    Only channels inside blocks are pruned: the residual stream carries what all blocks share. The cost falls by the same
    factor in every round, so early rounds remove more channels. The hold-out picks the epoch by the accuracy of the
    *ensemble*, with Q's logits from its integers.
    """
    path = run.out / "s.pt"
    if path.exists():
        return checkpoint.load_graph(path)
    options = run.recipe.s
    full, target = flops(o), budget(run.recipe, o, q)
    loss = run.ensemble_loss(o, twin)
    score = run.ensemble_score(q) if run.holdout is not None else None
    graph = o
    for number in range(1, options.rounds + 1):
        round_path = run.out / f"s-{number}.pt"
        if round_path.exists():
            graph = checkpoint.load_graph(round_path)
            continue
        groups = [group for group in channel_groups(graph) if group.internal]
        graph = prune_to_ratio(graph, groups, flops, full * (target / full) ** (number / options.rounds))
        module = GraphModule(graph).to(run.device)
        short = replace(options, epochs=options.round_epochs, lr=options.round_lr)
        run.fit(f"s-{number}", module, short, loss, score)
        graph = module.to_graph()
        checkpoint.save_graph(round_path, graph)
    module = GraphModule(graph).to(run.device)
    run.fit("s", module, options, loss, score)
    graph = module.to_graph()
    checkpoint.save_graph(path, graph)
    return graph
