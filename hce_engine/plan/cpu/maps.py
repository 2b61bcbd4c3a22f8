"""The maps of a plan that is being made: where each node's value lies, in which lanes, and the steps so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ... import _native
from ...graph import Graph, Node
from . import select
from .lanes import Lanes, whole
from .plan import Map, Step
from .spread import lines_of, size_of
from .stages import Stages

Made = TypeVar("Made")


class Maps:
    """State of one pass over the graph in topological order; ``maps`` holds where each node's value lies: first in the lanes it
    was made in, then in others, or with other padding."""

    stages: Stages

    def __init__(
        self, graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice],
        choose_conv_u8: Callable[..., select.ConvU8Choice], packed: dict[Any, Any],
    ) -> None:
        self.graph, self.isa, self.choose_conv_f32, self.choose_conv_u8 = graph, isa, choose_conv_f32, choose_conv_u8
        self.packed = packed
        self.consumers = graph.consumers()
        self.outputs = {m.output for m in graph.members}
        self.maps: dict[str, list[Map]] = {}
        self.padded: set[int] = set()  # id of maps whose padding value somebody relies on
        self.steps: list[Step] = []
        self.done: set[str] = set()  # nodes computed inside another node's step
        self.native = _native.extension()

    def new_map(self, node: Node, lanes: Lanes) -> Map:
        return Map(node.name, lanes.h, lanes.w, lines_of(node), pattern=self.zeros(node), size=size_of(node), grid=lanes.grid)

    def lanes(self, node: Node) -> Lanes:
        return self.stages.spread(node).lanes(node)

    def whole(self, node: Node, size: tuple[int, int] | None = None) -> Lanes:
        """Lanes that are images, of a map of ``size``, by default the node's, where the node runs."""
        return whole(self.stages.images[node.name], *(size or size_of(node)))

    def define(self, node: Node, lanes: Lanes) -> Map:
        """The map of a node that is about to be computed."""
        y = self.new_map(node, lanes)
        self.maps[node.name] = [y]
        return y

    def value(self, name: str, lanes: Lanes, padding: np.ndarray | None = None) -> Map:
        """The map of a node in these lanes: regrouped if it was made in others.

        padding: the value that each line must have outside the map (uint32 [lines]), where the reader looks there.
        """
        node, places = self.graph[name], self.maps.setdefault(name, [])
        found = next((m for m in places if m.lanes == lanes and (
            padding is None or id(m) not in self.padded or np.array_equal(m.pattern, padding))), None)
        if found is not None:
            y = found
        elif node.op in self.LOADS:  # what comes from the images is loaded again
            y = self.new_map(node, lanes)
            self.LOADS[node.op](self, node, y)
            places.append(y)
        else:
            x = places[0]
            y = Map(node.name, lanes.h, lanes.w, x.lines, pattern=self.zeros(node), size=x.size, grid=lanes.grid)
            self.emit((node,), "regroup", f"from {x.lanes}", "regroup", {"x": x}, {"y": y}, lanes=x.lanes.numbers,
                      to=lanes.numbers, extent=(*y.size, y.lines))
            places.append(y)
        if padding is not None and id(y) not in self.padded:
            y.pattern = padding
            self.padded.add(id(y))
        return y

    @staticmethod
    def zeros(node: Node) -> np.ndarray:
        """What zero padding is in each line of a node's map."""
        word = 0 if node.spec.dtype == "f32" else node.spec.zero_point * 0x01010101
        return np.broadcast_to(np.uint32(word), (lines_of(node),))

    @staticmethod
    def pad_codes(image: Node, codes: Sequence[int]) -> np.ndarray:
        """The padding of an image as codes, one per channel."""
        words = np.zeros((lines_of(image), 4), np.uint8)
        words.ravel()[: len(codes)] = codes
        return words.view("<u4").ravel()

    def load_image(self, node: Node, y: Map) -> None:
        """The images in lanes; float images as they are."""
        if node.spec.dtype == "f32":
            channels = node.spec.shape[0]
            self.emit((node,), "load_f32", "float images to lanes", "load_normalized", {}, {"y": y}, lanes=y.lanes.numbers,
                      scale=np.ones(channels, np.float32), offset=np.zeros(channels, np.float32))
        else:
            self.emit((node,), "load_u8", "pixels to lanes", "load_codes", {}, {"y": y}, lanes=y.lanes.numbers)

    def load_normalized(self, node: Node, y: Map) -> None:
        self.emit((node,), "load_f32", "images to normalised lanes", "load_normalized", {}, {"y": y}, lanes=y.lanes.numbers,
                  scale=node.params["scale"], offset=node.params["offset"])

    def load_quantized(self, node: Node, y: Map) -> None:
        self.emit((node,), "load_u8", "float images to codes", "load_quantized", {}, {"y": y}, lanes=y.lanes.numbers,
                  low=node.attrs["low"], multiplier=node.attrs["multiplier"])

    def emit(
        self, nodes: Sequence[Node], kernel: str, reason: str, method: str, reads: dict[str, Map],
        writes: dict[str, Map], *, macs: int = 0, packed_bytes: int = 0, executed_macs: int = 0, **arguments: object,
    ) -> None:
        names = tuple(n.name for n in nodes)
        first = next(iter((*reads.values(), *writes.values())))
        self.steps.append(Step(names, kernel, reason, method, reads, writes, arguments, macs, packed_bytes, executed_macs,
                               first.images))

    def once(self, node: Node, what: str, make: Callable[[], Made]) -> Made:
        """What is made from a layer's weights, shared by all plans of the graph."""
        key = (node.name, self.isa, what)
        if key not in self.packed:
            self.packed[key] = make()
        made: Made = self.packed[key]
        return made

    LOADS: dict[str, Callable[[Any, Node, Map], None]] = {
        "input": load_image, "normalize": load_normalized, "quantize_input": load_quantized,
    }
