"""Fuses activations and residual additions into the node that produces their operand.

After these passes a residual block is two convolutions: ``y = clamp(conv(x) + bias + residual)`` is one node, so its
sum never goes to memory unclamped.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph import Graph, Node

_CLAMPS = ("conv2d", "linear", "add", "clamp")  # operations that end in a clamp


def _bounds(node: Node) -> tuple[float, float]:
    low, high = node.attrs["min"], node.attrs["max"]
    return -math.inf if low is None else low, math.inf if high is None else high


def compose(first: Node, second: Node) -> dict[str, float | None]:
    """min and max of one clamp that does what the clamp of ``first`` and then that of ``second`` do.

    clamp(clamp(x, a, b), c, d) = clamp(x, clamp(a, c, d), clamp(b, c, d)).
    """
    (a, b), (c, d) = _bounds(first), _bounds(second)
    low, high = min(max(a, c), d), min(max(b, c), d)
    return {"min": None if low == -math.inf else low, "max": None if high == math.inf else high}


def fuse_clamp(graph: Graph) -> Graph:
    """Clamps that are the only reader of a convolution, linear layer, addition or clamp move into it."""
    uses, outputs = graph.consumers(), {m.output for m in graph.members}
    done: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        read = node.inputs[0] if node.inputs else ""
        node = replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        before = done[node.inputs[0]] if node.inputs else None
        if (
            node.op == "clamp" and before is not None and before.op in _CLAMPS
            and len(uses[read]) == 1 and read not in outputs
        ):
            done[before.name] = replace(before, attrs={**before.attrs, **compose(before, node)})
            renamed[node.name] = before.name
        else:
            done[node.name] = node
    members = tuple(replace(m, output=renamed.get(m.output, m.output)) for m in graph.members)
    return Graph(tuple(done.values()), members)


def fuse_residual(graph: Graph) -> Graph:
    """An addition becomes the second input of the convolution that computes one of its operands.

    If both operands are such convolutions (a block with a projection), the one further from the input takes the
    addition: that is the block's main path, and the projection is its residual.
    """
    uses, outputs = graph.consumers(), {m.output for m in graph.members}
    depth: dict[str, int] = {}
    for node in graph.nodes:
        depth[node.name] = 1 + max((depth[i] for i in node.inputs), default=0)
    fused: dict[str, tuple[Node, str]] = {}  # name of the addition -> its convolution, and the residual's name
    taken: set[str] = set()
    for node in graph.nodes:
        if node.op != "add":
            continue
        able = [
            (depth[i], k) for k, i in enumerate(node.inputs)
            if graph[i].op == "conv2d" and len(graph[i].inputs) == 1 and len(uses[i]) == 1 and i not in outputs
            and _bounds(graph[i]) == (-math.inf, math.inf)
        ]
        if able:
            index = max(able)[1]
            fused[node.name] = (graph[node.inputs[index]], node.inputs[1 - index])
            taken.add(node.inputs[index])
    # The fused node stands where the addition stood, since the residual may be computed after the convolution.
    renamed = {add: conv.name for add, (conv, _) in fused.items()}
    nodes = []
    for node in graph.nodes:
        if node.name in taken:
            continue
        if node.name in fused:
            conv, residual = fused[node.name]
            attrs = {**conv.attrs, "min": node.attrs["min"], "max": node.attrs["max"]}
            node = replace(conv, inputs=(conv.inputs[0], residual), attrs=attrs)
        nodes.append(replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs)))
    return Graph(tuple(nodes), tuple(replace(m, output=renamed.get(m.output, m.output)) for m in graph.members))
