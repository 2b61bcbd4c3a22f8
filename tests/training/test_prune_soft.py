"""Soft pruning: zeros where a removal would cut, filters that come back, and the removal in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.prune import channel_groups, prune, remove_zero_filters, zero_filters

from . import float_graphs
from .captured_networks import logits, random_halves, seamed


@pytest.mark.parametrize("make", [*float_graphs.GRAPHS.values(), seamed])
def test_zeros_are_where_a_removal_would_cut(make: object) -> None:
    graph = make()
    kept, gone = random_halves(graph)
    module = GraphModule(graph)
    zero_filters(module, kept)
    after = module.to_graph()
    for group in channel_groups(graph):
        for name in group.producers:
            slots = group.slots[name]
            dead = np.isin(slots, gone[group.name])
            for key in ("weight", "bias"):
                assert not after[name].params[key][dead].any()
                np.testing.assert_array_equal(after[name].params[key][~dead], graph[name].params[key][~dead])
    untouched = {n.name for n in graph.nodes} - {p for g in channel_groups(graph) for p in g.producers}
    for name in untouched:
        for key, value in graph[name].params.items():
            assert key == "mean" or np.array_equal(after[name].params[key], value)
    removed, cut = remove_zero_filters(after, channel_groups(after)), prune(after, kept)
    assert str(removed) == str(cut)
    for a, b in zip(removed.nodes, cut.nodes, strict=True):
        assert all(np.array_equal(a.params[k], b.params[k]) for k in b.params)


def without_offsets(graph: Graph) -> Graph:
    return graph.map(lambda n: replace(n, params={**n.params, "beta": 0 * n.params["beta"]}) if n.op == "batch_norm" else n)


def test_a_zero_filter_yields_its_norms_offset_alone() -> None:
    """Without offsets zeroing is removal: running means are those of zero filters."""
    graph = without_offsets(float_graphs.residual())
    kept, _ = random_halves(graph)
    module = GraphModule(graph)
    zero_filters(module, kept)
    np.testing.assert_allclose(logits(module.to_graph()), logits(prune(graph, kept)), rtol=1e-4, atol=1e-4)


def test_groups_that_are_not_named_stay() -> None:
    graph = float_graphs.residual()
    module = GraphModule(graph)
    zero_filters(module, {"l1.0.1.conv": np.array([1, 2])})
    after = module.to_graph()
    changed = [n.name for n in graph.nodes if any(not np.array_equal(after[n.name].params[k], v) for k, v in n.params.items())]
    assert changed == ["l1.0.1.conv", "l1.0.1.bn"]


def test_zero_filters_grow_again() -> None:
    graph = float_graphs.residual()
    module = GraphModule(graph)
    zero_filters(module, {"l1.0.1.conv": np.array([0])})
    weight = module.of("l1.0.1.conv").weight
    assert not weight[1:].any()
    images = torch.from_numpy(float_graphs.pictures(16, graph.input.spec.shape))
    F.cross_entropy(module.train()(images), torch.arange(16) % float_graphs.CLASSES).backward()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    beta = graph["l1.0.1.bn"].params["beta"]
    grown = weight.detach().flatten(1).any(dim=1).numpy()
    assert (beta[1:] > 0).any() and grown[1:][beta[1:] > 0].all()  # behind a relu, those with an offset above 0


def test_a_layer_of_zeros_is_an_error() -> None:
    graph = float_graphs.residual()
    dead = graph.map(lambda n: replace(n, params={**n.params, "weight": 0 * n.params["weight"]}) if n.name == "l1.0.1.conv" else n)
    with pytest.raises(InputError, match="at least one channel"):
        remove_zero_filters(dead, channel_groups(dead))
    assert remove_zero_filters(graph, channel_groups(graph)) is graph
