"""Graph: plain data that every stage reads and rewrites. No torch here.

A graph has one input node and any number of members. A member is a named output (a node that yields logits) with a
role; members may share nodes, which is how a trunk, several exits or a tree are expressed. Nodes stand in topological
order, and a graph is never changed in place: passes build a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import GraphError
from .spec import TensorSpec


@dataclass(frozen=True)
class Node:
    """One operation.

    name: unique in the graph.       op: a name of :data:`hce_engine.graph.ops.OPS`.
    inputs: names of producers.      attrs: JSON values only.
    params: constant arrays; float32 for f32 operations, int8 codes / int32 / float32 for quantized ones.
    spec: what the node yields.      source: ``file:line`` of the module that was captured, if known.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    spec: TensorSpec
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, np.ndarray] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class Member:
    """A named output. ``role`` is ``vote`` (its logits are averaged) or ``reference`` (kept for comparison only)."""

    name: str
    output: str
    role: str = "vote"


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {n.name: n for n in self.nodes})

    def __getitem__(self, name: str) -> Node:
        try:
            return self._by_name[name]  # type: ignore[attr-defined]
        except KeyError:
            raise GraphError(
                "graph", expected="the name of a node", got=repr(name), fix="print the graph to see its nodes"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self._by_name  # type: ignore[attr-defined]

    @property
    def input(self) -> Node:
        for node in self.nodes:
            if node.op == "input":
                return node
        raise GraphError("graph", expected="an input node", got="none", fix="rebuild the graph from its model")

    def member(self, name: str) -> Member:
        for m in self.members:
            if m.name == name:
                return m
        raise GraphError(
            "graph",
            expected="a member of " + ", ".join(m.name for m in self.members),
            got=repr(name),
            fix="name an existing member",
        )

    @property
    def voters(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == "vote")

    def consumers(self) -> dict[str, list[Node]]:
        """Name of each node -> the nodes that read it (a node appears twice if it reads it twice)."""
        uses: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                uses[name].append(node)
        return uses

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        return Graph(tuple(nodes), self.members)

    def only(self, *names: str) -> Graph:
        """The sub-graph that the named members need. References vote if they are alone: a graph has a voter."""
        members = tuple(self.member(n) for n in names)
        if all(m.role == "reference" for m in members):
            members = tuple(replace(m, role="vote") for m in members)
        alive = {m.output for m in members} | {self.input.name}
        for node in reversed(self.nodes):
            if node.name in alive:
                alive.update(node.inputs)
        return Graph(tuple(n for n in self.nodes if n.name in alive), members)

    def map(self, change: Callable[[Node], Node]) -> Graph:
        """A graph in which every node went through ``change`` (names and order stay)."""
        return self.with_nodes(change(n) for n in self.nodes)

    def __str__(self) -> str:
        lines = []
        for n in self.nodes:
            attrs = " ".join(f"{k}={v}" for k, v in n.attrs.items())
            lines.append(f"%{n.name} = {n.op}({', '.join('%' + i for i in n.inputs)}) {attrs} -> {n.spec}")
        lines += [f"member {m.name} ({m.role}) = %{m.output}" for m in self.members]
        return "\n".join(lines)


def merge(graphs: Mapping[str, Graph], roles: Mapping[str, str] | None = None) -> Graph:
    """One graph out of several single-member graphs over the same input; node names get the member as prefix.

    Raises GraphError when the inputs differ in shape or type, since all members read the same images.
    """
    roles = roles or {}
    first_name, first = next(iter(graphs.items()))
    source = first.input
    nodes: list[Node] = [replace(source, name="image")]
    members: list[Member] = []
    for key, graph in graphs.items():
        if graph.input.spec != source.spec:
            raise GraphError(
                f"merge of member {key!r}",
                expected=f"the input of member {first_name!r}, {source.spec}",
                got=str(graph.input.spec),
                fix="build all members for the same images",
            )
        if len(graph.members) != 1:
            raise GraphError(
                f"merge of member {key!r}", expected="a graph with one output", got=f"{len(graph.members)} outputs",
                fix="take one member with Graph.only(name)",
            )

        def rename(name: str, key: str = key, input_name: str = graph.input.name) -> str:
            return "image" if name == input_name else f"{key}.{name}"

        for node in graph.nodes:
            if node.op != "input":
                nodes.append(replace(node, name=rename(node.name), inputs=tuple(rename(i) for i in node.inputs)))
        members.append(Member(key, rename(graph.members[0].output), roles.get(key, "vote")))
    return Graph(tuple(nodes), tuple(members))
