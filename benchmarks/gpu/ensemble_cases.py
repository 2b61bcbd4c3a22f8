"""The ensembles that are measured: quantized and pruned members of a network beside the network itself.

The shipped ResNet-20 is trained. The others have random weights and the batch norm statistics of random images, quantized to 3
bits and cut to 43.5 % of the FLOPs by the rules of training; speed does not depend on what was learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from benchmarks.models import members as compressed
from benchmarks.models import original
from hce_engine import artifact
from hce_engine.backends import reference
from hce_engine.graph import Graph, merge, verify
from hce_engine.graph.passes import lower
from hce_engine.ledger import ensemble_cost
from hce_engine.preprocess import InputSpec, to_nchw
from hce_engine.training.models import resolve

from .float_shapes import SHIPPED
from .members import Network
from .names import Case
from .networks import Folded

MOST_IMAGES = 8192
CHECKED = 3  # images that the exact reference computes; a tile of lanes is 32


@dataclass(frozen=True)
class Made:
    """graph: members q, s and, as reference, o.  network: o in torch, with random weights.  images uint8 ``(8192, H, W, C)``;
    expected: logits of each member for the first CHECKED of them."""

    graph: Graph
    network: Network
    images: np.ndarray
    expected: dict[str, np.ndarray]

    def only(self, *names: str) -> Graph:
        return self.graph.only(*names)

    def flops_ratio(self, *names: str) -> float:
        """Of members together over the unpruned network, in the paper's convention (hce_engine/ledger.py)."""
        return ensemble_cost(self.only(*names)).flops_paper / ensemble_cost(self.only("o")).flops_paper


@lru_cache(maxsize=1)
def make(case: Case) -> Made:
    module, known = original(case.arch), resolve(case.arch)[1]
    graph = random_members(module, known.input, case) if case.bits else artifact.load(SHIPPED).graph
    images = np.random.default_rng(7).integers(0, 256, (MOST_IMAGES, *known.input.array_shape), dtype=np.uint8)
    expected = reference.run(graph, to_nchw(images[:CHECKED], known.input))
    return Made(graph, Network(Folded(module), {}, known.input), images, expected)


def random_members(module: torch.nn.Module, spec: InputSpec, case: Case) -> Graph:
    calibration = np.random.default_rng(1).integers(0, 256, (32, *spec.array_shape), dtype=np.uint8)
    parts = compressed(module, spec, calibration, case.bits, case.ratio)
    return verify(merge({name: lower(part) for name, part in parts.items()}, {"o": "reference"}))
