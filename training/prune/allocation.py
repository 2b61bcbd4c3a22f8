"""How many channels each layer keeps so that the whole network meets a cost.

    uniform   all groups keep the same share of their channels
    stages    shares in fixed proportion to each other, one number per resolution of the feature maps
    global    the best channels of all groups, by one ranking (scores must be comparable: criteria.relative)

Each allocation is a sequence of rungs, from the fewest channels to all, along which no width falls; the highest rung
within the cost is found by bisection. A rung moves many layers or a whole step of ``multiple`` at once, so single layers
then get their next step, those of highest score first, as long as the cost allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.channels import ChannelGroup, channel_groups

from .criteria import Scores, l1_scores
from .removal import prune

Array = np.ndarray
Counts = Mapping[str, int]
ALLOCATIONS = ("uniform", "global", "stages")


@dataclass(frozen=True)
class _Ranked:
    """A group with its channels from best to worst. ``scores``: by channel;  ``fewest``: how many stay at least."""

    group: ChannelGroup
    scores: Array
    order: Array
    fewest: int
    multiple: int

    def rounded(self, count: int) -> int:
        """``count`` down to a multiple, unless it is all channels or fewer than must stay."""
        if count < self.group.channels:
            count -= count % self.multiple
        return max(self.fewest, count)

    def kept(self, count: int) -> Array:
        return np.sort(self.order[:count])


@dataclass(frozen=True)
class _Ladder:
    """rungs: how many there are.  counts(i): channels per group on rung i.  above(i, counts): the next width of each
    group that may get one on top of rung i.  worth: of the first channel that the group would get, by group name."""

    rungs: int
    counts: Callable[[int], dict[str, int]]
    above: Callable[[int, Counts], Counts]
    worth: Callable[[str, int], float]


def _ranked(group: ChannelGroup, scores: Array, multiple: int) -> _Ranked:
    """The best channel of every producer comes first: no producer is ever emptied."""
    order = np.argsort(-scores, kind="stable")
    best = {int(order[np.isin(order, group.slots[name])][0]) for name in group.producers}
    is_first = np.isin(order, list(best))
    fewest = min(group.channels, -(-len(best) // multiple) * multiple)
    return _Ranked(group, scores, np.concatenate([order[is_first], order[~is_first]]), fewest, multiple)


def _by_share(ranked: Sequence[_Ranked], full: Sequence[float]) -> _Ladder:
    """Group k keeps f * full[k] of its channels, if it has them; the rungs are all f at which a width changes."""
    shares = sorted({k / size for r, size in zip(ranked, full, strict=True) for k in range(1, r.group.channels + 1)})

    def counts(i: int) -> dict[str, int]:
        # 1e-9: k / c * c may fall just below k
        return {
            r.group.name: r.rounded(min(r.group.channels, int(shares[i] * size + 1e-9)))
            for r, size in zip(ranked, full, strict=True)
        }

    named = {r.group.name: r for r in ranked}

    def worth(name: str, count: int) -> float:
        r = named[name]
        return float(r.scores[r.order[count]] / (r.scores.mean() or 1.0))

    return _Ladder(len(shares), counts, lambda i, best: counts(i + 1) if i + 1 < len(shares) else best, worth)


def _by_rank(ranked: Sequence[_Ranked]) -> _Ladder:
    """Rung i keeps the i best of all channels that need not stay anyway."""
    free = [(-float(r.scores[c]), k, n) for k, r in enumerate(ranked) for n, c in enumerate(r.order) if n >= r.fewest]
    owners = np.array([k for _, k, _ in sorted(free)], np.int64)

    def counts(i: int) -> dict[str, int]:
        chosen = np.bincount(owners[:i], minlength=len(ranked))
        return {r.group.name: r.rounded(r.fewest + int(n)) for r, n in zip(ranked, chosen, strict=True)}

    def above(i: int, best: Counts) -> Counts:
        return {r.group.name: min(r.group.channels, best[r.group.name] + r.multiple) for r in ranked}

    named = {r.group.name: r for r in ranked}
    return _Ladder(len(owners) + 1, counts, above, lambda name, count: float(named[name].scores[named[name].order[count]]))


def _stage_weights(graph: Graph, groups: Sequence[ChannelGroup], stage_keep: Sequence[float]) -> list[float]:
    """The number of each group's stage: stages are the resolutions of the maps of ``groups``, finest first, a vector last."""
    areas = [int(np.prod(graph[g.name].spec.shape[1:])) for g in groups]
    stages = sorted(set(areas), reverse=True)
    if len(stages) != len(stage_keep) or min(stage_keep) <= 0:
        raise InputError(
            "pruning by stages", expected=f"{len(stages)} positive numbers, one per resolution ({', '.join(map(str, stages))} pixels)",
            got=str(list(stage_keep)), fix="correct stage_keep",
        )
    return [stage_keep[stages.index(area)] for area in areas]


