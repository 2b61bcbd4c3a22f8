"""Models to measure, made by one command where no training is needed: speed does not depend on what a network has learned.

    python -m benchmarks.models resnet20 --checkpoint resnet20.th --data cifar-10-batches-bin --bits 3 --ratio 0.435 -o r20.hce
    python -m benchmarks.models resnet50 -o r50.hce --images r50.npz

With a checkpoint, the original `o` is a real network. Without one its weights are random and its batch norms hold the statistics of
the images; its head is then fitted to ten classes of gratings (:func:`gratings`, written to ``--images``), because a peer that
quantizes `o` by itself is judged by how often it predicts what `o` predicts, and the logits of a random head are all alike.
`q` is `o` after post-training quantization and `s` is `o` pruned to a share of its FLOPs, neither of them trained.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

import hce_engine as hce
from benchmarks.gpu.networks import with_statistics
from hce_engine.artifact import Artifact
from hce_engine.backends.reference import images_at_once
from hce_engine.capture import capture
from hce_engine.graph import Graph
from hce_engine.images import load_labelled
from hce_engine.ledger import ensemble_cost
from hce_engine.preprocess import InputSpec
from hce_engine.training.freeze import freeze
from hce_engine.training.models import load_checkpoint, resolve
from hce_engine.training.prune import channel_groups, prune_to_ratio
from hce_engine.training.quantize import QuantModule, calibrate

CLASSES = 10


def gratings(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 ``(count, size, size, 3)``, labels int64): waves of ten directions, lengths and colours, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    y, x = np.mgrid[:size, :size] / size
    images = np.empty((count, size, size, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        turn, waves = np.pi * label / CLASSES, 4 + 2 * (label % 5)
        wave = np.sin(2 * np.pi * (waves * (x * np.cos(turn) + y * np.sin(turn)) + rng.random()))
        colour = 0.5 + 0.4 * np.cos(2 * np.pi * (label / CLASSES + np.arange(3) / 3))
        light = 128 + 90 * wave[..., None] * colour + rng.normal(0, 12, (size, size, 3))
        image[:] = np.clip(light, 0, 255)
    return images, labels.astype(np.int64)


def normalised(images: np.ndarray, spec: InputSpec) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    return (x - torch.tensor(spec.mean).view(1, -1, 1, 1)) / torch.tensor(spec.std).view(1, -1, 1, 1)


@torch.no_grad()
def fit_head(module: nn.Module, images: Tensor, labels: Tensor, ridge: float = 1e-2) -> None:
    """Sets the last linear layer to the ridge regression of the classes (+10 for the right one, 0 else) on its inputs."""
    head = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for batch in images.split(images_at_once(*images.shape[2:])):
        module(batch)
    hook.remove()
    x = torch.cat(features).double()
    mean = x.mean(0)
    centred = x - mean
    wanted = 10.0 * nn.functional.one_hot(labels, head.out_features).double()
    gram = centred.T @ centred
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0)))
    head.weight.copy_(weight.T)
    head.bias.copy_(wanted.mean(0) - mean @ weight)


def original(arch: str, images: np.ndarray | None = None, labels: np.ndarray | None = None, seed: int = 0) -> nn.Module:
    """A network with random weights, the batch norm statistics of ``images`` and a head fitted to their labels."""
    torch.manual_seed(seed)
    module, known = resolve(arch)
    if images is None:
        images, labels = gratings(2 * CLASSES, known.input.array_shape[0], seed)
    assert labels is not None
    x = normalised(images, known.input)
    with_statistics(module, x[: 2 * CLASSES])
    fit_head(module, x, torch.from_numpy(labels))
    return module


def members(module: nn.Module, spec: InputSpec, images: np.ndarray, bits: int, ratio: float) -> dict[str, Graph]:
    """``o``, ``q`` of so many bits, calibrated on uint8 NHWC ``images``, and ``s`` at ``ratio`` of the FLOPs (none at 1)."""
    o = capture(module, spec)
    twin = QuantModule(o, bits, bits)
    calibrate(twin, torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))

    def flops(graph: Graph) -> float:
        return ensemble_cost(graph).flops_paper

    found = {"q": freeze(twin)}
    if ratio < 1:
        groups = [group for group in channel_groups(o) if group.internal]
        found["s"] = prune_to_ratio(o, groups, flops, ratio * flops(o))
    return {**found, "o": o}


def make(
    arch: str, path: Path | None = None, *, bits: int = 4, ratio: float = 0.39, checkpoint: Path | None = None,
    images: np.ndarray | None = None, labels: np.ndarray | None = None,
) -> Artifact:
    """The ensemble of q and s with o as reference, verified, and written to ``path`` if given."""
    module, known = resolve(arch)
    size = known.input.array_shape[0]
    if images is None or labels is None:
        images, labels = gratings(64 if size < 64 else 2 * CLASSES, size, 0)
    if checkpoint is None:
        module = original(arch, images, labels)
    else:
        load_checkpoint(module, checkpoint, known.renames)
    parts = members(module, known.input, images[: 256 if size < 64 else 2 * CLASSES], bits, ratio)
    return hce.build(parts, known.input, path=path, reference="o")


@click.command()
@click.argument("arch")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path))
@click.option("--bits", default=4, show_default=True)
@click.option("--ratio", default=0.39, show_default=True, help="FLOPs of s against o; 1: no s.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Weights of o; default: random ones.")
@click.option("--data", help="Labelled images for calibration; default: gratings.")
@click.option("--images", "images_path", type=click.Path(path_type=Path), help="Write 512 gratings and labels to this .npz file.")
def main(
    arch: str, out: Path, bits: int, ratio: float, checkpoint: Path | None, data: str | None, images_path: Path | None,
) -> None:
    images = labels = None
    if data:
        train = load_labelled(data, split="train")
        images, labels = train.images[:512], train.labels[:512]
    elif checkpoint is None:
        size = resolve(arch)[1].input.array_shape[0]
        images, labels = gratings(512, size, 1)
        if images_path:
            np.savez(images_path, images=images, labels=labels)
        images, labels = images[: 40 * CLASSES], labels[: 40 * CLASSES]
    artifact = make(arch, out, bits=bits, ratio=ratio, checkpoint=checkpoint, images=images, labels=labels)
    click.echo(f"{out}: {', '.join(m.name for m in artifact.graph.members)}")


if __name__ == "__main__":
    main()
