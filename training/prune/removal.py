"""Physical removal of channels: the pruned graph is smaller, not masked.

Removing channel c of a group takes away filter c of every producer, entry c of every batch norm, and the weights of
every consumer that read c; what remains computes exactly what the graph computed with those weights at zero. Works on
captured graphs, with their batch norms unfolded, so that training can continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node, verify
from hce_engine.graph.ops import OPS
from hce_engine.training.channels import channel_groups, excluded, is_depthwise, surviving

Array = np.ndarray


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
        for producer in groups[name].producers:
            slots = groups[name].slots[producer]
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
