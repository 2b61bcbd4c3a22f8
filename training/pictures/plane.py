"""What networks answer on a random 2-D plane through an image: the numbers behind decision regions.

The plane is ``image + a * u + b * v`` with u and v Gaussian and orthogonal, scaled so that a and b are the root mean
square change of a pixel value, in codes of 0 to 255 (the HCE paper, arXiv 2301.07794, Fig. 2 and 5, spans its planes by
two random vectors as well; it does not say how long they are). Every point is rounded and clipped to a valid image, so
that quantized and float networks see the same pixels.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.ledger import ensemble_cost
from hce_engine.preprocess import InputSpec
from hce_engine.training.evaluate import frozen_logits
from hce_engine.training.freeze import freeze
from hce_engine.training.prune import channel_groups, prune_to_ratio
from hce_engine.training.quantize import QuantModule, calibrate

BITS = (5, 4, 3)
SIZES = (0.9, 0.7, 0.4, 0.1)


@dataclass(frozen=True)
class Plane:
    """images: uint8 ``(side * side, H, W, C)``, rows from the largest b to the smallest, in them a ascending.
    radius: largest |a| and |b|, in codes.  side: points per axis, odd, so that the image itself is the middle one.
    """

    images: np.ndarray
    radius: float
    side: int


def random_plane(image: np.ndarray, radius: float, side: int, seed: int) -> Plane:
    """The plane of ``seed`` through ``image``, uint8 ``(H, W, C)``.

    Raises InputError for other images, and for a radius or side that spans nothing.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise InputError("decision regions", expected="one uint8 image (H, W, C)", got=f"{image.shape} {image.dtype}",
                         fix="pass pixels, not normalised values")
    if not radius > 0 or side < 3 or side % 2 == 0:
        raise InputError("decision regions", expected="a radius above 0 and an odd number of points of at least 3",
                         got=f"{radius} and {side}", fix="the middle point is the image itself")
    u, v = np.random.default_rng(seed).standard_normal((2, image.size))
    v -= u * (u @ v) / (u @ u)
    u, v = (x / np.sqrt((x @ x) / image.size) for x in (u, v))
    steps = np.linspace(-radius, radius, side)
    centre = image.astype(np.float64).ravel()
    points = np.empty((side * side, image.size), np.uint8)
    for row, b in enumerate(steps[::-1]):  # one row at a time: the float64 plane would be eight times the images
        points[row * side : (row + 1) * side] = np.clip(np.rint(centre + b * v + steps[:, None] * u), 0, 255)
    return Plane(points.reshape(-1, *image.shape), radius, side)


def answers(graph: Graph, spec: InputSpec, images: np.ndarray, device: str = "auto") -> np.ndarray:
    """float32 logits ``(N, classes)`` of a network with one member, quantized or float, by the engine."""
    whole = graph if any(n.op.startswith("q") for n in graph.nodes) else lower(graph)
    return frozen_logits(whole, spec, images, device)


def quantized_variants(o: Graph, images: np.ndarray) -> dict[str, Graph]:
    """O in the widths of :data:`BITS`, post-training only: MSE clipping and re-estimated batch norms on ``images``.

    images: a few hundred of the training set, uint8 ``(N, H, W, C)``.
    """
    variants = {}
    for bits in BITS:
        module = QuantModule(o, bits, bits)
        calibrate(module, torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))
        variants[f"{bits}-bit"] = freeze(module)
    return variants


def pruned_variants(o: Graph) -> dict[str, Graph]:
    """O at the sizes of :data:`SIZES`, in parameters: L1 filter pruning inside blocks, without any training after it.

    A size that a network cannot reach in that way, because every layer keeps a channel, is left out.
    """
    groups = [group for group in channel_groups(o) if group.internal]

    def size(graph: Graph) -> float:
        return ensemble_cost(graph).params

    variants = {}
    for share in SIZES:
        with suppress(InputError):
            variants[f"{100 * share:.0f} % size"] = prune_to_ratio(o, groups, size, share * size(o))
    return variants
