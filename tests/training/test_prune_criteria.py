"""Scores of channels against their definitions, computed another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.prune import CRITERIA, ChannelGroup, channel_groups, l1_scores, relative, scores_of

from . import float_graphs
from .captured_networks import captured, seamed

NONE = torch.zeros(0)


def group(graph: Graph, name: str) -> ChannelGroup:
    return next(g for g in channel_groups(graph) if g.name == name)


def filters(graph: Graph, name: str) -> torch.Tensor:
    return torch.from_numpy(graph[name].params["weight"]).double().flatten(1)


def by_weights(criterion: str, rows: torch.Tensor) -> torch.Tensor:
    return {"l1": lambda: rows.norm(p=1, dim=1), "l2": lambda: rows.norm(dim=1),
            "fpgm": lambda: torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)}[criterion]()


def scoring(graph: Graph, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(float_graphs.pictures(count, graph.input.spec.shape))
    return images, torch.arange(count) % float_graphs.CLASSES


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_weight_criteria(criterion: str) -> None:
    graph = captured("resnet20-b")
    scores = scores_of(criterion, graph, NONE, NONE)
    inner, stream = group(graph, "layer1.0.conv1"), group(graph, "conv1")
    np.testing.assert_allclose(scores(graph, inner), by_weights(criterion, filters(graph, "layer1.0.conv1")), rtol=1e-12)
    total = sum(by_weights(criterion, filters(graph, p)) for p in stream.producers)
    assert len(stream.producers) == 4
    np.testing.assert_allclose(scores(graph, stream), total, rtol=1e-12)


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_parts_of_a_group_add_to_their_channels(criterion: str) -> None:
    graph = seamed()
    (whole,) = channel_groups(graph)
    parts = torch.cat([by_weights(criterion, filters(graph, f"{n}.conv")) for n in ("left", "right")])
    want = parts + by_weights(criterion, filters(graph, "whole.conv"))
    np.testing.assert_allclose(scores_of(criterion, graph, NONE, NONE)(graph, whole), want, rtol=1e-12)


def test_fpgm_finds_the_filter_that_others_replace() -> None:
    """One at the middle of all the others scores least, though it is not small."""
    graph = float_graphs.plain()
    weight = graph["c2"].params["weight"].copy()
    others = weight[1:] + 5
    weight[0], weight[1:] = others.mean(axis=0), others
    graph = graph.map(lambda n: replace(n, params={**n.params, "weight": weight}) if n.name == "c2" else n)
    assert scores_of("fpgm", graph, NONE, NONE)(graph, group(graph, "c2")).argmin() == 0
    assert scores_of("l2", graph, NONE, NONE)(graph, group(graph, "c2")).argmin() != 0


def test_bn_scale() -> None:
    graph = captured("resnet20-b")
    stream = group(graph, "conv1")
    assert stream.norms == ("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")
    want = sum(np.abs(graph[n].params["gamma"]) for n in stream.norms)
    np.testing.assert_allclose(scores_of("bn-scale", graph, NONE, NONE)(graph, stream), want, rtol=1e-6)
    plain = float_graphs.plain()
    with pytest.raises(InputError, match="12 without one"):
        scores_of("bn-scale", plain, NONE, NONE)(plain, group(plain, "c2"))


def test_a_norm_behind_a_concat_scores_each_part_by_its_own_channels() -> None:
    b = float_graphs.Builder(seed=6)
    graph = b.head(b.bn("norm.all", b.concat("cat", b.conv("left", "norm", 4), b.conv("right", "norm", 6))))
    gamma = np.abs(graph["norm.all"].params["gamma"])
    for criterion, values in (("bn-scale", gamma), ("l1", np.concatenate([
            by_weights("l1", filters(graph, "left")), by_weights("l1", filters(graph, "right"))]))):
        scores = scores_of(criterion, graph, NONE, NONE)
        np.testing.assert_allclose(scores(graph, group(graph, "left")), values[:4], rtol=1e-6)
        np.testing.assert_allclose(scores(graph, group(graph, "right")), values[4:], rtol=1e-6)


def gated_loss(graph: Graph, gates: dict[str, tuple[str, ...]], channel: int, g: float) -> float:
    """Mean loss if what the named layers yield in a channel is multiplied by g; float64."""

    def scaled(node: object) -> object:
        params = dict(node.params)
        for key in gates.get(node.name, ()):
            params[key] = params[key].astype(np.float64)
            params[key][channel] *= g
        return params

    module = GraphModule(graph).double().eval()
    for name in gates:
        layer = module.of(name)
        for key, value in scaled(graph[name]).items():
            target = {"gamma": "weight", "beta": "bias"}.get(key, key)
            if key in gates[name] and getattr(layer, target) is not None:
                getattr(layer, target).data.copy_(torch.from_numpy(value))
    images, labels = scoring(graph, 96)
    with torch.no_grad():
        return float(F.cross_entropy(module(images), labels))


@pytest.mark.parametrize(("make", "name", "gates"), [
    (float_graphs.residual, "l1.0.1.conv", ["l1.0.1.bn"]),
    (float_graphs.residual, "l3.0.2.conv", ["l3.0.2.bn", "l3.0.short.bn"]),
    (float_graphs.mobile, "b2.expand.conv", ["b2.expand.bn", "b2.depthwise.bn"]),
    (float_graphs.plain, "c2", ["c2"]),
    (float_graphs.plain, "fc1", ["fc1"]),
])
def test_taylor_is_the_squared_derivative_of_a_gate(make: object, name: str, gates: list[str]) -> None:
    graph = make()
    scores = scores_of("taylor", graph, *scoring(graph, 96))(graph, group(graph, name))
    keys = {g: ("gamma", "beta") if g.endswith(".bn") else ("weight", "bias") for g in gates}
    step = 1e-6  # small, lest a relu changes sides
    for channel in (0, 3, len(scores) - 1):
        derivatives = [
            (gated_loss(graph, {g: keys[g]}, channel, 1 + step) - gated_loss(graph, {g: keys[g]}, channel, 1 - step)) / (2 * step)
            for g in gates
        ]
        assert scores[channel] == pytest.approx(sum(d**2 for d in derivatives), rel=1e-3, abs=1e-12)


def test_taylor_averages_squares_over_batches() -> None:
    graph = float_graphs.residual()
    images, labels = scoring(graph, 200)
    one = group(graph, "l1.0.1.conv")

    def scores(part: slice) -> np.ndarray:
        return scores_of("taylor", graph, images[part], labels[part])(graph, one)

    whole, first, rest = scores(slice(None)), scores(slice(0, 128)), scores(slice(128, 200))
    np.testing.assert_allclose(whole, 0.64 * first + 0.36 * rest, rtol=1e-4)


def test_relative_scores_compare_layers() -> None:
    graph = captured("resnet20")
    scores = relative(l1_scores)
    for g in channel_groups(graph):
        assert scores(graph, g).mean() == pytest.approx(1)
        np.testing.assert_array_equal(np.argsort(scores(graph, g)), np.argsort(l1_scores(graph, g)))
    dead = graph.map(lambda n: replace(n, params={**n.params, "weight": 0 * n.params["weight"]}) if n.op == "conv2d" else n)
    assert not scores(dead, channel_groups(dead)[0]).any()


def test_unknown_criterion() -> None:
    with pytest.raises(InputError, match=", ".join(CRITERIA)):
        scores_of("l3", captured("resnet20"), NONE, NONE)
