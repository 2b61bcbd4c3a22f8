"""Pruning: the groups that graphs have, exact removal, and hitting a cost."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hce_engine.backends import reference
from hce_engine.capture import capture
from hce_engine.errors import GraphError, InputError
from hce_engine.graph import Graph, Node, TensorSpec
from hce_engine.graph.passes import lower
from hce_engine.ledger import member_costs
from hce_engine.preprocess import FLOAT32_NCHW, InputSpec
from hce_engine.training.models import resolve
from hce_engine.training.prune import channel_groups, excluded, l1_scores, prune, prune_to_ratio


def flops(graph: Graph) -> float:
    return member_costs(graph)["o"].flops_paper


@lru_cache
def captured(name: str, size: int = 32) -> Graph:
    torch.manual_seed(0)
    module, arch = resolve(name)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.3, 0.6)
            nn.init.normal_(m.bias, 0.0, 0.3)
            nn.init.normal_(m.running_mean, 0.0, 0.3)
    return capture(module, replace(arch.input, shape=(3, size, size)))


def masked(graph: Graph, gone: dict[str, np.ndarray]) -> Graph:
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


def logits(graph: Graph, count: int = 2) -> np.ndarray:
    shape = graph.input.spec.shape
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    if graph.input.spec.dtype == "f32":
        images = rng.normal(size=(count, *shape)).astype(np.float32)
    return reference.run(graph, images)["o"]


def remove_half(graph: Graph, seed: int = 0, only_internal: bool = False) -> tuple[Graph, Graph]:
    """(pruned, masked) with a random half of every group gone."""
    rng = np.random.default_rng(seed)
    kept, gone = {}, {}
    for g in channel_groups(graph):
        if g.internal or not only_internal:
            order = rng.permutation(g.channels)
            count = max(1, g.channels // 2)
            kept[g.name], gone[g.name] = np.sort(order[:count]), order[count:]
    return prune(graph, kept), masked(graph, gone)


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


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("resnet20-b", 32), ("vgg16-bn", 32), ("wrn16-8", 32),
                                            ("resnet50", 64), ("mobilenetv2", 64)])
def test_removal_equals_masking(name: str, size: int) -> None:
    graph = captured(name, size)
    pruned, reference_graph = remove_half(graph)
    want = logits(reference_graph)
    np.testing.assert_allclose(logits(pruned), want, rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))
    assert flops(pruned) < 0.62 * flops(graph)
    lowered = logits(lower(pruned))
    np.testing.assert_allclose(lowered, want, rtol=1e-3, atol=1e-3 * float(np.abs(want).max()))


class Tangle(nn.Module):
    """Concat, a sum across the seam of a concat, a grouped convolution, flatten with pixels, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 1)
        self.d = nn.Conv2d(10, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.e = nn.Conv2d(8, 5, 1)
        self.f = nn.Linear(5 * 16, 12)
        self.g = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        y = self.grouped(self.d(torch.relu(y + self.c(x))))
        return self.g(torch.relu(self.f(torch.flatten(self.e(y), 1))))


def test_tangle() -> None:
    graph = capture(Tangle().eval(), InputSpec(FLOAT32_NCHW, (3, 8, 8), (0.0,) * 3, (1.0,) * 3))
    groups = {g.name: g for g in channel_groups(graph)}
    assert {n: (g.channels, g.internal) for n, g in groups.items()} == {"a": (10, False), "e": (5, True), "f": (12, True)}
    assert groups["a"].producers == ("a", "b", "c")
    reasons = excluded(graph)
    assert "2 groups" in reasons["d"]
    assert "2 groups" in reasons["grouped"]
    pruned, reference_graph = remove_half(graph)
    np.testing.assert_allclose(logits(pruned), logits(reference_graph), rtol=1e-4, atol=1e-4)
    kept = prune(graph, {"a": [0, 5, 9]})
    assert [kept[n].params["weight"].shape[0] for n in "abc"] == [1, 2, 3]


def test_a_producer_of_a_concat_is_never_emptied() -> None:
    graph = capture(Tangle().eval(), InputSpec(FLOAT32_NCHW, (3, 8, 8), (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(InputError, match="would have none"):
        prune(graph, {"a": [5, 6]})

    def parameters(g: Graph) -> float:
        return float(sum(n.params["weight"].size for n in g.nodes if n.op in ("conv2d", "linear")))

    group = next(g for g in channel_groups(graph) if g.name == "a")
    loud = graph.map(lambda n: replace(n, params={**n.params, "weight": n.params["weight"] * 9}) if n.name == "b" else n)
    least = prune_to_ratio(loud, [group], parameters, 0.68 * parameters(graph))
    assert least["a"].params["weight"].shape[0] >= 1


def test_scores_are_filter_norms() -> None:
    graph = captured("resnet20-b")
    groups = {g.name: g for g in channel_groups(graph)}
    inner = groups["layer1.0.conv1"]
    weight = graph["layer1.0.conv1"].params["weight"]
    np.testing.assert_allclose(l1_scores(graph, inner), np.abs(weight).sum(axis=(1, 2, 3)), rtol=1e-5)
    stream = groups["conv1"]
    total = sum(np.abs(graph[p].params["weight"]).sum(axis=(1, 2, 3)) for p in stream.producers)
    np.testing.assert_allclose(l1_scores(graph, stream), total, rtol=1e-5)


@pytest.mark.parametrize("kept", [[], [16], [-1], [0, 0], [0.5], [[0]]])
def test_impossible_choices(kept: list) -> None:
    with pytest.raises(InputError, match=r"layer1\.0\.conv1"):
        prune(captured("resnet20"), {"layer1.0.conv1": kept})


def test_unknown_group_says_why() -> None:
    with pytest.raises(InputError, match="zero maps"):
        prune(captured("resnet20"), {"conv1": [0]})


@pytest.mark.parametrize("ratio", [0.9, 0.435, 0.392, 0.1])
def test_ratio_is_met_from_below_and_closely(ratio: float) -> None:
    graph = captured("resnet20")
    pruned = prune_to_ratio(graph, channel_groups(graph), flops, ratio * flops(graph))
    assert ratio - 0.01 < flops(pruned) / flops(graph) <= ratio


def test_strongest_filters_stay() -> None:
    graph = captured("resnet20")
    pruned = prune_to_ratio(graph, channel_groups(graph), flops, 0.5 * flops(graph))
    before, after = graph["layer3.1.conv1"].params["weight"], pruned["layer3.1.conv1"].params["weight"]
    norms = np.sort(np.abs(before).sum(axis=(1, 2, 3)))[-len(after):]
    np.testing.assert_allclose(np.sort(np.abs(after).sum(axis=(1, 2, 3))), norms, rtol=1e-5)


def test_iterative_schedule_and_limits() -> None:
    graph = captured("resnet20")
    full = flops(graph)
    assert prune_to_ratio(graph, channel_groups(graph), flops, full) is graph
    step = graph
    for ratio in (0.8, 0.6, 0.4):
        step = prune_to_ratio(step, channel_groups(step), flops, ratio * full)
        assert flops(step) <= ratio * full
    with pytest.raises(InputError, match="fewest channels possible"):
        prune_to_ratio(graph, channel_groups(graph), flops, 0.01 * full)
    with pytest.raises(InputError, match="prune more groups"):
        prune_to_ratio(graph, [], flops, 0.5 * full)


def test_quantized_graphs_are_refused() -> None:
    graph = captured("resnet20")
    codes = Node("codes", "qrecode", ("image",), TensorSpec((3, 32, 32), "u8", 1.0), {"qmin": 0, "qmax": 255, "k": 65536})
    with pytest.raises(GraphError, match="prune before quantization"):
        channel_groups(graph.with_nodes([graph.nodes[0], codes, *graph.nodes[1:]]))
