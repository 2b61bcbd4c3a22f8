"""From the keys of [s] to graphs: every combination meets its costs, and the defaults are what they always were."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.masks import sparse_flops
from hce_engine.training.prune import (
    Pruning,
    channel_groups,
    choose,
    l1_scores,
    prune_to_ratio,
    pruning_scope,
    relative,
    scores_of,
)
from hce_engine.training.recipe import PruneSection

from .captured_networks import captured, flops
from .float_graphs import CLASSES, pictures, residual

COUNT = 24


def pruning(graph: Graph, **keys: object) -> Pruning:
    images = torch.from_numpy(pictures(COUNT, graph.input.spec.shape))
    return Pruning(PruneSection(epochs=1, lr=0.1, **keys), graph, images, torch.arange(COUNT) % CLASSES)


def equal(a: Graph, b: Graph) -> bool:
    return str(a) == str(b) and all(
        np.array_equal(x.params[k], y.params[k]) for x, y in zip(a.nodes, b.nodes, strict=True) for k in x.params)


def rounds(plan: Pruning, ratios: tuple[float, ...]) -> Graph:
    """What stages/pruned.py does, without the training."""
    graph, full = plan.original, plan.cost(plan.original)
    for ratio in ratios:
        graph = plan.step(graph, ratio * full)
        module = plan.module(graph)
        after = plan.after_epoch(ratio * full)
        if after is not None:
            after(module, 0)
        graph = module.to_graph()
    return plan.finish(graph, ratios[-1] * full)


def test_defaults_are_l1_uniform_inside_blocks() -> None:
    whole = captured("resnet20-b")
    want = whole
    for ratio in (0.75, 0.43):
        groups = [g for g in channel_groups(want) if g.internal]
        want = prune_to_ratio(want, groups, flops, ratio * flops(whole), scores=l1_scores)
    assert equal(rounds(pruning(whole), (0.75, 0.43)), want)


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "taylor", "bn-scale"])
@pytest.mark.parametrize(("allocation", "stage_keep"), [("uniform", ()), ("global", ()), ("stages", (0.9, 0.6, 0.7))])
@pytest.mark.parametrize("method", ["hard", "soft"])
def test_every_combination_meets_the_cost(criterion: str, allocation: str, stage_keep: tuple[float, ...], method: str) -> None:
    whole = residual()
    plan = pruning(whole, criterion=criterion, allocation=allocation, stage_keep=stage_keep, pruning=method, multiple=2)
    graph = rounds(plan, (0.8, 0.65))
    assert 0.5 < flops(graph) / flops(whole) <= 0.65
    assert all(g.channels % 2 == 0 for g in channel_groups(graph))


def test_global_compares_layers_in_their_own_units() -> None:
    """Sums of |w| grow with the layer, Taylor scores do not: the former are divided by the layer's mean."""
    whole = residual()
    groups, target = pruning_scope(whole, "internal"), 0.6 * flops(whole)

    def left(graph: Graph) -> dict[str, int]:
        return {g.name: g.channels for g in pruning_scope(graph, "internal")}

    for criterion in ("l1", "taylor"):
        plan = pruning(whole, criterion=criterion, allocation="global")
        scores = scores_of(criterion, whole, plan.images, plan.labels)
        raw, own = (left(prune_to_ratio(whole, groups, flops, target, scores=s, allocation="global"))
                    for s in (scores, relative(scores)))
        assert raw != own
        assert left(plan.step(whole, target)) == (own if criterion == "l1" else raw)


def test_scope_all_reaches_the_stream() -> None:
    whole = captured("resnet20-b")
    assert rounds(pruning(whole, scope="all"), (0.5,))["conv1"].params["weight"].shape[0] < 16
    assert rounds(pruning(whole), (0.5,))["conv1"].params["weight"].shape[0] == 16


def test_soft_keeps_the_width_until_the_end() -> None:
    whole = captured("resnet20")
    plan, target = pruning(whole, pruning="soft", criterion="l2"), 0.5 * flops(whole)
    assert plan.step(whole, target) is whole
    module = plan.module(whole)
    plan.after_epoch(target)(module, 0)
    zeroed = module.to_graph()
    assert flops(zeroed) == flops(whole)
    chosen = choose(whole, channel_groups(whole), flops, target, scores=scores_of("l2", whole, plan.images, plan.labels))
    for name, kept in chosen.items():
        alive = zeroed[name].params["weight"].reshape(len(zeroed[name].params["weight"]), -1).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(alive), kept)
    finished = plan.finish(zeroed, target)
    assert {g.name: g.channels for g in channel_groups(finished)} == {n: len(c) for n, c in chosen.items()}
    module = GraphModule(whole)  # weights in which nothing is zero, such as those of a moving average
    assert flops(plan.finish(module.to_graph(), target)) <= target


@pytest.mark.parametrize("criterion", ["l1", "snip"])
def test_weights_are_zeroed_and_held(criterion: str) -> None:
    whole = captured("resnet20")
    plan = pruning(whole, granularity="weight", criterion=criterion)
    assert plan.cost(whole) == flops(whole)
    graph = rounds(plan, (0.7, 0.5))
    assert flops(graph) == flops(whole)
    assert 0.499 < plan.cost(graph) / flops(whole) <= 0.5
    assert plan.cost(graph) == sparse_flops(graph)
    held = [m for m in plan.module(graph).modules() if hasattr(m, "parametrizations")]
    assert len(held) >= 15
    assert plan.after_epoch(0.0) is None


def test_hard_does_nothing_after_an_epoch() -> None:
    whole = captured("resnet20")
    plan = pruning(whole)
    assert plan.after_epoch(1.0) is None
    assert plan.finish(whole, 1.0) is whole
    assert plan.step(whole, flops(whole)) is whole
    with pytest.raises(InputError, match="fewest channels possible"):
        plan.step(whole, 1.0)


def test_scores_that_look_at_images() -> None:
    whole = residual()
    for keys in ({"criterion": "taylor", "allocation": "global"}, {"criterion": "snip", "granularity": "weight"}):
        plan = pruning(whole, **keys)
        other = Pruning(plan.options, whole, 255 - plan.images, plan.labels)
        target = 0.6 * flops(whole)
        again, changed = (partial(p.step, whole, target) for p in (plan, other))
        first = plan.step(whole, target)
        assert equal(first, again())
        assert not equal(first, changed())
