"""Graph of float members -> steps of the image-lanes kernels: maps, halos, fusions, configurations, memory.

Fusions decided here: residuals and clamps are in the graph's convolutions already; a flatten before a linear layer becomes a
convolution with the map's size as kernel; a strided slice and its channel padding are one copy. These are the choices of the
CPU's lowering, so that sums of direct kernels have the same order as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...arithmetic import IEEE, check_arithmetic
from ...errors import InputError, UnsupportedError
from ...graph import Graph, Node, verify
from ...kernels.layer import INT32_LIMIT
from . import lanes_select, split_lowering, winograd_select
from .lanes_plan import LANES, LINE_BYTES, TILE, LaneMap, LanesPlan, LaneStep, LaneWeights, place, tiles_of
from .plan import Cost

ONE = (1, 1)
ZERO = (0, 0)
FREE = (-math.inf, math.inf)


def _chw(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _limits(node: Node) -> tuple[float, float]:
    low, high = node.attrs["min"], node.attrs["max"]
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def lanes_runnable(node: Node) -> bool:
    """Whether the image-lanes kernels compute a node: every float operation of a lowered graph."""
    return node.op == "input" or (node.op in LanesLowering.HANDLERS and node.spec.type.is_float)


class LanesLowering:
    """One pass over the graph in topological order; ``maps`` holds where each node's value lies, ``splits`` where it lies as pairs
    of 16-bit numbers."""

    def __init__(self, graph: Graph, batch: int, *, convolution: str = "auto", arithmetic: str = IEEE) -> None:
        self.graph, self.batch, self.tiles = graph, batch, tiles_of(batch)
        self.convolution, self.arithmetic = convolution, arithmetic
        self.consumers = graph.consumers()
        self.outputs = {m.output for m in graph.members}
        self.maps: dict[str, LaneMap] = {}
        self.splits: dict[str, LaneMap] = {}
        self.steps: list[LaneStep] = []

    # -- values -----------------------------------------------------------------------------------------------------

    def new_map(self, node: Node) -> LaneMap:
        self.maps[node.name] = LaneMap(node.name, *_chw(node.spec.shape))
        return self.maps[node.name]

    def map(self, name: str) -> LaneMap:
        """The map of a node; float images as they are get one when first read."""
        if name == self.graph.input.name and name not in self.maps:
            channels = self.graph.input.spec.shape[0]
            self.load(self.graph.input, np.ones(channels, np.float32), np.zeros(channels, np.float32), "float images to lanes")
        return self.maps[name]

    def emit(
        self, nodes: Sequence[Node], kernel: str, reason: str, reads: Mapping[str, LaneMap], writes: Mapping[str, LaneMap],
        **keys: Any,
    ) -> None:
        known = {key: keys.pop(key) for key in ("weights", "config", "arithmetic", "member", "cost", "launches") if key in keys}
        if "cost" not in known:
            known["cost"] = self.moved(reads, writes)
        self.steps.append(LaneStep(tuple(n.name for n in nodes), kernel, reason, dict(reads), dict(writes), keys, **known))

    def moved(self, reads: Mapping[str, LaneMap], writes: Mapping[str, LaneMap]) -> Cost:
        read, written = (self.tiles * sum(v.bytes for v in values.values()) for values in (reads, writes))
        return Cost(read, written)

    # -- images -----------------------------------------------------------------------------------------------------

    def load(self, node: Node, scale: np.ndarray, offset: np.ndarray, reason: str) -> None:
        y, image = self.new_map(node), self.graph.input.spec
        from_float = image.type.is_float
        # NaN and Inf are looked for once, by the first load.
        flags = from_float and not any(s.kernel == "load_images" for s in self.steps)
        cost = Cost(self.batch * image.elements * (4 if from_float else 1), self.tiles * y.bytes + 4 * self.batch * flags)
        self.emit((node,), "load_images", reason, {}, {"y": y}, scale=scale, offset=offset, from_float=from_float, flags=flags,
                  cost=cost, launches=1 + flags)  # flags are cleared first

    def normalize(self, node: Node) -> None:
        self.load(node, node.params["scale"], node.params["offset"], "images to normalised lanes")

    # -- layers -----------------------------------------------------------------------------------------------------

    @staticmethod
    def reach(x: LaneMap, y: LaneMap, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int]) -> None:
        """Gives x the halo that windows for y read."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
        bottom = (y.height - 1) * sh + (kh - 1) * dh - ph + 1 - x.height
        right = (y.width - 1) * sw + (kw - 1) * dw - pw + 1 - x.width
        x.widen((ph, pw, max(bottom, 0), max(right, 0)))

    def layer(
        self, node: Node, x: LaneMap, weight: np.ndarray, groups: int, stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int], reason: str, *, vector: bool = False,
    ) -> None:
        oc, inputs, kh, kw = weight.shape
        y = self.new_map(node)
        (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
        self.reach(x, y, (kh, kw), stride, padding, dilation)
        reads = {"x": x}
        if len(node.inputs) == 2:
            reads["residual"] = self.map(node.inputs[1])
        bias, per, lines = node.params["bias"], oc // groups, kh * kw * inputs
        stays = split_lowering.why_ieee(node, self.arithmetic)
        rows = self.tiles * y.height
        macs = self.batch * y.height * y.width * weight.size
        window = (kh, kw, sh, sw, dh, dw)
        if groups > 1 and inputs == 1:
            taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
            weights = LaneWeights(node.name, taps, bias, groups, taps.nbytes + bias.nbytes)
            cost = self.moved(reads, {"y": y})
            cost = replace(cost, read=cost.read + weights.packed_bytes, macs=macs,
                           walked=rows * y.width * weight.size * TILE)
            self.emit((node,), "depthwise_f32", f"one input channel per output{stays}", reads, {"y": y}, weights=weights, cost=cost,
                      padding=(ph, pw), window=window, channels=(oc, per), limits=_limits(node))
            return
        if groups == 1 and window == (3, 3, 1, 1, 1, 1) and self.winograd(node, weight, reads, y, padding):
            return
        shape = (1, self.tiles) if vector else (rows, y.width)  # the pixels of a linear layer are the tiles
        config = lanes_select.conv_config(per, groups, lines, *shape)
        size = lanes_select.packed_bytes(per, groups, lines, config)
        weights = LaneWeights(node.name, weight, bias, groups, size + bias.nbytes)
        cost = self.moved(reads, {"y": y})
        cost = replace(cost, read=cost.read + weights.packed_bytes, macs=macs,
                       walked=lanes_select.walked_macs(per, groups, lines, *shape, config))
        self.emit((node,), "linear_f32" if vector else "conv2d_f32", reason + stays, reads, {"y": y}, weights=weights, config=config,
                  cost=cost, padding=(ph, pw), window=window, channels=(groups, inputs, per), limits=_limits(node))

    def winograd(
        self, node: Node, weight: np.ndarray, reads: Mapping[str, LaneMap], y: LaneMap, padding: Sequence[int]
    ) -> bool:
        """Emits a 3 x 3 layer of stride 1 if it is to run by Winograd; says whether."""
        oc, inputs = weight.shape[:2]
        if self.convolution == "direct":
            return False
        residual = "residual" in reads
        m = winograd_select.algorithm(inputs, oc, y.height, y.width, residual)
        if not m:
            return False
        jobs, bias = self.tiles * winograd_select.pixel_tiles(m, y.height, y.width), node.params["bias"]
        config = winograd_select.winograd_config(m, inputs, oc, jobs, residual)
        size = winograd_select.packed_bytes(inputs, oc, config) + bias.nbytes
        cost = self.moved(reads, {"y": y})
        cost = replace(cost, read=cost.read + size, macs=self.batch * y.height * y.width * weight.size,
                       walked=winograd_select.walked_multiplications(inputs, oc, jobs, config))
        self.emit((node,), "winograd_f32", "Winograd" + split_lowering.why_ieee(node, self.arithmetic), reads, {"y": y},
                  weights=LaneWeights(node.name, weight, bias, 1, size), config=config, cost=cost, padding=tuple(padding),
                  channels=(inputs, oc), limits=_limits(node))
        return True

    def conv2d(self, node: Node) -> None:
        if split_lowering.has_split_operands(node, self.arithmetic):
            split_lowering.emit_conv2d(self, node, _limits(node))
            return
        a, x = node.attrs, self.map(node.inputs[0])
        reason = "direct" if a["groups"] == 1 else f"direct, {a['groups']} groups"
        self.layer(node, x, node.params["weight"], a["groups"], a["stride"], a["padding"], a["dilation"], reason)

    def linear(self, node: Node) -> None:
        weight, source = node.params["weight"], self.graph[node.inputs[0]]
        if source.op == "flatten" and source.name not in self.maps:
            x = self.map(source.inputs[0])
            self.layer(node, x, weight.reshape(-1, x.channels, x.height, x.width), 1, ONE, ZERO, ONE,
                       "a head over a map: its kernel is the map")
        else:
            self.layer(node, self.map(source.name), weight[:, :, None, None], 1, ONE, ZERO, ONE, "one vector per image", vector=True)

    # -- everything else --------------------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        reads = {key: self.map(name) for key, name in zip("ab", node.inputs, strict=False)}
        self.emit((node,), "add_f32", "element-wise", reads, {"y": self.new_map(node)}, scale=1.0, limits=_limits(node))

    def mean(self, node: Node) -> None:
        """((x0 + x1) + ...) * f32(1 / n), as backends.reference.mean_logits: every sum after the first is in place."""
        operands = [self.map(name) for name in node.inputs]
        y, total, last = self.new_map(node), operands[0], len(operands) - 1
        for index, b in enumerate(operands[1:] or [None], start=min(1, last)):
            reads = {"a": total} if b is None else {"a": total, "b": b}
            scale = float(np.float32(1.0 / len(operands))) if index == last else 1.0
            self.emit((node,), "add_f32", "running sum of a mean", reads, {"y": y}, scale=scale, limits=FREE)
            total = y

    def pool(self, node: Node) -> None:
        x, y, a = self.map(node.inputs[0]), self.new_map(node), node.attrs
        whole = node.op == "global_avg_pool"
        window = (x.height, x.width, 1, 1, 0, 0) if whole else (*a["kernel"], *a["stride"], *a["padding"])
        kind = "max" if node.op == "max_pool2d" else "average"
        self.emit((node,), "pool_f32", "the whole map" if whole else "window by window", {"x": x}, {"y": y}, kind=kind,
                  window=window, count_include_pad=bool(a.get("count_include_pad", 0)))

    def copy(self, nodes: Sequence[Node], source: str, y: LaneMap, reason: str, *, first: int = 0, whole: bool = False,
             pixels: tuple[int, int, int, int] = (0, 1, 0, 1)) -> None:
        """One strided copy to channels from ``first`` on; whole: the channels around them become zero.
        pixels: first row and step, first column and step."""
        x = self.map(source)
        read = self.tiles * y.height * y.width * x.channels * LINE_BYTES
        written = self.tiles * y.bytes if whole else read
        self.emit(nodes, "copy_f32", reason, {"x": x}, {"y": y}, channels=x.channels, to=(first, y.channels if whole else 0),
                  pixels=pixels, cost=Cost(read, written))

    @staticmethod
    def pixels_of(node: Node) -> tuple[int, int, int, int]:
        (h0, _, hs), (w0, _, ws) = node.attrs["h"], node.attrs["w"]
        return (h0, hs, w0, ws)

    def strided_slice(self, node: Node) -> None:
        users = self.consumers[node.name]
        if len(users) == 1 and users[0].op == "channel_pad" and node.name not in self.outputs:
            return  # one copy with it
        self.copy((node,), node.inputs[0], self.new_map(node), "every n-th pixel", pixels=self.pixels_of(node))

    def channel_pad(self, node: Node) -> None:
        y, source, first = self.new_map(node), self.graph[node.inputs[0]], node.attrs["before"]
        if source.op == "strided_slice" and source.name not in self.maps:
            self.copy((source, node), source.inputs[0], y, "slice and zero maps in one", first=first, whole=True,
                      pixels=self.pixels_of(source))
        else:
            self.copy((node,), source.name, y, "zero maps", first=first, whole=True)

    def concat(self, node: Node) -> None:
        y, first = self.new_map(node), 0
        for name in node.inputs:
            self.copy((node,), name, y, f"channels from {first} on", first=first)
            first += self.graph[name].spec.shape[0]

    def flatten(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        _, h, w = _chw(source.spec.shape)
        # A vector has no halo, so a map of one pixel can be one unless a padded convolution reads it as well.
        padded = any(max(u.attrs["padding"]) for u in self.consumers[source.name] if u.op == "conv2d")
        if (h, w) == ONE and not padded:
            self.maps[node.name] = self.map(source.name)
            return
        if all(u.op == "linear" for u in self.consumers[node.name]) and node.name not in self.outputs:
            return  # the linear layer reads the map itself
        self.emit((node,), "flatten_f32", "moves channels", {"x": self.map(source.name)}, {"y": self.new_map(node)})

    HANDLERS: dict[str, Callable[[LanesLowering, Node], None]] = {
        "normalize": normalize, "conv2d": conv2d, "linear": linear, "add": add, "clamp": add, "mean": mean,
        "max_pool2d": pool, "avg_pool2d": pool, "global_avg_pool": pool, "strided_slice": strided_slice,
        "channel_pad": channel_pad, "concat": concat, "flatten": flatten,
    }  # fmt: skip

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op != "input":
                self.HANDLERS[node.op](self, node)
        for member in self.graph.members:
            self.store(member.name, self.graph[member.output])

    def store(self, member: str, node: Node) -> None:
        x = self.map(node.name)
        self.emit((node,), "store_logits", f"member {member}", {"x": x}, {}, member=member,
                  cost=Cost(self.tiles * x.bytes, self.batch * x.channels * 4))


def require_convolution(convolution: str) -> None:
    if convolution not in winograd_select.CONVOLUTIONS:
        raise InputError("float members", expected=f"convolution {' or '.join(winograd_select.CONVOLUTIONS)}", got=repr(convolution),
                         fix="choose one of them")


def require_float(graph: Graph) -> None:
    """Raises GraphError, or UnsupportedError for quantized nodes."""
    verify(graph)
    for node in graph.nodes:
        if not lanes_runnable(node):
            raise UnsupportedError(f"image lanes, {node.op} %{node.name}", expected="operations of float members",
                                   got=f"{node.op} of {node.spec.dtype}", fix="plan quantized members on their own")


def finish(lowering: LanesLowering, layout: str) -> LanesPlan:
    """The plan of a lowering. Raises UnsupportedError for maps beyond 32-bit offsets."""
    lowering.run()
    slots = place(lowering.steps)
    largest = max(slot.tile_bytes // 4 for slot in slots)
    if largest > INT32_LIMIT:
        raise UnsupportedError(f"layout {layout}", expected=f"maps of at most {INT32_LIMIT} floats for a tile",
                               got=str(largest), fix="use smaller images or device cpu")
    graph = lowering.graph
    image = graph.input.spec
    classes = graph[graph.members[0].output].spec.shape[0]
    return LanesPlan(lowering.batch, tuple(m.name for m in graph.members), tuple(lowering.steps), slots, classes, image.shape,
                     image.type.is_float, layout, arithmetic=lowering.arithmetic)


def build_lanes_plan(graph: Graph, batch: int, *, convolution: str = "auto", arithmetic: str = IEEE) -> LanesPlan:
    """The plan of all members of ``graph`` (they share the nodes they have in common) for ``batch`` images in image lanes.

    convolution: ``auto`` lets 3 x 3 layers run by Winograd where that is estimated to be faster; ``direct`` computes every sum in
    the order of the CPU's direct kernels.  arithmetic: of hce_engine.arithmetic. All but ``ieee`` are of dense convolutions of 4
    input channels and more, which then are direct ones; other layers stay with float32 multiply-adds. The graph must be lowered.
    Raises GraphError, InputError for another ``convolution`` or ``arithmetic``, or UnsupportedError for quantized nodes and for
    maps beyond 32-bit offsets.
    """
    check_arithmetic(arithmetic)
    require_convolution(convolution)
    require_float(graph)
    return finish(LanesLowering(graph, batch, convolution=convolution, arithmetic=arithmetic), LANES)
