"""The groups of channels that graphs have, and why others have none."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.errors import GraphError
from hce_engine.graph import Node, TensorSpec
from hce_engine.training.channels import PAD, channel_groups, excluded, pruning_scope

from . import float_graphs
from .captured_networks import captured, seamed


def test_groups_of_option_a_are_the_insides_of_blocks() -> None:
    graph = captured("resnet20")
    groups = channel_groups(graph)
    assert [g.name for g in groups] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)]
    assert all(g.internal for g in groups)
    first = groups[0]
    assert (first.producers, first.norms, first.consumers) == (("layer1.0.conv1",), ("layer1.0.bn1",), ("layer1.0.conv2",))
    reasons = excluded(graph)
    assert "logits" in reasons["linear"]
    assert "zero maps" in reasons["conv1"]
    assert "zero maps" in reasons["layer3.2.conv2"]


def test_groups_of_option_b_include_the_streams() -> None:
    groups = {g.name: g for g in channel_groups(captured("resnet20-b"))}
    stream = groups["conv1"]
    assert stream.producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert not stream.internal
    assert set(stream.consumers) == {"layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.shortcut.0"}
    assert sum(g.internal for g in groups.values()) == 9


def test_groups_of_mobilenet_tie_the_depthwise_layer_to_its_expansion() -> None:
    groups = {g.name: g for g in channel_groups(captured("mobilenetv2", 64))}
    group = groups["features.2.conv.0.0"]
    assert group.producers == ("features.2.conv.0.0", "features.2.conv.1.0")
    assert group.consumers == ("features.2.conv.2",)
    assert group.internal


def test_scopes() -> None:
    graph = captured("resnet20-b")
    assert pruning_scope(graph, "all") == channel_groups(graph)
    inside = pruning_scope(graph, "internal")
    assert [g.name for g in inside] == [g.name for g in channel_groups(graph) if g.internal]
    assert 0 < len(inside) < len(channel_groups(graph))


@pytest.mark.parametrize("name", float_graphs.GRAPHS)
def test_slots_cover_producers_and_norms(name: str) -> None:
    graph = float_graphs.GRAPHS[name]()
    for group in channel_groups(graph):
        assert set(group.slots) == {*group.producers, *group.norms}
        for layer, slots in group.slots.items():
            assert slots.shape == graph[layer].spec.shape[:1]
        made = np.concatenate([group.slots[p] for p in group.producers])
        assert set(made[made != PAD].tolist()) == set(range(group.channels))


def test_a_norm_behind_a_concat_serves_parts_of_its_group() -> None:
    (group,) = channel_groups(seamed())
    assert (group.channels, group.norms) == (10, ("left.bn", "right.bn", "whole.bn"))
    assert [group.slots[n].tolist() for n in group.norms] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], list(range(10))]


def test_quantized_graphs_are_refused() -> None:
    graph = captured("resnet20")
    codes = Node("codes", "qrecode", ("image",), TensorSpec((3, 32, 32), "u8", 1.0), {"qmin": 0, "qmax": 255, "k": 65536})
    with pytest.raises(GraphError, match="prune before quantization"):
        channel_groups(graph.with_nodes([graph.nodes[0], codes, *graph.nodes[1:]]))
