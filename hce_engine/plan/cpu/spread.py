"""Which lanes each map gets, with a given number of images in a group.

Maps of one size share residuals and element-wise operations, so they get the same lanes, the cheapest for the layers of that
size. A layer that would run much better in other lanes gets them, and its maps are regrouped; so does the input of a layer
that changes the size, unless the cuts of both sizes fit together. What is best is estimated from the costs below; results
do not depend on it.
"""

from __future__ import annotations

from collections.abc import Container

from ...graph import Graph, Node
from .lanes import Lanes, cuts, strided

WINOGRAD_BLOCK = 4  # F(4x4, 3x3) computes blocks of 4 x 4 pixels, aligned to the map's first pixel
# Cost of a register block of so many adjacent pixels, in pixels of a full one: its weights are loaded for fewer pixels.
REGISTER_BLOCK = (0.0, 1.6, 2.2, 3.1, 4.0)
HALO_COST = 0.05  # of one pixel of the halo, against a pixel that a layer computes
KEEP = 1.1  # other lanes than those of the map before must be better by this much
# Multiply-accumulates per nanosecond in all lanes, of one core with AVX-512; docs/LOG.md has the measurements.
MACS = {"codes": 500.0, "direct": 116.0, "winograd": 330.0}
DEPTHWISE = 0.4  # rate of layers that use an input for one output
SPEED = {"amx": 1.0, "avx512vnni": 1.0, "avx2": 0.4, "portable": 0.05}
REGROUP = 2.5  # nanoseconds per line of a map in other lanes
LINE = 0.5  # nanoseconds per line of an element-wise operation

Size = tuple[int, int]


def size_of(node: Node) -> Size:
    """Pixels of a node's map; a vector is one pixel."""
    shape = node.spec.shape
    return (1, 1) if len(shape) == 1 else (shape[1], shape[2])


def lines_of(node: Node) -> int:
    return node.spec.shape[0] if node.spec.dtype == "f32" else -(-node.spec.shape[0] // 4)


def pixels(lanes: Lanes, align: int = 1) -> float:
    """Time of a layer whose outputs lie in these lanes, in pixels that a lane computes."""
    inner = lanes.h * lanes.w if align > 1 else lanes.h * (lanes.w // 4 * REGISTER_BLOCK[4] + REGISTER_BLOCK[lanes.w % 4])
    return inner + HALO_COST * ((lanes.h + 2) * (lanes.w + 2) - lanes.h * lanes.w)


class Spread:
    """The lanes of every map of ``graph`` with ``images`` in a group. winograd: nodes that run as Winograd layers."""

    def __init__(self, graph: Graph, isa: str, images: int, winograd: Container[str]) -> None:
        self.graph, self.isa, self.images, self.winograd = graph, isa, images, winograd
        self._classes: dict[Size, Lanes] = {}
        layers: dict[Size, list[Node]] = {}
        parents: dict[Size, Size] = {}
        for node in graph.nodes:
            layers.setdefault(size_of(node), []).append(node)
            if node.inputs:
                parents.setdefault(size_of(node), size_of(graph[node.inputs[0]]))
        for size, nodes in layers.items():
            self._classes[size] = self._class(size, nodes, self._classes.get(parents.get(size, size)))
        self._own = {node.name: lanes for node in graph.nodes if (lanes := self._better(node)) is not None}

    def align(self, node: Node) -> int:
        return WINOGRAD_BLOCK if node.name in self.winograd else 1

    def lanes(self, node: Node) -> Lanes:
        return self._own.get(node.name) or self._classes[size_of(node)]

    def _best(self, size: Size, align: int, near: Lanes | None) -> Lanes:
        """The cheapest lanes of a map, or those with the grid of ``near`` if they are about as good."""
        options = sorted(cuts(self.images, *size, align), key=lambda lanes: (pixels(lanes, align), lanes.used))
        kept = [o for o in options if near and (o.rows, o.columns) == (near.rows, near.columns)]
        return kept[0] if kept and pixels(kept[0], align) <= KEEP * pixels(options[0], align) else options[0]

    def _class(self, size: Size, nodes: list[Node], near: Lanes | None) -> Lanes:
        """Lanes for most layers of a size: aligned for Winograd, or not, whichever takes less time."""
        options = {align: self._best(size, align, near) for align in {1, *map(self.align, nodes)}}

        def time(lanes: Lanes) -> float:
            total = 0.0
            for node in nodes:
                fits = [o for o in options.values() if self._allows(node, o) and (o == lanes or "weight" in node.params)]
                total += min(self.kernel_time(node, o) + (0.0 if o == lanes else self._regroups(node, o, lanes)) for o in fits)
            return total

        return min(options.values(), key=time)

    def _allows(self, node: Node, lanes: Lanes) -> bool:
        align = self.align(node)
        return (lanes.rows == 1 or lanes.h % align == 0) and (lanes.columns == 1 or lanes.w % align == 0)

    def _better(self, node: Node) -> Lanes | None:
        """Lanes of its own for a convolution that needs them, or gains more than it costs to regroup its maps."""
        usual = self._classes[size_of(node)]
        if "weight" not in node.params:
            return None
        own = self._best(size_of(node), self.align(node), usual)
        if not self._allows(node, usual):
            return own
        gain = self.kernel_time(node, usual) - self.kernel_time(node, own) - self._regroups(node, own, usual)
        return own if own != usual and gain > 0.0 else None

    def _regroups(self, node: Node, own: Lanes, usual: Lanes) -> float:
        """Nanoseconds to bring the maps of a layer of a group from the usual lanes to its own and back."""
        source = self.graph[node.inputs[0]]
        stride = node.attrs.get("stride", (1, 1))
        x = strided(own, size_of(node), size_of(source), stride)[1]
        lines = x.h * x.w * lines_of(source) + usual.h * usual.w * lines_of(node)
        return REGROUP * (lines + (own.h * own.w * lines_of(node) if len(node.inputs) > 1 else 0))

    def kernel_time(self, node: Node, lanes: Lanes) -> float:
        """Nanoseconds of a node's kernel for a group of images in these lanes."""
        weight = node.params.get("weight")
        if weight is None:
            return LINE * lanes.h * lanes.w * lines_of(node)
        kind = "codes" if node.op in ("qconv2d", "qlinear") else "winograd" if node.name in self.winograd else "direct"
        rate = MACS[kind] * SPEED[self.isa] * (DEPTHWISE if weight.shape[1:2] == (1,) else 1.0)
        return pixels(lanes, self.align(node)) * weight.size * 16 / rate

    def regroup_time(self, node: Node) -> float:
        """Nanoseconds that bringing a node's inputs into its lanes takes, where they lie in others."""
        time = 0.0
        for index, name in enumerate(node.inputs):
            source = self.graph[name]
            if source.op in ("input", "normalize", "quantize_input"):
                continue
            stride = node.attrs.get("stride", (1, 1)) if index == 0 else (1, 1)
            x = strided(self.lanes(node), size_of(node), size_of(source), stride)[1]
            time += REGROUP * x.h * x.w * lines_of(source) if x != self.lanes(source) else 0.0
        return time
