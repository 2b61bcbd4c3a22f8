"""Soft filter pruning (SFP; He et al., IJCAI 2018): filters are set to zero, and may grow again.

After every epoch the filters that pruning would remove are zeroed in the full network and go on training; after the last
one they are removed. A filter that was zeroed by mistake can thus come back, which removal does not allow.

What a zero filter leaves behind is its batch norm's offset: beta stays, or the filter would never see a gradient behind
its relu. Its running mean becomes 0, which is what a zero filter yields. Removal drops that constant; the epochs that
follow make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hce_engine.graph import Graph
from hce_engine.training.channels import PAD, ChannelGroup, channel_groups
from hce_engine.training.graph_module import GraphModule

from .criteria import Scores
from .removal import prune

Array = np.ndarray


@torch.no_grad()
def zero_filters(module: GraphModule, kept: Mapping[str, Array]) -> None:
    """Sets to zero, in place, the filters and biases of every channel of the groups in ``kept`` that is not kept."""
    graph = module.graph
    readers = graph.consumers()
    for group in channel_groups(graph):
        if group.name not in kept:
            continue
        gone = np.ones(group.channels + 1, bool)  # the last entry serves PAD
        gone[kept[group.name]] = False
        gone[PAD] = False
        for name in group.producers:
            rows = torch.from_numpy(np.flatnonzero(gone[group.slots[name]]))
            layer = module.of(name)
            for key in ("weight", "bias"):
                if getattr(layer, key) is not None:
                    getattr(layer, key)[rows] = 0
            for reader in readers[name]:
                if reader.op == "batch_norm":
                    module.of(reader.name).get_buffer("running_mean")[rows] = 0


def _alive(graph: Graph, group: ChannelGroup) -> Array:
    """Channels with a filter that is not all zero, bool (channels,)."""
    alive = np.zeros(group.channels, bool)
    for name in group.producers:
        weight, slots = graph[name].params["weight"], group.slots[name]
        alive[slots[weight.reshape(len(weight), -1).any(axis=1) & (slots != PAD)]] = True
    return alive


def zeros_last(scores: Scores) -> Scores:
    """``scores`` with the channels that did not grow again behind all others: gamma and beta alone may still rank high."""
    return lambda graph, group: np.where(_alive(graph, group), scores(graph, group), -1.0)


def remove_zero_filters(graph: Graph, groups: Sequence[ChannelGroup]) -> Graph:
    """``graph`` without those channels of ``groups`` whose filters are zero in every layer that makes them.

    Raises InputError when that would leave a layer without channels.
    """
    kept = {group.name: np.flatnonzero(_alive(graph, group)) for group in groups}
    kept = {group.name: kept[group.name] for group in groups if len(kept[group.name]) < group.channels}
    return prune(graph, kept) if kept else graph