def _ladder(
    graph: Graph, ranked: Sequence[_Ranked], allocation: str, stage_keep: Sequence[float], original: Graph
) -> _Ladder:
    groups = [r.group for r in ranked]
    if allocation == "global":
        return _by_rank(ranked)
    if allocation == "uniform":
        return _by_share(ranked, [float(g.channels) for g in groups])
    if allocation == "stages":
        widths = {g.name: g.channels for g in channel_groups(original)}
        weights = _stage_weights(graph, groups, stage_keep)
        return _by_share(ranked, [widths[g.name] * weight for g, weight in zip(groups, weights, strict=True)])
    raise InputError("pruning", expected="an allocation of " + ", ".join(ALLOCATIONS), got=allocation, fix="choose one of them")


def choose(
    graph: Graph, groups: Sequence[ChannelGroup], cost: Callable[[Graph], float], target: float, *,
    scores: Scores = l1_scores, allocation: str = "uniform", stage_keep: Sequence[float] = (), multiple: int = 1,
    original: Graph | None = None,
) -> dict[str, Array]:
    """The channels that each group keeps so that ``prune(graph, choice)`` is the least pruned graph of cost ``target``.

    cost: a number that grows with the channels, such as FLOPs.  target: in the units of ``cost``.
    allocation, stage_keep: see the module.  multiple: widths that change become multiples of it (in a group that a concat
    joins, the sum of the widths).  original: the graph that the shares of ``stages`` refer to when ``graph`` is pruned
    already, so that they do not multiply over rounds.
    Each group keeps its channels of highest score, and at least one for each of its layers.
    Raises InputError when even the fewest channels cost more than ``target``.
    """
    whole = {g.name: np.arange(g.channels) for g in groups}
    if cost(graph) <= target:
        return whole
    ranked = [_ranked(g, scores(graph, g), multiple) for g in groups]
    named = {r.group.name: r for r in ranked}
    ladder = _ladder(graph, ranked, allocation, stage_keep, graph if original is None else original)

    def price(counts: Counts) -> float:
        return cost(prune(graph, {name: named[name].kept(count) for name, count in counts.items()}))

    least = price(ladder.counts(0)) if groups else cost(graph)
    if least > target:
        raise InputError(
            "pruning to a cost", expected=f"a cost of at most {target:g}", got=f"{least:g} with the fewest channels possible",
            fix="allow a higher cost, or prune more groups",
        )
    low, high = 0, ladder.rungs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(ladder.counts(middle)) <= target else (low, middle)
    best = ladder.counts(low)
    more = ladder.above(low, best)
    for name in sorted((n for n in best if more[n] > best[n]), key=lambda n: -ladder.worth(n, best[n])):
        trial = {**best, name: more[name]}
        if price(trial) <= target:
            best = trial
    return {name: named[name].kept(count) for name, count in best.items()}


def prune_to_ratio(
    graph: Graph, groups: Sequence[ChannelGroup], cost: Callable[[Graph], float], target: float, *,
    scores: Scores = l1_scores, allocation: str = "uniform", stage_keep: Sequence[float] = (), multiple: int = 1,
    original: Graph | None = None,
) -> Graph:
    """``graph`` itself if it costs at most ``target``, or what :func:`choose` leaves of it; arguments as there."""
    if cost(graph) <= target:
        return graph
    return prune(graph, choose(
        graph, groups, cost, target, scores=scores, allocation=allocation, stage_keep=stage_keep, multiple=multiple,
        original=original,
    ))
