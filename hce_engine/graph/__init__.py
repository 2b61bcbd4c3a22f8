"""Graphs of members: plain data, no torch."""

from .graph import Graph, Member, Node, merge
from .ops import OPS
from .spec import TensorSpec
from .verify import verify

__all__ = ["OPS", "Graph", "Member", "Node", "TensorSpec", "merge", "verify"]
