"""Passes: Graph to Graph, each one idea, each result verified. ``lower`` is all of them in order."""

from __future__ import annotations

from ..graph import Graph
from ..verify import verify
from .fold_batch_norm import fold_batch_norm
from .fuse import fuse_clamp, fuse_residual

__all__ = ["drop_dead", "fold_batch_norm", "fuse_clamp", "fuse_residual", "lower"]


def drop_dead(graph: Graph) -> Graph:
    """``graph`` without the nodes that no member needs."""
    return graph.only(*(m.name for m in graph.members))


def lower(graph: Graph) -> Graph:
    """The float graph that back ends run: no batch norms, activations and residual additions inside their producers.

    Values change by float32 rounding of the folded weights only. Lowering a lowered graph changes nothing.
    """
    verify(graph)
    for step in (drop_dead, fold_batch_norm, fuse_clamp, fuse_residual, drop_dead):
        graph = verify(step(graph))
    return graph
