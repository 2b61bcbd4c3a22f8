"""A small training that several processes share: ``torchrun -m tests.training.shared_training OUT STOP``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from hce_engine.training import distributed
from hce_engine.training.data import Augmentation, Batch, Batches, mean_codes, to_split
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.loop import Phase, accuracy, fit, predict
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.recipe import FitSection

from .float_graphs import CLASSES, Builder, pictures, residual

# Two processes share the last of the four batches of an epoch, 5 images, 2 and 3.
COUNT, KILLED = 29, 3
OPTIONS = FitSection(epochs=2, lr=0.05, batch_size=8, weight_decay=1e-3, grad_clip=5.0, ema=0.5, select="last")


def batches(share: tuple[int, int]) -> Batches:
    labels = np.arange(COUNT) % CLASSES
    split = to_split(pictures(COUNT).transpose(0, 2, 3, 1), labels, [str(c) for c in range(CLASSES)])
    return Batches(split, OPTIONS.batch_size, Augmentation(2, True), mean_codes(Builder().input), share=share)


def run(out: Path, stop: int) -> None:
    """One process: trains, killed after ``stop`` steps if that is not 0, and leaves its own weights in rankR.pt."""
    calls = iter(range(stop))
    rank, processes = distributed.share()
    split = batches((0, 1)).split

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if stop and next(calls, None) is None:
            os._exit(KILLED)
        return F.cross_entropy(logits, batch.labels)

    def score(module: torch.nn.Module) -> dict[str, float]:
        return {"holdout": accuracy(predict(module, split), split.labels), "rank": float(rank)}

    module = GraphModule(residual())
    with torch.no_grad():  # calibration on a GPU may differ a little; the first process's start counts
        for p in module.parameters():
            p.add_(rank)
    with distributed.joined(torch.device("cpu")):
        fit(module, Phase(
            "o", OPTIONS, batches((rank, processes)), loss, 7, out / "state.pt", MetricsLog(out / "metrics.jsonl"),
            TrainingProgress(False), score=score, save_seconds=0.0,
        ))
        distributed.wait_for_all()
    torch.save(module.state_dict(), out / f"rank{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]))
