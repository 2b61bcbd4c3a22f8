"""How many channels layers keep: costs are met, shares and rankings are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.prune import channel_groups, choose, l1_scores, prune, prune_to_ratio, pruning_scope, relative
from hce_engine.training.prune.allocation import ALLOCATIONS

from .captured_networks import captured, flops, seamed


def widths(graph: Graph) -> dict[str, int]:
    return {g.name: g.channels for g in channel_groups(graph)}


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


def test_uniform_keeps_equal_shares() -> None:
    graph = captured("resnet20")
    pruned = prune_to_ratio(graph, channel_groups(graph), flops, 0.4 * flops(graph))
    full, left = widths(graph), widths(pruned)
    # Some share f has left = floor(f * full) or, given a channel back, one more in every layer.
    assert max((left[n] - 1) / full[n] for n in full) < min((left[n] + 1) / full[n] for n in full) < 0.5


def test_stages_keep_shares_in_the_given_proportion_over_rounds() -> None:
    """With 1, 1/2 and 1/4 the widths 16, 32 and 64 become equal; relative to each round's graph they would drift apart."""
    whole = graph = captured("resnet20")
    for ratio in (0.5, 0.35, 0.2):
        graph = prune_to_ratio(graph, channel_groups(graph), flops, ratio * flops(whole), allocation="stages",
                               stage_keep=(1.0, 0.5, 0.25), original=whole)
        left = set(widths(graph).values())
        assert max(left) - min(left) <= 1
        assert ratio - 0.02 < flops(graph) / flops(whole) <= ratio


@pytest.mark.parametrize("stage_keep", [(), (1.0, 0.5), (1.0, 0.5, 0.5, 0.5), (1.0, 0.0, 1.0)])
def test_stages_need_a_share_each(stage_keep: tuple[float, ...]) -> None:
    graph = captured("resnet20")
    with pytest.raises(InputError, match="3 positive numbers"):
        prune_to_ratio(graph, channel_groups(graph), flops, 0.5 * flops(graph), allocation="stages", stage_keep=stage_keep)


def test_global_keeps_the_best_channels_of_the_whole_network() -> None:
    """If every channel costs the same, these are the N highest scores, whatever layers they are in."""
    graph = captured("resnet20")
    groups = channel_groups(graph)
    rng = np.random.default_rng(3)
    scores = {g.name: rng.uniform(0, k + 1, g.channels) for k, g in enumerate(groups)}  # later layers score higher
    chosen = choose(graph, groups, lambda g: float(sum(widths(g).values())), 100, scores=lambda _, g: scores[g.name],
                    allocation="global")
    assert sum(map(len, chosen.values())) == 100
    kept = np.concatenate([scores[n][c] for n, c in chosen.items()])
    best = np.array([scores[g.name].max() for g in groups])
    everything = np.sort(np.concatenate(list(scores.values())))
    assert np.isin(best, kept).all()  # no layer is emptied
    forced = int((best < np.sort(kept)[len(groups)]).sum())
    np.testing.assert_array_equal(np.sort(kept)[forced:], everything[-(100 - forced):])
    assert len(chosen["layer1.0.conv1"]) < len(chosen["layer3.2.conv1"]) / 4


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("scope", ["internal", "all"])
def test_multiples(allocation: str, scope: str) -> None:
    graph = captured("resnet20-b")
    groups = pruning_scope(graph, scope)
    stage_keep = (1.0, 0.8, 0.6) if allocation == "stages" else ()
    pruned = prune_to_ratio(graph, groups, flops, 0.45 * flops(graph), scores=relative(l1_scores), allocation=allocation,
                            stage_keep=stage_keep, multiple=4)
    full, left = widths(graph), widths(pruned)
    inside = {g.name for g in groups}
    assert {n for n in full if left[n] != full[n]} <= inside
    assert all(left[n] % 4 == 0 for n in inside)
    assert 0.37 < flops(pruned) / flops(graph) <= 0.45


def test_a_width_below_the_multiple_stays_whole() -> None:
    graph = captured("resnet20")
    groups = channel_groups(graph)
    chosen = choose(graph, groups, flops, 0.9 * flops(graph), multiple=32)
    assert {len(c) for n, c in chosen.items() if n.startswith("layer1")} == {16}
    assert {len(c) for n, c in chosen.items() if n.startswith("layer2")} == {32}
    assert len(chosen["layer3.2.conv1"]) == 32
    with pytest.raises(InputError, match="fewest channels possible"):
        choose(graph, groups, flops, 0.7 * flops(graph), multiple=32)


def test_all_scope_prunes_the_stream() -> None:
    graph = captured("resnet20-b")
    pruned = prune_to_ratio(graph, pruning_scope(graph, "all"), flops, 0.4 * flops(graph))
    assert pruned["conv1"].params["weight"].shape[0] < 16
    assert widths(pruned)["layer1.0.conv1"] > widths(
        prune_to_ratio(graph, pruning_scope(graph, "internal"), flops, 0.4 * flops(graph)))["layer1.0.conv1"]


def test_a_producer_of_a_concat_is_never_emptied() -> None:
    graph = seamed()
    groups = channel_groups(graph)
    with pytest.raises(InputError, match="would have none"):
        prune(graph, {groups[0].name: [5, 6]})
    quiet_left = lambda _, group: np.r_[np.zeros(4), np.arange(1.0, 7.0)]  # noqa: E731
    for allocation in ("uniform", "global"):
        (kept,) = choose(graph, groups, flops, 0.35 * flops(graph), scores=quiet_left, allocation=allocation).values()
        assert (kept < 4).sum() == 1
        assert len(kept) > 1


def test_iterative_schedule_and_limits() -> None:
    graph = captured("resnet20")
    full = flops(graph)
    assert prune_to_ratio(graph, channel_groups(graph), flops, full) is graph
    assert all(len(c) == g.channels for g, c in zip(
        channel_groups(graph), choose(graph, channel_groups(graph), flops, full).values(), strict=True))
    step = graph
    for ratio in (0.8, 0.6, 0.4):
        step = prune_to_ratio(step, channel_groups(step), flops, ratio * full)
        assert flops(step) <= ratio * full
    for allocation in ("uniform", "global"):
        with pytest.raises(InputError, match="fewest channels possible"):
            prune_to_ratio(graph, channel_groups(graph), flops, 0.01 * full, allocation=allocation)
        with pytest.raises(InputError, match="prune more groups"):
            prune_to_ratio(graph, [], flops, 0.5 * full, allocation=allocation)
    with pytest.raises(InputError, match="uniform, global, stages"):
        prune_to_ratio(graph, channel_groups(graph), flops, 0.5 * full, allocation="equal")
