"""Which lanes each map gets: the cheapest cut of its size, the same for all maps of one size.

Maps of one size share residuals and element-wise operations, so their lanes must be equal; where a layer changes the size, its
input is regrouped unless the cuts of both sizes fit together.
"""

from __future__ import annotations

from collections.abc import Container

from ...graph import Graph, Node
from .lanes import Lanes, cuts, whole

WINOGRAD_BLOCK = 4  # F(4x4, 3x3) computes blocks of 4 x 4 pixels, aligned to the map's first pixel
# Cost of a register block of so many adjacent pixels, in pixels of a full one: its weights are loaded for fewer pixels.
REGISTER_BLOCK = (0.0, 1.6, 2.2, 3.1, 4.0)
HALO_COST = 0.05  # of one pixel of the halo, against a pixel that a layer computes
KEEP = 1.1  # another grid than that of the map before must be better by this much: regrouping costs, too


Size = tuple[int, int]


def _size(node: Node) -> Size:
    return node.spec.shape[1], node.spec.shape[2]


def cost(lanes: Lanes, align: int) -> float:
    """Time of a layer whose outputs lie in these lanes, in pixels that a lane computes."""
    pixels = lanes.h * lanes.w if align > 1 else lanes.h * (lanes.w // 4 * REGISTER_BLOCK[4] + REGISTER_BLOCK[lanes.w % 4])
    return pixels + HALO_COST * ((lanes.h + 2) * (lanes.w + 2) - lanes.h * lanes.w)


class Spread:
    """The lanes of every size of map in ``graph``, with ``images`` in a tile. winograd: nodes that run as Winograd layers."""

    def __init__(self, graph: Graph, images: int, winograd: Container[str]) -> None:
        self.images = images
        self.align: dict[Size, int] = {}
        parents: dict[Size, Size] = {}
        for node in graph.nodes:
            if len(node.spec.shape) != 3:
                continue
            size = _size(node)
            align = WINOGRAD_BLOCK if node.name in winograd else 1
            self.align[size] = max(align, self.align.get(size, 1))
            if node.inputs and len(graph[node.inputs[0]].spec.shape) == 3:
                parents.setdefault(size, _size(graph[node.inputs[0]]))
        self._lanes: dict[Size, Lanes] = {}
        for size, align in self.align.items():
            self._lanes[size] = self._choose(size, align, self._lanes.get(parents[size]) if size in parents else None)

    def _choose(self, size: Size, align: int, parent: Lanes | None) -> Lanes:
        options = sorted(cuts(self.images, size[0], size[1], align), key=lambda lanes: (cost(lanes, align), lanes.used))
        best = options[0]
        kept = [o for o in options if parent and (o.rows, o.columns) == (parent.rows, parent.columns)]
        return kept[0] if kept and cost(kept[0], align) <= KEEP * cost(best, align) else best

    def lanes(self, node: Node) -> Lanes:
        """Vectors and maps of one pixel are whole."""
        shape = node.spec.shape
        return self._lanes[_size(node)] if len(shape) == 3 else whole(self.images, 1, 1)
