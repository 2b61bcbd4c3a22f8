"""How members are grouped into plans: those that share nodes run together, on every device."""

from __future__ import annotations

from ..graph import Graph


def components(graph: Graph) -> list[Graph]:
    """The graph cut into groups of members that share nodes other than the image: one plan each, in member order."""
    groups: list[tuple[set[str], list[str]]] = []
    for member in graph.members:
        nodes = {n.name for n in graph.only(member.name).nodes if n.op != "input"}
        names = [member.name]
        for other in [g for g in groups if g[0] & nodes]:
            nodes |= other[0]
            names += other[1]
            groups.remove(other)
        groups.append((nodes, names))
    return [graph.only(*(m.name for m in graph.members if m.name in names)) for _, names in groups]
