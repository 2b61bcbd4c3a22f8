"""Filter pruning with physical removal: the pruned graph is smaller, not masked.

Filters are ranked by the L1 norm of their weights (Li et al. 2017). Removing channel c of a group takes away filter c of
every producer, entry c of every batch norm, and the weights of every consumer that read c; what remains computes exactly
what the graph computed with those weights at zero. Works on captured graphs, with their batch norms unfolded, so that
training can continue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node, verify
from hce_engine.graph.ops import OPS
from hce_engine.training.channels import ChannelGroup, channel_groups, excluded, is_depthwise, surviving

__all__ = ["ChannelGroup", "channel_groups", "excluded", "l1_scores", "prune", "prune_to_ratio"]

Array = np.ndarray
Scores = Callable[[Graph, ChannelGroup], Array]


def l1_scores(graph: Graph, group: ChannelGroup) -> Array:
    """Sum of |w| over the filters that make each channel, float64 (channels,)."""
    scores = np.zeros(group.channels)
    for name, slots in group.slots.items():
        weight = graph[name].params["weight"]
        norms = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).sum(axis=1)
        np.add.at(scores, slots[slots >= 0], norms[slots >= 0])
    return scores


def prune(graph: Graph, kept: Mapping[str, Sequence[int] | Array]) -> Graph:
    """``graph`` in which the group of each given name keeps only the given channels, in their old order; verified.

    Raises InputError for a name that is no group, for an index outside it or named twice, and for a choice that leaves a
    layer without channels.
    """
    groups = {g.name: g for g in channel_groups(graph)}
    checked: dict[str, Array] = {}
    for name, indices in kept.items():
        if name not in groups:
            raise InputError(
                f"prune of group {name!r}", expected=f"one of {', '.join(groups) or 'no groups at all'}",
                got=excluded(graph).get(name, "no such group"), fix="take names from channel_groups(graph)",
            )
        rows, size = np.asarray(indices), groups[name].channels
        whole = rows.ndim == 1 and rows.dtype.kind in "iu" and len(set(rows.tolist())) == len(rows) > 0
        if not whole or rows.min() < 0 or rows.max() >= size:
            raise InputError(
                f"prune of group {name!r}", expected=f"at least one channel, each of 0 to {size - 1} once",
                got=str(indices)[:80], fix="keep at least one channel of every layer",
            )
        for producer, slots in groups[name].slots.items():
            if not np.isin(rows, slots).any():
                raise InputError(
                    f"prune of group {name!r}", expected="at least one channel of every producer",
                    got=f"a choice after which {producer} would have none", fix=f"keep one of {slots.tolist()}"[:200],
                )
        checked[name] = rows
    alive = surviving(graph, checked)
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        smaller = _cut(node, alive)
        if node.op != "input":
            shape = OPS[node.op].infer([nodes[i].spec for i in node.inputs], smaller.attrs, smaller.params)
            smaller = replace(smaller, spec=replace(node.spec, shape=tuple(int(d) for d in shape)))
        nodes[node.name] = smaller
    return verify(graph.with_nodes(nodes.values()))


def _cut(node: Node, alive: Mapping[str, Array]) -> Node:
    """``node`` with the parameters of the channels that remain; its shape is inferred afterwards."""
    if node.op not in ("conv2d", "linear", "batch_norm"):
        return node
    out = alive[node.name]
    params = {key: value[out] for key, value in node.params.items()}
    if node.op == "batch_norm":
        return replace(node, params=params)
    if is_depthwise(node):
        return replace(node, params=params, attrs={**node.attrs, "groups": int(out.sum())})
    if node.attrs.get("groups", 1) == 1:
        params["weight"] = params["weight"][:, alive[node.inputs[0]]]
    return replace(node, params=params)


def _ranking(group: ChannelGroup, values: Array) -> tuple[Array, int]:
    """Channels from best to worst, and how many must stay: the best of every producer comes first."""
    order = np.argsort(-values, kind="stable")
    best = {int(order[np.isin(order, slots)][0]) for slots in group.slots.values()}
    is_first = np.isin(order, list(best))
    return np.concatenate([order[is_first], order[~is_first]]), len(best)


def prune_to_ratio(
    graph: Graph, groups: Sequence[ChannelGroup], cost: Callable[[Graph], float], target: float, *,
    scores: Scores = l1_scores,
) -> Graph:
    """The least pruned graph of cost at most ``target`` in which all ``groups`` keep the same fraction of channels.

    cost: a number that grows with the channels, such as FLOPs.  target: in the units of ``cost``.
    Each group keeps its channels of highest score, and at least one for each of its layers. Since a step of the common
    fraction moves many layers at once, single layers then get a channel back, those of highest score relative to their
    layer first, as long as the cost allows.
    Raises InputError when even the fewest channels cost more than ``target``.
    """
    if cost(graph) <= target:
        return graph
    marks = {g.name: scores(graph, g) for g in groups}
    ranks, fewest = {}, {}
    for g in groups:
        ranks[g.name], fewest[g.name] = _ranking(g, marks[g.name])

    def keep(counts: Mapping[str, int]) -> Graph:
        return prune(graph, {name: np.sort(ranks[name][:count]) for name, count in counts.items()})

    def counts(fraction: float) -> dict[str, int]:
        # 1e-9: k / c * c may fall just below k
        return {g.name: max(fewest[g.name], int(fraction * g.channels + 1e-9)) for g in groups}

    fractions = sorted({k / g.channels for g in groups for k in range(1, g.channels + 1)})
    least = keep(counts(fractions[0])) if fractions else graph
    if not fractions or cost(least) > target:
        raise InputError(
            "prune_to_ratio", expected=f"a cost of at most {target:g}", got=f"{cost(least):g} with the fewest channels possible",
            fix="allow a higher cost, or prune more groups",
        )
    low, high = 0, len(fractions)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(keep(counts(fractions[middle]))) <= target else (low, middle)
    best = counts(fractions[low])
    more = counts(fractions[low + 1]) if low + 1 < len(fractions) else best
    open_groups = [g.name for g in groups if more[g.name] > best[g.name]]
    open_groups.sort(key=lambda name: -float(marks[name][ranks[name][best[name]]] / (marks[name].mean() or 1.0)))
    for name in open_groups:
        trial = {**best, name: best[name] + 1}
        if cost(keep(trial)) <= target:
            best = trial
    return keep(best)
