"""The networks of a sweep: the original with less and less of its FLOPs, by pruning, and in fewer and fewer bits.

Their accuracy is beside the point, so nothing is trained: filters go by their L1 norm, grids are fitted to a few images. Widths are
``multiple`` apart: of 1 (any width, odd ones included) or 8, which other engines prefer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError
from ..graph import Graph
from ..ledger import ensemble_cost
from ..preprocess import UINT8_NHWC, InputSpec
from ..training.channels import channel_groups
from ..training.freeze import freeze
from ..training.prune import prune_to_ratio
from ..training.quantize import QuantModule, calibrate

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MULTIPLES = (1, 8)
BITS = (8, 4, 3)


@dataclass(frozen=True)
class Variant:
    """axis: ``pruning`` or ``bits``.  value: share of the FLOPs that was to go, or bits.  multiple: of widths, 1 for bits."""

    axis: str
    value: float
    multiple: int
    graph: Graph

    @property
    def name(self) -> str:
        if self.axis == "bits":
            return f"{self.value:.0f} bits"
        return f"{100 * self.value:g} % pruned, widths of {self.multiple}"


def flops(graph: Graph) -> float:
    """In the paper's convention."""
    return ensemble_cost(graph).flops_paper


def pruned(original: Graph, ratios: Sequence[float] = RATIOS, multiples: Sequence[int] = MULTIPLES) -> list[Variant]:
    """Inside its blocks, so that maps which are added keep their width. Left out: what every layer's last channels cost too much for,
    and what another ratio gave already."""
    alone = _one_member(original)
    groups = [group for group in channel_groups(alone) if group.internal]
    found = []
    for multiple in multiples:
        seen = {flops(alone)}
        for ratio in ratios:
            with suppress(InputError):
                graph = prune_to_ratio(alone, groups, flops, (1 - ratio) * flops(alone), multiple=multiple)
                if flops(graph) not in seen:
                    seen.add(flops(graph))
                    found.append(Variant("pruning", ratio, multiple, graph))
    return found


def quantized(original: Graph, spec: InputSpec, images: np.ndarray, bits: Sequence[int] = BITS) -> list[Variant]:
    """images: some of the training set as the engine takes them."""
    alone = _one_member(original)
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if spec.kind == UINT8_NHWC:
        pixels = pixels.permute(0, 3, 1, 2)
    found = []
    for width in bits:
        module = QuantModule(alone, width, width)
        # The folded norms have no statistics to be re-estimated.
        calibrate(module, pixels, method="lsq", reestimate=False)
        found.append(Variant("bits", width, 1, freeze(module.eval())))
    return found


def _one_member(graph: Graph) -> Graph:
    member = graph.members[0]
    return replace(graph.only(member.name), members=(replace(member, role="vote"),))
