"""Unstructured pruning: single weights are set to zero and held there while the rest trains.

The graph keeps its shape; zeros are its masks, so nothing has to be stored beside it. What this saves is counted by
:func:`sparse_flops` and would be saved only by an engine that skips zeros; ours does not.

    l1    |w|, one ranking over all convolutions and linear layers     Han et al., NeurIPS 2015
    snip  |w * dL/dw| of the mean loss over the scoring images          Lee et al., ICLR 2019
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node
from hce_engine.ledger import node_cost

from .gradients import gradients
from .graph_module import GraphModule

Array = np.ndarray
CRITERIA = ("l1", "snip")


def _layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op in ("conv2d", "linear")]


def _positions(node: Node) -> int:
    """Output pixels at which one weight is used: what it costs in multiply-accumulates."""
    return int(np.prod(node.spec.shape[1:]))


def sparse_flops(graph: Graph) -> float:
    """The paper's FLOPs of a float graph if multiplications by weights that are zero cost nothing.

    Batch norms count in full, as they act on outputs; without zeros this is the ledger's ``flops_paper``.
    """
    dense = sum(node_cost(node).flops_paper for node in graph.nodes)
    zeros = sum(_positions(n) * (n.params["weight"].size - np.count_nonzero(n.params["weight"])) for n in _layers(graph))
    return float(dense - zeros)


def magnitudes(graph: Graph) -> dict[str, Array]:
    """|w| of every convolution and linear layer, float64, shaped as the weights."""
    return {node.name: np.abs(node.params["weight"].astype(np.float64)) for node in _layers(graph)}


def snip_scores(graph: Graph, images: Tensor, labels: Tensor) -> dict[str, Array]:
    """|w * dL/dw| of every convolution and linear layer; images and labels as of :func:`gradients`."""
    total: dict[str, Array] = {node.name: np.zeros(node.params["weight"].shape) for node in _layers(graph)}
    for found in gradients(graph, images, labels):
        for name in total:
            total[name] += found.share * found.of[name]["weight"]
    return {name: np.abs(graph[name].params["weight"] * gradient) for name, gradient in total.items()}


def scores_of(criterion: str, graph: Graph, images: Tensor, labels: Tensor) -> dict[str, Array]:
    """Scores of every weight by the criterion of that name; ``snip`` looks at the images. Raises InputError for another."""
    if criterion == "l1":
        return magnitudes(graph)
    if criterion == "snip":
        return snip_scores(graph, images, labels)
    raise InputError("pruning of weights", expected="a criterion of " + ", ".join(CRITERIA), got=criterion, fix="choose one of them")


def mask_to_ratio(graph: Graph, scores: Mapping[str, Array], target: float) -> Graph:
    """``graph`` with its worst weights at zero, as few as bring :func:`sparse_flops` to at most ``target``.

    scores: per layer, shaped as its weights; the ranking is global.  target: paper's FLOPs.
    Weights that are zero stay zero, and the best weight of every layer stays. Raises InputError when even those cost more.
    """
    layers = _layers(graph)
    values = np.concatenate([scores[n.name].reshape(-1) for n in layers])
    prices = np.concatenate([np.full(n.params["weight"].size, _positions(n), np.int64) for n in layers])
    alive = np.concatenate([n.params["weight"].reshape(-1) != 0 for n in layers])
    starts = np.cumsum([0, *(n.params["weight"].size for n in layers)])
    must = np.zeros(len(values), bool)
    for first, last in pairwise(starts):
        must[first + int(np.argmax(np.where(alive[first:last], values[first:last], -1.0)))] = True
    order = np.lexsort((-values, ~must, ~alive))  # zeros last, the best of each layer first
    order = order[: int(alive.sum())]
    fixed = sparse_flops(graph) - float(prices[alive].sum())
    total = fixed + np.cumsum(prices[order])
    count = int(np.searchsorted(total, target, side="right"))
    if count < int((must & alive).sum()):
        raise InputError(
            "pruning of weights", expected=f"a cost of at most {target:g}", got=f"{total[int((must & alive).sum()) - 1]:g} with one weight per layer",
            fix="allow a higher cost",
        )
    kept = np.zeros(len(values), bool)
    kept[order[:count]] = True
    masks = {n.name: kept[a:b].reshape(n.params["weight"].shape) for n, (a, b) in zip(layers, pairwise(starts), strict=True)}

    def masked(node: Node) -> Node:
        if node.name not in masks:
            return node
        weight = np.where(masks[node.name], node.params["weight"], np.float32(0))
        return replace(node, params={**node.params, "weight": weight})

    return graph.map(masked)


class Masked(nn.Module):
    """weight * mask: the parametrization that holds weights at zero, whatever steps, averages or restores do to them."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def hold_zeros(module: GraphModule) -> GraphModule:
    """Holds every weight of convolutions and linear layers at zero that is zero in ``module.graph``; returns ``module``.

    The mask is part of the forward pass, so a held weight gets no gradient, is zero in every copy of the module (compiled,
    averaged, in another process), comes back from a state dict, and is zero in :meth:`GraphModule.to_graph`.
    """
    for node in _layers(module.graph):
        weight = node.params["weight"]
        if not weight.all():
            layer = module.of(node.name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            mask = torch.empty_like(layer.weight).copy_(torch.from_numpy(weight != 0))
            parametrize.register_parametrization(layer, "weight", Masked(mask))
    return module
