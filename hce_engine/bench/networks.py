"""What of an artifact peers can run: its float members, with the normalisation of pixels taken off.

Peers get normalised float32 NCHW images, so converting pixels costs them nothing; our engine takes the pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, TensorSpec
from ..preprocess import InputSpec, to_nchw


def is_float(graph: Graph, member: str) -> bool:
    """Whether the member has no operation on codes."""
    return all(not node.op.startswith("q") for node in graph.only(member).nodes)


def original_of(graph: Graph) -> str | None:
    """The float member that a quantized one was made of: the float reference, or the float member called ``o``."""
    floats = [m for m in graph.members if is_float(graph, m.name)]
    references = [m.name for m in floats if m.role == "reference"]
    named = [m.name for m in floats if m.name == "o"]
    return next(iter(named or references), None)


def without_normalization(graph: Graph) -> Graph:
    """The graph with the normalised float32 map as its input."""
    norms = {node.name for node in graph.nodes if node.op == "normalize"}
    image = graph.input
    nodes = [replace(image, spec=TensorSpec(image.spec.shape, "f32"))]
    for node in graph.nodes:
        if node.op not in ("input", "normalize"):
            nodes.append(replace(node, inputs=tuple(image.name if name in norms else name for name in node.inputs)))
    return graph.with_nodes(nodes)


def normalization(graph: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, offset), float32 ``[channels]``, of a float graph that normalises its pixels."""
    norm = next((node for node in graph.nodes if node.op == "normalize"), None)
    return None if norm is None else (norm.params["scale"].reshape(-1), norm.params["offset"].reshape(-1))


def normalized(graph: Graph, images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """images as the engine takes them -> contiguous float32 ``(N, C, H, W)``, what the first layer of a float graph sees."""
    x = to_nchw(images, spec).astype(np.float32)
    constants = normalization(graph)
    if constants is not None:
        scale, offset = (values.reshape(1, -1, 1, 1) for values in constants)
        x = x * scale + offset
    return np.ascontiguousarray(x)
