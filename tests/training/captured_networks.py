"""Networks of the zoo as float graphs with lively batch norms, and what pruning tests ask of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from hce_engine.backends import reference
from hce_engine.capture import capture
from hce_engine.graph import Graph, Node
from hce_engine.ledger import member_costs
from hce_engine.training.models import resolve
from hce_engine.training.prune import channel_groups

from .float_graphs import Builder


def seamed() -> Graph:
    """A sum across the seam of a concat: ``left`` (4 channels) and ``right`` (6) beside ``whole`` (10)."""
    b = Builder(seed=5)
    parts = b.concat("cat", b.conv_bn("left", "norm", 4, relu=False), b.conv_bn("right", "norm", 6, relu=False))
    return b.head(b.clamp("relu", b.add("sum", parts, b.conv_bn("whole", "norm", 10, relu=False))))


def flops(graph: Graph) -> float:
    return member_costs(graph)["o"].flops_paper


def network(name: str) -> nn.Module:
    """A new network in eval mode; the same weights in every call."""
    torch.manual_seed(0)
    module, _ = resolve(name)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.3, 0.6)
            nn.init.normal_(m.bias, 0.0, 0.3)
            nn.init.normal_(m.running_mean, 0.0, 0.3)
    return module.eval()


@lru_cache
def captured(name: str, size: int = 32) -> Graph:
    return capture(network(name), replace(resolve(name)[1].input, shape=(3, size, size)))


def logits(graph: Graph, count: int = 2) -> np.ndarray:
    shape = graph.input.spec.shape
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    if graph.input.spec.dtype == "f32":
        images = rng.normal(size=(count, *shape)).astype(np.float32)
    return reference.run(graph, images)["o"]


def unread(graph: Graph, gone: dict[str, np.ndarray]) -> Graph:
    """The unpruned graph in which no consumer reads the removed channels: what pruning must equal."""
    groups = {g.name: g for g in channel_groups(graph)}
    changed: dict[str, Node] = {}
    for name, dead in gone.items():
        group = groups[name]
        for consumer in group.consumers:
            node = changed.get(consumer, graph[consumer])
            weight = node.params["weight"].copy()
            width = weight.shape[1] // group.channels  # pixels per channel behind a flatten
            assert weight.shape[1] == width * group.channels
            weight.reshape(weight.shape[0], group.channels, width, *weight.shape[2:])[:, dead] = 0
            changed[consumer] = replace(node, params={**node.params, "weight": weight})
    return graph.map(lambda n: changed.get(n.name, n))


def random_halves(graph: Graph, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(kept, gone): a random half of every group, sorted."""
    rng = np.random.default_rng(seed)
    kept, gone = {}, {}
    for group in channel_groups(graph):
        order = rng.permutation(group.channels)
        count = max(1, group.channels // 2)
        kept[group.name], gone[group.name] = np.sort(order[:count]), np.sort(order[count:])
    return kept, gone
