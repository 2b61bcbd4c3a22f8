"""Gradients of a float graph's cross entropy on scoring images: what Taylor and SNIP scores are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hce_engine.graph import Graph

from . import distributed
from .graph_module import NORM_KEYS, GraphModule

BATCH = 128


@dataclass(frozen=True)
class Gradients:
    """of: node name -> parameter name of the graph -> gradient of the mean loss, float64, shaped as the parameter.
    share: of the scoring images that this batch is."""

    of: Mapping[str, Mapping[str, np.ndarray]]
    share: float


def gradients(graph: Graph, images: Tensor, labels: Tensor) -> Iterator[Gradients]:
    """Gradients of convolutions, linear layers and batch norms, batch by batch in the order of the images.

    images: uint8 ``(N, C, H, W)``; labels: int64 ``(N,)``; the network runs on their device, with the running statistics
    of its batch norms: they are part of what is about to be pruned. (With batch statistics a filter's scale would cancel,
    and with it the sum of w * dL/dw over the filter.) A bias that :class:`GraphModule` does not train has none.
    Kernels that add in another order in every call are not used: a resumed run must rank channels as it did before.
    """
    module = GraphModule(graph).to(images.device).eval()
    nodes = [node for node in graph.nodes if node.op in ("conv2d", "linear", "batch_norm")]
    for start in range(0, len(labels), BATCH):
        part, truth = images[start : start + BATCH], labels[start : start + BATCH]
        module.zero_grad(set_to_none=True)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            F.cross_entropy(module(part), truth).backward()
        distributed.average(module, len(truth))  # of equal gradients; but a GPU may round otherwise than its neighbour
        found: dict[str, dict[str, np.ndarray]] = {}
        for node in nodes:
            layer = module.of(node.name)
            keys = {k: NORM_KEYS[k] for k in ("weight", "bias")} if node.op == "batch_norm" else {k: k for k in ("weight", "bias")}
            values = {name: getattr(layer, key) for key, name in keys.items()}
            found[node.name] = {
                name: value.grad.double().cpu().numpy() for name, value in values.items() if value is not None
            }
        yield Gradients(found, len(truth) / len(labels))
