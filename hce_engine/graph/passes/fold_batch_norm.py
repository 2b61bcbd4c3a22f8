"""Folds batch norms into the layer before them.

With s[o] = gamma[o] / sqrt(var[o] + eps):  w'[o] = w[o] * s[o],  b'[o] = (b[o] - mean[o]) * s[o] + beta[o].
Computed in float64 and rounded once. A zero gamma gives a zero filter and the bias beta, which is exact.

A batch norm that has no convolution to itself (it follows an addition or a concat, or the convolution is read
elsewhere too) becomes a 1x1 depthwise convolution, which is the same arithmetic and lets an activation fuse into it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import GraphError
from ..graph import Graph, Node

Array = np.ndarray


def scale_and_offset(norm: Node) -> tuple[Array, Array]:
    """float64 (s, t) per channel with batch_norm(x) = s * x + t."""
    p = {k: v.astype(np.float64) for k, v in norm.params.items()}
    scale = p["gamma"] / np.sqrt(p["var"] + norm.attrs["eps"])
    return scale, p["beta"] - p["mean"] * scale


def fold_batch_norm(graph: Graph) -> Graph:
    """A graph without ``batch_norm`` nodes; a folded convolution keeps its name and carries ``folded_norm`` = 1.

    Raises GraphError for a batch norm of a vector that does not directly follow a linear layer.
    """
    uses, outputs = graph.consumers(), {m.output for m in graph.members}
    done: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(i, i) for i in node.inputs))
        if node.op != "batch_norm":
            done[node.name] = node
            continue
        before = done[node.inputs[0]]
        original = graph[node.name].inputs[0]
        alone = len(uses[original]) == 1 and original not in outputs
        unclamped = before.attrs.get("min") is None and before.attrs.get("max") is None
        if alone and unclamped and before.op in ("conv2d", "linear") and len(before.inputs) == 1:
            done[before.name] = _folded(before, node)
            renamed[node.name] = before.name
        elif len(node.spec.shape) == 3:
            done[node.name] = _depthwise(node)
        else:
            raise GraphError(
                f"fold_batch_norm %{node.name}", expected="a batch norm of maps, or one that follows a linear layer",
                got=f"a batch norm of a vector after {before.op} %{before.name}", fix="fold it into the layer by hand",
            )
    members = tuple(replace(m, output=renamed.get(m.output, m.output)) for m in graph.members)
    return Graph(tuple(done.values()), members)


def _folded(layer: Node, norm: Node) -> Node:
    scale, offset = scale_and_offset(norm)
    weight = layer.params["weight"].astype(np.float64)
    with np.errstate(over="ignore"):  # verify refuses Inf by name; a warning would say it in riddles
        params = {
            "weight": (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32),
            "bias": (layer.params["bias"].astype(np.float64) * scale + offset).astype(np.float32),
        }
    attrs = {**layer.attrs, "folded_norm": 1} if layer.op == "conv2d" else layer.attrs
    return replace(layer, params=params, attrs=attrs)


def _depthwise(norm: Node) -> Node:
    scale, offset = scale_and_offset(norm)
    attrs = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": len(scale), "min": None, "max": None,
             "folded_norm": 1}
    params = {"weight": scale.astype(np.float32).reshape(-1, 1, 1, 1), "bias": offset.astype(np.float32)}
    return replace(norm, op="conv2d", attrs=attrs, params=params)
