"""Graph -> steps for the CPU: maps, fused epilogues, kernels chosen.

Fusions decided here: a flatten before a linear layer becomes a convolution with the map's size as kernel; an input
recoding runs in the epilogue of the convolution that made the codes; a strided slice and its channel padding are one copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ... import _native, numerics
from ...errors import UnsupportedError
from ...graph import Graph, Node
from . import select, stages, weights, winograd_codes
from .caches import Caches
from .lanes import LANES, Lanes, strided, whole
from .plan import Map, Step
from .spread import lines_of, size_of

Made = TypeVar("Made")
INT16_LIMIT = 2**15 - 1
ONE = (1, 1)
SCRATCH = ("scratch", "sums")  # maps that hold no pixels


def _chw(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _limits(node: Node) -> tuple[float, float]:
    low, high = node.attrs["min"], node.attrs["max"]
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


class Lowering:
    """One pass over the graph in topological order; ``maps`` holds where each node's value lies: first in the lanes it was made
    in, then in others, or with other padding."""

    def __init__(
        self, graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice],
        choose_conv_u8: Callable[..., select.ConvU8Choice], images: int, packed: dict[Any, Any], caches: Caches,
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
        winograd = {n.name for n in graph.nodes if n.op == "conv2d" and self.conv_choice(n).winograd}
        self.stages = stages.choose(graph, isa, images, winograd, caches)

    # -- maps -------------------------------------------------------------------------------------------------------

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

    def load_image(self, node: Node, y: Map) -> None:
        """The images in lanes; float images as they are."""
        if node.spec.dtype == "f32":
            channels = node.spec.shape[0]
            self.emit((node,), "load_f32", "float images to lanes", "load_normalized", {}, {"y": y}, lanes=y.lanes.numbers,
                      scale=np.ones(channels, np.float32), offset=np.zeros(channels, np.float32))
        else:
            self.emit((node,), "load_u8", "pixels to lanes", "load_codes", {}, {"y": y}, lanes=y.lanes.numbers)

    def emit(
        self, nodes: Sequence[Node], kernel: str, reason: str, method: str, reads: dict[str, Map],
        writes: dict[str, Map], *, macs: int = 0, packed_bytes: int = 0, executed_macs: int = 0, **arguments: object,
    ) -> None:
        names = tuple(n.name for n in nodes)
        first = next(iter((*reads.values(), *writes.values())))
        self.steps.append(Step(names, kernel, reason, method, reads, writes, arguments, macs, packed_bytes, executed_macs,
                               first.images))

    # -- convolution and linear -------------------------------------------------------------------------------------

    def conv_choice(self, node: Node) -> select.ConvChoice:
        """The kernel of a float convolution or linear layer: of the layer alone, not of the lanes, since it decides the bits."""
        weight, a = self.weight(node), node.attrs
        _, h, w = _chw(node.spec.shape)
        return self.choose_conv_f32(self.isa, weight.shape, a.get("stride", ONE), a.get("dilation", ONE), a.get("groups", 1), h, w)

    def weight(self, node: Node) -> np.ndarray:
        """4-D weight of a convolution or linear layer; a flatten before it dissolves where only linear layers read it."""
        weight = node.params["weight"]
        source = self.graph[node.inputs[0]]
        if node.op not in ("linear", "qlinear"):
            return weight
        if self.dissolves(source):
            return weight.reshape(-1, *_chw(self.graph[source.inputs[0]].spec.shape))
        return weight[:, :, None, None]

    def dissolves(self, node: Node) -> bool:
        """Whether a node is a flatten that only linear layers read, so that they can read the map itself."""
        return node.op == "flatten" and node.name not in self.outputs and all(
            user.op in ("linear", "qlinear") for user in self.consumers[node.name])

    def layer(self, node: Node) -> tuple[Map, Lanes, np.ndarray, list[int]]:
        """(input, lanes of the output, 4-D weight, shape argument of the native convolution but its channels) of a convolution or
        linear layer; widens the input's halo to what the taps reach."""
        weight, a, align = self.weight(node), node.attrs, self.stages.spread(node).align(node)
        source = self.graph[node.inputs[0]]
        if node.op in ("linear", "qlinear") and self.dissolves(source):
            source = self.graph[source.inputs[0]]
        (sh, sw), (ph, pw), (dh, dw) = a.get("stride", ONE), a.get("padding", (0, 0)), a.get("dilation", ONE)
        kh, kw = weight.shape[2:]
        lanes, x_lanes = strided(self.lanes(node), size_of(node), size_of(source), (sh, sw), align)
        padding = None
        if ph or pw or align > 1:  # a Winograd block that reaches beyond the map reads there, and its bits depend on it
            padding = self.pad_codes(source, a["pad_code"]) if source.op == "input" and "pad_code" in a else self.zeros(source)
        x = self.value(source.name, x_lanes, padding)
        bottom, right = (lanes.h - 1) * sh + (kh - 1) * dh - ph + 1 - x.h, (lanes.w - 1) * sw + (kw - 1) * dw - pw + 1 - x.w
        x.widen(ph, pw, max(bottom, 0), max(right, 0))
        x.surrounded |= (kh, kw) != ONE or bool(ph or pw)
        return x, lanes, weight, [x.h, x.w, x.lines, lanes.h, lanes.w, 0, kh, kw, sh, sw, ph, pw, dh, dw]

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

    def once(self, node: Node, what: str, make: Callable[[], Made]) -> Made:
        """What is made from a layer's weights, shared by all plans of the graph."""
        key = (node.name, self.isa, what)
        if key not in self.packed:
            self.packed[key] = make()
        made: Made = self.packed[key]
        return made

    def stagger(self, node: Node, x: Map) -> None:
        """An odd number of lines from pixel to pixel for the input of a depthwise layer, which reads one line of many pixels: in
        steps of 4096 bytes they would all meet in one set of the first-level cache. Only where nobody else reads the map."""
        written = any(x is m for s in self.steps if s.method in ("conv_u8", "conv_f32") for m in s.writes.values())
        x.odd_pixels = written and len(self.consumers[node.inputs[0]]) == 1

    def conv_f32(self, node: Node) -> None:
        choice = self.conv_choice(node)
        x, lanes, weight, shape = self.layer(node)
        groups = node.attrs.get("groups", 1)
        shape[5] = weight.shape[0]
        y = self.define(node, lanes)
        if self.dense(node, weight, lanes):
            self.emit_dense(node, weight, x, y)
            return
        reads, writes = {"x": x}, {"y": y}
        if len(node.inputs) == 2:
            reads["residual"] = self.value(node.inputs[1], lanes)
        executed = 0
        kernel, reason = "conv2d_f32", choice.reason
        if select.depthwise_f32(weight.shape, (shape[8], shape[9]), (shape[12], shape[13]), groups):
            kernel, reason = "conv2d_f32_depthwise", "depthwise: a window slides over each channel"
            packed, blocks = self.once(node, "depthwise", lambda: (
                np.ascontiguousarray(weight, np.float32).ravel(), np.empty((0, 5), np.int64)))
            self.stagger(node, x)
        elif choice.winograd:
            kernel = "conv2d_f32_winograd"
            packed, blocks = self.once(node, "winograd", lambda: weights.blocks_winograd(
                weight, self.native.channels_winograd(self.isa)))
            x.widen(0, 0, -(-y.h // 4) * 4 + 2 - shape[10] - x.h, -(-y.w // 4) * 4 + 2 - shape[11] - x.w)
            x.odd_rows = True
            lines = self.native.winograd_scratch_lines(weight.shape[1])
            writes["scratch"] = Map(f"{node.name}.scratch", 1, 1, lines)
            executed = 36 * weight.shape[0] * weight.shape[1] * -(-y.size[0] // 4) * -(-y.size[1] // 4)
        else:
            packed, blocks = self.once(node, "direct", lambda: weights.blocks_f32(
                weight, groups, self.native.channels_f32(self.isa)))
        low, high = _limits(node)
        self.emit((node,), kernel, reason, "conv_f32", reads, writes, macs=weight.size * y.size[0] * y.size[1],
                  packed_bytes=packed.nbytes, executed_macs=executed, shape=shape, blocks=blocks, weight=packed,
                  bias=node.params["bias"], low=low, high=high)

    @staticmethod
    def dense(node: Node, weight: np.ndarray, lanes: Lanes) -> bool:
        """Whether a float layer reads one pixel of fewer images than lanes, so that its channels fill the lanes better."""
        return (size_of(node) == ONE and weight.shape[2:] == ONE and node.attrs.get("groups", 1) == 1 and len(node.inputs) == 1
                and node.attrs.get("stride", ONE) == ONE and node.attrs.get("padding", (0, 0)) == (0, 0) and lanes.images < LANES)

    def emit_dense(self, node: Node, weight: np.ndarray, x: Map, y: Map) -> None:
        block = self.native.DENSE_BLOCK
        packed = self.once(node, "dense", lambda: weights.blocks_dense(weight[:, :, 0, 0], block))
        bias = np.zeros(-(-len(weight) // block) * block, np.float32)
        bias[: len(weight)] = node.params["bias"]
        low, high = _limits(node)
        self.emit((node,), "dense_f32", "output channels in lanes: fewer images than lanes", "dense_f32", {"x": x}, {"y": y},
                  macs=weight.size, packed_bytes=packed.nbytes, channels=(weight.shape[1], weight.shape[0]), weight=packed,
                  bias=bias, low=low, high=high)

    def fused_recode(self, node: Node) -> Node | None:
        """The recoding of this node's codes that runs in its epilogue: the first one among its consumers."""
        return next((c for c in self.consumers[node.name] if c.op == "qrecode"), None)

    def conv_u8(self, node: Node) -> None:
        x, lanes, weight, shape = self.layer(node)
        logits = node.op == "qlinear"
        source = self.graph[node.inputs[0]].spec
        oc = weight.shape[0]
        padded = -(-oc // 4) * 4
        shape[5] = padded
        groups = node.attrs.get("groups", 1)
        choice = self.choose_conv_u8(
            self.isa, select.ConvU8Layer(weight.shape, node.attrs["weight_dtype"], (shape[8], shape[9]), (shape[12], shape[13]),
                                         groups, shape[3], shape[4], logits),
            lambda: self.once(node, "fit", lambda: winograd_codes.fit(weight, node.params["bias"], source.type.qmax)),
        )
        reason = choice.reason
        cut = weights.amx_cut(weight.shape, shape[13]) if choice.tiles else None
        depthwise = select.depthwise_u8(weight.shape, shape[13], groups, self.native.DEPTHWISE_COLUMNS) and not logits
        winograd = None
        if depthwise:
            reason = "depthwise: four kernel rows side by side"
            self.stagger(node, x)
        elif choice.winograd is not None:
            x.widen(0, 0, 0, -(-shape[4] // 4) * 4 + 2 - shape[11] - x.w)
            winograd = (source.type.qmax, choice.winograd.entries, choice.winograd.constants, choice.winograd.pair_sums)
        storage = node.attrs["weight_dtype"]

        def pack() -> tuple[np.ndarray, np.ndarray]:
            blocks = np.empty((0, 5), np.int64)
            if depthwise:
                codes = weights.depthwise_u8(weight, shape[8], shape[12])
            elif winograd is not None:
                codes = winograd_codes.blocks(weight)
            elif cut is not None:
                codes = weights.tiles_amx(weight, cut)
            else:
                codes, blocks = weights.blocks_u8(weight, groups, self.native.channels_u8(self.isa))
            return weights.pack(codes, storage), blocks

        packed, blocks = self.once(node, "direct" if winograd is None else "winograd", pack)
        largest_pair = 2 * source.type.qmax * int(np.abs(weight.astype(np.int32)).max(initial=0))
        pair_sums = min(INT16_LIMIT // max(largest_pair, 1), INT16_LIMIT)

        # |f32(acc) * m + (r - z) * g|, with a little room for the three roundings.
        largest = np.abs(node.params["multiplier"]).max(initial=0) * float(
            numerics.accumulator_bound(weight, node.params["bias"], source.type.qmax).max(initial=0)
        ) + 255 * abs(node.attrs.get("residual_multiplier", 0.0))
        fits_int32 = bool(largest * 1.001 < numerics.INT32_LIMIT)

        def pad(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values, np.zeros(padded - oc, values.dtype)])

        reads, writes = {"x": x}, {}
        residual = recoded = offset = None
        nodes = [node]
        if logits:
            writes["y"] = Map(node.name, 1, 1, padded, grid=lanes.grid)
            self.maps[node.name] = [writes["y"]]
            offset = pad(node.params["offset"])
        else:
            if len(node.inputs) == 2:
                reads["residual"] = self.value(node.inputs[1], lanes)
                residual = (node.attrs["residual_multiplier"], self.graph[node.inputs[1]].spec.zero_point)
            recode = self.fused_recode(node)
            if recode is not None:
                nodes.append(recode)
                self.done.add(recode.name)
                writes["recoded"] = self.define(recode, lanes)
                recoded = self.recode_arguments(recode)
            if recode is None or len(self.consumers[node.name]) > 1:
                writes["y"] = self.define(node, lanes)
        kernel = f"conv2d_{source.dtype}x{storage}_{'f32' if logits else node.spec.dtype}"
        if depthwise:
            kernel += "_depthwise"
        if cut is not None:
            kernel += "_amx"
            writes["sums"] = Map(f"{node.name}.sums", 1, 1, self.native.AMX_SUM_LINES)
        executed = 0
        if winograd is not None:
            kernel += "_winograd"
            writes["scratch"] = Map(f"{node.name}.scratch", 1, 1, self.native.winograd_u8_lines(x.lines))
            executed = winograd_codes.products(oc, weight.shape[1], *size_of(node))
        self.emit(nodes, kernel, reason, "conv_u8", reads, writes, macs=weight.size * math.prod(node.spec.shape[1:]),
                  packed_bytes=packed.nbytes, executed_macs=executed, shape=shape, blocks=blocks, storage=storage, packed=packed,
                  bias=pad(node.params["bias"]), multiplier=pad(node.params["multiplier"]), pair_sums=pair_sums,
                  fits_int32=fits_int32, range=(0, 0, 0) if logits else self.code_range(node), residual=residual,
                  recoded=recoded, offset=offset, cut=cut, winograd=winograd)

    # -- everything else --------------------------------------------------------------------------------------------

    @staticmethod
    def code_range(node: Node) -> tuple[int, int, int]:
        return (node.spec.zero_point, node.attrs["qmin"], node.attrs["qmax"])

    def recode_arguments(self, node: Node) -> tuple[int, int, int, int, int]:
        return (node.attrs["k"], self.graph[node.inputs[0]].spec.zero_point, *self.code_range(node))

    def load_normalized(self, node: Node, y: Map) -> None:
        self.emit((node,), "load_f32", "images to normalised lanes", "load_normalized", {}, {"y": y}, lanes=y.lanes.numbers,
                  scale=node.params["scale"], offset=node.params["offset"])

    def load_quantized(self, node: Node, y: Map) -> None:
        self.emit((node,), "load_u8", "float images to codes", "load_quantized", {}, {"y": y}, lanes=y.lanes.numbers,
                  low=node.attrs["low"], multiplier=node.attrs["multiplier"])

    def load(self, node: Node) -> None:
        """Nothing yet: whoever reads the image names the lanes."""

    def qrecode(self, node: Node) -> None:
        lanes = self.lanes(node)
        x, y = self.value(node.inputs[0], lanes), self.define(node, lanes)
        self.emit((node,), "recode_u8", "codes of another scale", "recode", {"x": x}, {"y": y}, extent=y.extent,
                  recode=self.recode_arguments(node))

    def add(self, node: Node) -> None:
        lanes = self.lanes(node)
        reads = {key: self.value(name, lanes) for key, name in zip("ab", node.inputs, strict=False)}
        y = self.define(node, lanes)
        low, high = _limits(node)
        self.emit((node,), "add_f32", "element-wise", "add_f32", reads, {"y": y}, extent=y.extent, scale=1.0, low=low,
                  high=high)

    def mean(self, node: Node) -> None:
        """((x0 + x1) + ...) * f32(1 / n), as backends.reference.mean_logits: every sum after the first is in place."""
        lanes = self.lanes(node)
        y = self.define(node, lanes)
        total, last = self.value(node.inputs[0], lanes), len(node.inputs) - 1
        for index, name in enumerate(node.inputs[1:] or (None,), start=min(1, last)):
            reads = {"a": total} if name is None else {"a": total, "b": self.value(name, lanes)}
            scale = float(np.float32(1.0 / len(node.inputs))) if index == last else 1.0
            self.emit((node,), "add_f32", "running sum of a mean", "add_f32", reads, {"y": y}, extent=y.extent,
                      scale=scale, low=-math.inf, high=math.inf)
            total = y

    def qadd(self, node: Node) -> None:
        lanes = self.lanes(node)
        a, b = node.inputs
        reads = {"a": self.value(a, lanes), "b": self.value(b, lanes)}
        y = self.define(node, lanes)
        self.emit((node,), "add_u8", "element-wise", "add_u8", reads, {"y": y},
                  extent=y.extent, zero_points=(self.graph[a].spec.zero_point, self.graph[b].spec.zero_point),
                  multipliers=tuple(node.attrs["multipliers"]), range=self.code_range(node))

    def pool(self, node: Node) -> None:
        codes = node.spec.dtype != "f32"
        kind = ("max" if node.op == "max_pool2d" else "avg") + ("_u8" if codes else "_f32")
        source = self.graph[node.inputs[0]]
        (kh, kw), stride, (ph, pw) = (node.attrs[key] for key in ("kernel", "stride", "padding")) if "kernel" in node.attrs else (
            size_of(source), ONE, (0, 0))
        lanes = self.lanes(node)
        if node.op in ("global_avg_pool", "qglobal_avg_pool") and self.averages(node, source):
            return
        if (ph or pw) and node.op != "max_pool2d":
            lanes = self.whole(node)  # an average counts the pixels inside the map, which differ from lane to lane
        lanes, x_lanes = strided(lanes, size_of(node), size_of(source), stride)
        cut = lanes.rows * lanes.columns > 1
        if not cut:
            x = self.value(source.name, x_lanes)
        else:
            # Windows reach into the halo, which holds the neighbours' pixels and, outside the map, what no maximum takes.
            lowest = np.uint32(0) if codes else np.float32(-np.inf).view(np.uint32)
            padding = np.broadcast_to(lowest, (lines_of(source),)) if ph or pw else None
            x = self.value(source.name, x_lanes, padding)
            bottom, right = (lanes.h - 1) * stride[0] + kh - ph - x.h, (lanes.w - 1) * stride[1] + kw - pw - x.w
            x.widen(ph, pw, max(bottom, 0), max(right, 0))
            x.surrounded = True
        y = self.define(node, lanes)
        average = codes and kind == "avg_u8"
        self.emit((node,), f"pool_{kind}", "window by window", "pool", {"x": x}, {"y": y}, kind=kind, input=(x.h, x.w),
                  output=y.extent, window=(kh, kw, *stride, ph, pw), halo=cut,
                  count_include_pad=bool(node.attrs.get("count_include_pad", 0)),
                  zero_point_in=source.spec.zero_point,
                  multiplier=node.attrs["multiplier"] if average else 0.0,
                  range=self.code_range(node) if average else (0, 0, 0))

    def averages(self, node: Node, source: Node) -> bool:
        """The averages of a map that lies in blocks, without regrouping it; False where it is whole, or has fewer images."""
        x = next(iter(self.maps.get(source.name, [])), None)
        if x is None or x.images != self.stages.images[node.name] or x.lanes.rows * x.lanes.columns == 1:
            return False
        codes = node.spec.dtype != "f32"
        y = self.define(node, self.lanes(node))
        self.emit((node,), "averages_u8" if codes else "averages_f32", "row by row over all blocks", "averages", {"x": x}, {"y": y},
                  lanes=x.lanes.numbers, extent=(*x.size, x.lines), codes=codes, zero_point_in=source.spec.zero_point,
                  multiplier=node.attrs["multiplier"] if codes else 0.0, range=self.code_range(node) if codes else (0, 0, 0))
        return True

    def copy(self, node: Node, source: str, y: Map, channels: tuple[int, int], rows: Sequence[int],
             columns: Sequence[int], extra: Sequence[Node] = (), fill: int | None = None) -> None:
        """One strided copy into ``y``. rows, columns: (start, step); channels: (count, first in y).  fill: the 4-byte value of
        all other channels, which otherwise keep theirs."""
        x = self.value(source, strided(y.lanes, y.size, size_of(self.graph[source]), (rows[1], columns[1]))[1])
        self.emit((*extra, node), "copy", "moves lines", "copy", {"x": x}, {"y": y}, input=(x.h, x.w), output=y.extent,
                  channels=channels, pixels=(rows[0], rows[1], columns[0], columns[1]), codes=node.spec.dtype != "f32", fill=fill)

    def slice_lanes(self, node: Node, sliced: Node) -> Lanes:
        """Lanes of ``node``, which a strided slice fills: whole maps unless each block starts within one step of its own."""
        (h0, _, sh), (w0, _, sw) = sliced.attrs["h"], sliced.attrs["w"]
        lanes = self.lanes(node) if h0 < sh and w0 < sw else self.whole(node)
        return strided(lanes, size_of(node), size_of(self.graph[sliced.inputs[0]]), (sh, sw))[0]

    def strided_slice(self, node: Node) -> None:
        users = self.consumers[node.name]
        if len(users) == 1 and users[0].op == "channel_pad" and node.name not in self.outputs:
            return  # joins the copy of channel_pad
        y = self.define(node, self.slice_lanes(node, node))
        h, w = node.attrs["h"], node.attrs["w"]
        self.copy(node, node.inputs[0], y, (node.spec.shape[0], 0), (h[0], h[2]), (w[0], w[2]))

    def channel_pad(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        channels, zero = (source.spec.shape[0], node.attrs["before"]), int(self.zeros(node)[0])
        joins = source.op == "strided_slice" and source.name not in self.maps
        y = self.define(node, self.slice_lanes(node, source) if joins else self.lanes(node))
        if joins:
            h, w = source.attrs["h"], source.attrs["w"]
            self.copy(node, source.inputs[0], y, channels, (h[0], h[2]), (w[0], w[2]), extra=(source,), fill=zero)
        else:
            self.copy(node, source.name, y, channels, (0, 1), (0, 1), fill=zero)

    def concat(self, node: Node) -> None:
        y = self.define(node, self.lanes(node))
        first = 0
        for name in node.inputs:
            channels = self.graph[name].spec.shape[0]
            self.copy(node, name, y, (channels, first), (0, 1), (0, 1))
            first += channels

    def flatten(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        c, h, w = _chw(source.spec.shape)
        if self.dissolves(node):
            return  # the linear layers read the map itself
        x = self.value(source.name, self.whole(node, (h, w)))
        if h == w == 1:
            self.maps[node.name] = [x]
            return
        y = self.define(node, self.lanes(node))
        self.emit((node,), "flatten", "moves channels", "flatten", {"x": x}, {"y": y}, input=(h, w, c),
                  codes=node.spec.dtype != "f32")

    LOADS: dict[str, Callable[[Lowering, Node, Map], None]] = {
        "input": load_image, "normalize": load_normalized, "quantize_input": load_quantized,
    }

    HANDLERS: dict[str, Callable[[Lowering, Node], None]] = {
        "normalize": load, "quantize_input": load, "conv2d": conv_f32, "linear": conv_f32,
        "qconv2d": conv_u8, "qlinear": conv_u8, "qrecode": qrecode, "add": add, "clamp": add, "mean": mean, "qadd": qadd,
        "max_pool2d": pool, "avg_pool2d": pool, "global_avg_pool": pool, "qavg_pool2d": pool,
        "qglobal_avg_pool": pool, "strided_slice": strided_slice, "channel_pad": channel_pad, "concat": concat,
        "flatten": flatten,
    }  # fmt: skip

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "input" or node.name in self.done:
                continue
            handler = self.HANDLERS.get(node.op)
            if handler is None:
                raise UnsupportedError(
                    f"cpu plan, {node.op} %{node.name}", expected="an operation of " + ", ".join(self.HANDLERS),
                    got=node.op, fix="lower the graph first (hce_engine.graph.passes.lower)",
                )
            handler(self, node)
        for member in self.graph.members:
            classes = self.graph[member.output].spec.shape[0]
            logits = self.value(member.output, self.whole(self.graph[member.output]))
            self.emit((self.graph[member.output],), "store_logits", f"member {member.name}", "store_logits", {"x": logits}, {},
                      classes=classes)
