"""Removal of channels: the smaller graph computes what the whole one computes without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hce_engine.capture import capture
from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.preprocess import FLOAT32_NCHW, InputSpec
from hce_engine.training.prune import channel_groups, excluded, prune, prune_to_ratio

from .captured_networks import captured, flops, logits, random_halves, unread


def remove_half(graph: Graph) -> tuple[Graph, Graph]:
    """(pruned, the whole graph that must be equal) with a random half of every group gone."""
    kept, gone = random_halves(graph)
    return prune(graph, kept), unread(graph, gone)


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


@pytest.mark.parametrize("kept", [[], [16], [-1], [0, 0], [0.5], [[0]]])
def test_impossible_choices(kept: list) -> None:
    with pytest.raises(InputError, match=r"layer1\.0\.conv1"):
        prune(captured("resnet20"), {"layer1.0.conv1": kept})


def test_unknown_group_says_why() -> None:
    with pytest.raises(InputError, match="zero maps"):
        prune(captured("resnet20"), {"conv1": [0]})
