"""What the phases of a run share: data, recipe, folder and progress, and how a network is trained and scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hce_engine.graph import Graph
from hce_engine.ledger import ensemble_cost
from hce_engine.preprocess import InputSpec
from hce_engine.training import checkpoint, distributed
from hce_engine.training.data import Augmentation, Batches, mean_codes
from hce_engine.training.epochs import Epochs
from hce_engine.training.folder_data import AnySplit, FolderBatches, FolderSplit
from hce_engine.training.image_files import ResizedCrop
from hce_engine.training.loop import Loss, Phase, Score, accuracy, fit, forward_of, predict
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.recipe import FitSection, Recipe


def flops(graph: Graph) -> float:
    """Cost of a graph's voting members in the paper's convention."""
    return ensemble_cost(graph).flops_paper


def phase_seed(seed: int, name: str, repeat: int = 0) -> int:
    """A seed of its own for every phase, so that changing one phase leaves the others' randomness alone.

    repeat: another draw of the same phase (FitSection.repeat).
    """
    text = f"{seed}/{name}/{repeat}" if repeat else f"{seed}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Run:
    """One run under way. ``checkpoint`` is where O comes from if it is not trained."""

    recipe: Recipe
    arch: str
    checkpoint: Path | None
    out: Path
    spec: InputSpec
    train: AnySplit
    holdout: AnySplit | None
    log: MetricsLog
    progress: TrainingProgress
    device: torch.device

    def batches(self, size: int, variants: int = 0) -> Epochs:
        """Augmented training batches; ``variants``: of how many fixed augmentations per image, 0 for fresh ones."""
        data, seed = self.recipe.data, phase_seed(self.recipe.seed, "variants")
        if isinstance(self.train, FolderSplit):
            crop = ResizedCrop(data.min_area, data.flip)
            return FolderBatches(self.train, size, crop, self.recipe.compile, variants, seed)
        window = Augmentation(data.padding, data.flip)
        return Batches(self.train, size, window, mean_codes(self.spec), self.recipe.compile, variants, seed)

    def fit(
        self, name: str, module: nn.Module, options: FitSection, loss: Loss, score: Score | None, *,
        on_epoch: Callable[[nn.Module, int], None] | None = None,
        after_epoch: Callable[[nn.Module, int], None] | None = None, variants: int = 0,
    ) -> None:
        """One resumable phase of training; arguments as of :class:`training.loop.Phase`."""
        fit(module, Phase(
            name, options, self.batches(options.batch_size, variants), loss,
            phase_seed(self.recipe.seed, name, options.repeat), self.out / "state.pt", self.log, self.progress,
            compile=self.recipe.compile, precision=self.recipe.precision,
            score=score if self.holdout is not None else None, on_epoch=on_epoch, after_epoch=after_epoch,
        ))

    def save(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes a file whose presence decides what comes next, when no process is still looking for it."""
        distributed.wait_for_all()
        checkpoint.save(path, value)

    def save_graph(self, path: Path, graph: Graph) -> None:
        self.save(path, checkpoint.graph_to_dict(graph))

    def forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """``module`` as the recipe says that networks run: compiled or not, in float32 or bfloat16."""
        return forward_of(module, self.recipe.compile, self.recipe.precision)

    def score(self, module: nn.Module) -> dict[str, float]:
        assert self.holdout is not None
        return {"holdout": accuracy(predict(module, self.holdout), self.holdout.labels)}

    def sample(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        """Up to ``count`` training images without augmentation, uint8 ``(N, C, H, W)``, and their labels."""
        generator = torch.Generator().manual_seed(phase_seed(self.recipe.seed, name))
        index = torch.randperm(len(self.train), generator=generator)[:count]
        return self.train.sample(index), self.train.labels[index.to(self.device)]
