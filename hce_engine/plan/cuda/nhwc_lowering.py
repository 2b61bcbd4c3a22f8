"""Graph of float members -> steps of the kernels on NHWC maps: lanes are channels, a tile is an image.

The walk over the graph and its fusions are those of image lanes (lanes_lowering.py); here stand the operations that mix
channels. Costs of these count sectors of eight channels, what memory moves for the channels that exist; the kernels that both
layouts share move whole lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...graph import Graph, Node
from .lanes_lowering import FREE, ONE, LanesLowering, _chw, _limits, finish, require_float
from .lanes_plan import NHWC, TILE, LaneMap, LanesPlan, LaneWeights
from .nhwc_select import Product, nhwc_config
from .nhwc_weights import pack_depthwise_nhwc, pad_lines
from .plan import Cost

SECTOR_CHANNELS, SECTOR_BYTES = 8, 32


def touched_bytes(value: LaneMap) -> int:
    """Bytes of one image's sectors that hold channels."""
    return value.height * value.width * -(-value.channels // SECTOR_CHANNELS) * SECTOR_BYTES


class NhwcLowering(LanesLowering):
    def __init__(self, graph: Graph, batch: int) -> None:
        super().__init__(graph, batch)
        self.tiles = batch

    def new_map(self, node: Node) -> LaneMap:
        self.maps[node.name] = LaneMap(node.name, *_chw(node.spec.shape), line_channels=TILE)
        return self.maps[node.name]

    def touched(self, reads: Mapping[str, LaneMap], writes: Mapping[str, LaneMap]) -> Cost:
        read, written = (self.batch * sum(map(touched_bytes, values.values())) for values in (reads, writes))
        return Cost(read, written)

    def load(self, node: Node, scale: np.ndarray, offset: np.ndarray, reason: str) -> None:
        super().load(node, scale, offset, reason.replace("lanes", "NHWC"))
        step, y = self.steps[-1], self.maps[node.name]
        flags = 4 * self.batch * step.arguments["flags"]
        cost = Cost(step.cost.read, self.batch * touched_bytes(y) + flags)
        self.steps[-1] = replace(step, kernel="load_images_nhwc", cost=cost)

    def store(self, member: str, node: Node) -> None:
        x = self.map(node.name)
        cost = Cost(self.batch * touched_bytes(x), self.batch * x.channels * 4)
        self.emit((node,), "store_logits_nhwc", f"member {member}", {"x": x}, {}, member=member, cost=cost)

    def layer(
        self, node: Node, x: LaneMap, weight: np.ndarray, groups: int, stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int], reason: str, *, vector: bool = False,
    ) -> None:
        """One step, or two where the segments of a sum are computed side by side. A vector is a map of one pixel."""
        outputs, inputs, kh, kw = weight.shape
        y, bias = self.new_map(node), node.params["bias"]
        self.reach(x, y, (kh, kw), stride, padding, dilation)
        residual = {"residual": self.map(node.inputs[1])} if len(node.inputs) == 2 else {}
        pixels, per = self.batch * y.height * y.width, outputs // groups
        geometry = {"padding": tuple(padding), "window": (kh, kw, *stride, *dilation)}
        macs = pixels * weight.size
        if groups > 1 and inputs == per == 1:
            taps, biases = pack_depthwise_nhwc(weight), pad_lines(bias)
            weights = LaneWeights(node.name, taps, biases, groups, taps.nbytes + biases.nbytes)
            reads = {"x": x, **residual}
            cost = self.moved(reads, {"y": y})
            cost = replace(cost, read=cost.read + weights.packed_bytes, macs=macs, walked=pixels * taps.size)
            self.emit((node,), "depthwise_nhwc_f32", "lane by lane", reads, {"y": y}, weights=weights, cost=cost,
                      limits=_limits(node), **geometry)
            return
        product = Product(pixels, groups, per, inputs, kh * kw)
        config = nhwc_config(product)
        weights = LaneWeights(node.name, weight, bias, groups, product.packed_bytes(config) + bias.nbytes)
        into, limits = y, _limits(node)
        reads = {"x": x, **residual}
        if config.parallel:
            partial = config.segments * y.depth * TILE
            into = LaneMap(f"{y.name}/segments", partial, y.height, y.width, line_channels=TILE)
            limits, reads = FREE, {"x": x}
        cost = self.touched(reads, {} if config.parallel else {"y": y})
        written = cost.written + config.parallel * config.segments * self.batch * touched_bytes(y)
        cost = Cost(cost.read + weights.packed_bytes, written, macs, product.walked_macs(config))
        self.emit((node,), "conv2d_nhwc_f32", reason.replace("direct", "matrix product"), reads, {"y": into}, weights=weights,
                  config=config, cost=cost, limits=limits, channels=(groups, inputs, per), **geometry)
        if config.parallel:
            self.emit((node,), "sum_segments_f32", "adds the segments in order", {"x": into, **residual}, {"y": y},
                      segments=config.segments, limits=_limits(node))

    def copy(self, nodes: Sequence[Node], source: str, y: LaneMap, reason: str, *, first: int = 0, whole: bool = False,
             pixels: tuple[int, int, int, int] = (0, 1, 0, 1)) -> None:
        """Whole lines where channels keep their lanes and nothing follows in the last line; else channel by channel."""
        x, end = self.map(source), first + self.map(source).channels
        if first % TILE == 0 and (end % TILE == 0 or end == y.channels):
            per_pixel = x.depth * TILE * 4
            written = (y.depth * TILE * 4 if whole else per_pixel) * self.batch * y.height * y.width
            self.emit(nodes, "copy_f32", reason, {"x": x}, {"y": y}, channels=x.depth, pixels=pixels,
                      to=(first // TILE, y.depth if whole else 0),
                      cost=Cost(self.batch * y.height * y.width * per_pixel, written))
            return
        read = self.batch * touched_bytes(replace(x, height=y.height, width=y.width))
        self.emit(nodes, "copy_channels_f32", f"{reason}, across lanes", {"x": x}, {"y": y}, channels=x.channels, pixels=pixels,
                  to=(first, y.channels if whole else 0), cost=Cost(read, self.batch * touched_bytes(y) if whole else read))

    def flatten(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        if _chw(source.spec.shape)[1:] == ONE:
            self.maps[node.name] = self.map(source.name)
        elif node.name in self.outputs or any(u.op != "linear" for u in self.consumers[node.name]):
            reads, writes = {"x": self.map(source.name)}, {"y": self.new_map(node)}
            self.emit((node,), "flatten_nhwc_f32", "moves channels", reads, writes, cost=self.touched(reads, writes))

    HANDLERS: dict[str, Callable[..., None]] = {**LanesLowering.HANDLERS, "flatten": flatten}


def build_nhwc_plan(graph: Graph, batch: int) -> LanesPlan:
    """As ``build_lanes_plan``, with channels in the lanes."""
    require_float(graph)
    return finish(NhwcLowering(graph, batch), NHWC)
