"""Graph -> steps for the CPU: maps, fused epilogues, kernels chosen.

Fusions decided here: a flatten before a linear layer becomes a convolution with the map's size as kernel; an input
recoding runs in the epilogue of the convolution that made the codes; a strided slice and its channel padding are one copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ... import _native, numerics
from ...errors import UnsupportedError
from ...graph import Graph, Node
from . import select, weights, winograd_codes
from .plan import Map, Step

INT16_LIMIT = 2**15 - 1
ONE = (1, 1)
SCRATCH = ("scratch", "sums")  # maps that hold no pixels


def _lines(channels: int, dtype: str) -> int:
    return channels if dtype == "f32" else -(-channels // 4)


def _chw(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _limits(node: Node) -> tuple[float, float]:
    low, high = node.attrs["min"], node.attrs["max"]
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


class Lowering:
    """One pass over the graph in topological order; ``maps`` holds where each node's value lies."""

    def __init__(
        self, graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice],
        choose_conv_u8: Callable[..., select.ConvU8Choice],
    ) -> None:
        self.graph, self.isa, self.choose_conv_f32, self.choose_conv_u8 = graph, isa, choose_conv_f32, choose_conv_u8
        self.consumers = graph.consumers()
        self.outputs = {m.output for m in graph.members}
        self.maps: dict[str, Map] = {}
        self.images: dict[tuple[int, ...], Map] = {}  # pad codes -> the image as codes with that halo
        self.steps: list[Step] = []
        self.done: set[str] = set()  # nodes computed inside another node's step
        self.native = _native.extension()

    # -- maps -------------------------------------------------------------------------------------------------------

    def new_map(self, node: Node, shape: Sequence[int] | None = None) -> Map:
        c, h, w = _chw(shape or node.spec.shape)
        lines = _lines(c, node.spec.dtype)
        word = 0 if node.spec.dtype == "f32" else node.spec.zero_point * 0x01010101
        return Map(node.name, h, w, lines, pattern=np.broadcast_to(np.uint32(word), (lines,)))

    def value(self, name: str) -> Map:
        """The map of a node; the image as codes is loaded when first read."""
        if name == self.graph.input.name:
            return self.image_map((0,) * self.graph.input.spec.shape[0])
        return self.maps[name]

    def image_map(self, pad_codes: tuple[int, ...]) -> Map:
        """The images in lanes, loaded once per set of pad codes; float images as they are."""
        node = self.graph.input
        if pad_codes in self.images:
            return self.images[pad_codes]
        image = self.new_map(node)
        channels = node.spec.shape[0]
        if node.spec.dtype == "f32":
            self.emit((node,), "load_f32", "float images to lanes", "load_normalized", {}, {"y": image},
                      scale=np.ones(channels, np.float32), offset=np.zeros(channels, np.float32))
        else:
            words = np.zeros((image.lines, 4), np.uint8)
            words.ravel()[:channels] = pad_codes
            image.pattern = words.view("<u4").ravel()
            self.emit((node,), "load_u8", "pixels to lanes", "load_codes", {}, {"y": image})
        self.images[pad_codes] = image
        return image

    def emit(
        self, nodes: Sequence[Node], kernel: str, reason: str, method: str, reads: dict[str, Map],
        writes: dict[str, Map], *, macs: int = 0, packed_bytes: int = 0, executed_macs: int = 0, **arguments: object,
    ) -> None:
        names = tuple(n.name for n in nodes)
        self.steps.append(Step(names, kernel, reason, method, reads, writes, arguments, macs, packed_bytes, executed_macs))

    # -- convolution and linear -------------------------------------------------------------------------------------

    def conv_geometry(self, node: Node, x: Map, weight: np.ndarray) -> list[int]:
        """The shape argument of the native convolution; widens x's halo to what the taps reach."""
        a = node.attrs
        (sh, sw), (ph, pw), (dh, dw) = a.get("stride", ONE), a.get("padding", (0, 0)), a.get("dilation", ONE)
        kh, kw = weight.shape[2:]
        _, oh, ow = _chw(node.spec.shape)
        bottom, right = (oh - 1) * sh + (kh - 1) * dh - ph + 1 - x.h, (ow - 1) * sw + (kw - 1) * dw - pw + 1 - x.w
        x.widen(ph, pw, max(bottom, 0), max(right, 0))
        return [x.h, x.w, x.lines, oh, ow, 0, kh, kw, sh, sw, ph, pw, dh, dw]

    def layer_input(self, node: Node) -> tuple[Map, np.ndarray]:
        """Input map and 4-D weight of a convolution or linear layer; a flatten in between dissolves."""
        weight = node.params["weight"]
        source = self.graph[node.inputs[0]]
        if node.op in ("linear", "qlinear"):
            if source.op == "flatten" and source.name not in self.maps:
                c, h, w = _chw(self.graph[source.inputs[0]].spec.shape)
                return self.value(source.inputs[0]), weight.reshape(-1, c, h, w)
            return self.value(source.name), weight[:, :, None, None]
        if source.op == "input" and "pad_code" in node.attrs:
            # Unpadded layers read any image map.
            codes = tuple(node.attrs["pad_code"]) if max(node.attrs["padding"]) else (0,) * source.spec.shape[0]
            return self.image_map(codes), weight
        return self.value(source.name), weight

    def conv_f32(self, node: Node) -> None:
        x, weight = self.layer_input(node)
        groups = node.attrs.get("groups", 1)
        shape = self.conv_geometry(node, x, weight)
        shape[5] = weight.shape[0]
        y = self.new_map(node)
        reads, writes = {"x": x}, {"y": y}
        if len(node.inputs) == 2:
            reads["residual"] = self.value(node.inputs[1])
        choice = self.choose_conv_f32(
            self.isa, weight.shape, (shape[8], shape[9]), (shape[12], shape[13]), groups, y.h, y.w
        )
        executed = 0
        kernel, reason = "conv2d_f32", choice.reason
        if select.depthwise_f32(weight.shape, (shape[8], shape[9]), (shape[12], shape[13]), groups):
            kernel, reason = "conv2d_f32_depthwise", "depthwise: a window slides over each channel"
            packed, blocks = np.ascontiguousarray(weight, np.float32).ravel(), np.empty((0, 5), np.int64)
        elif choice.winograd:
            kernel = "conv2d_f32_winograd"
            packed, blocks = weights.blocks_winograd(weight, self.native.channels_winograd(self.isa))
            x.widen(0, 0, -(-y.h // 4) * 4 + 2 - shape[10] - x.h, -(-y.w // 4) * 4 + 2 - shape[11] - x.w)
            x.odd_rows = True
            lines = self.native.winograd_scratch_lines(weight.shape[1])
            writes["scratch"] = Map(f"{node.name}.scratch", 1, 1, lines)
            executed = 36 * weight.shape[0] * weight.shape[1] * -(-y.h // 4) * -(-y.w // 4)
        else:
            packed, blocks = weights.blocks_f32(weight, groups, self.native.channels_f32(self.isa))
        low, high = _limits(node)
        self.emit((node,), kernel, reason, "conv_f32", reads, writes, macs=weight.size * y.h * y.w, packed_bytes=packed.nbytes,
                  executed_macs=executed, shape=shape, blocks=blocks, weight=packed, bias=node.params["bias"], low=low,
                  high=high)
        self.maps[node.name] = y

    def fused_recode(self, node: Node) -> Node | None:
        """The recoding of this node's codes that runs in its epilogue: the first one among its consumers."""
        return next((c for c in self.consumers[node.name] if c.op == "qrecode"), None)

    def conv_u8(self, node: Node) -> None:
        x, weight = self.layer_input(node)
        logits = node.op == "qlinear"
        source = self.graph[node.inputs[0]].spec
        shape = self.conv_geometry(node, x, weight)
        oc = weight.shape[0]
        padded = -(-oc // 4) * 4
        shape[5] = padded
        groups = node.attrs.get("groups", 1)
        choice = self.choose_conv_u8(
            self.isa, select.ConvU8Layer(weight.shape, node.attrs["weight_dtype"], (shape[8], shape[9]), (shape[12], shape[13]),
                                         groups, shape[3], shape[4], logits),
            lambda: winograd_codes.fit(weight, node.params["bias"], source.type.qmax),
        )
        reason = choice.reason
        cut = weights.amx_cut(weight.shape, shape[13]) if choice.tiles else None
        depthwise = select.depthwise_u8(weight.shape, shape[13], groups, self.native.DEPTHWISE_COLUMNS) and not logits
        winograd = None
        if depthwise:
            codes, blocks = weights.depthwise_u8(weight, shape[8], shape[12]), np.empty((0, 5), np.int64)
            reason = "depthwise: four kernel rows side by side"
        elif choice.winograd is not None:
            codes, blocks = winograd_codes.blocks(weight), np.empty((0, 5), np.int64)
            x.widen(0, 0, 0, -(-shape[4] // 4) * 4 + 2 - shape[11] - x.w)
            winograd = (source.type.qmax, choice.winograd.entries, choice.winograd.constants, choice.winograd.pair_sums)
        elif cut is not None:
            codes, blocks = weights.tiles_amx(weight, cut), np.empty((0, 5), np.int64)
        else:
            codes, blocks = weights.blocks_u8(weight, groups, self.native.channels_u8(self.isa))
        storage = node.attrs["weight_dtype"]
        packed = weights.pack(codes, storage)
        largest_pair = 2 * source.type.qmax * int(np.abs(codes.astype(np.int32)).max(initial=0))
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
            writes["y"] = Map(node.name, 1, 1, padded)
            self.maps[node.name] = writes["y"]
            offset = pad(node.params["offset"])
        else:
            if len(node.inputs) == 2:
                reads["residual"] = self.value(node.inputs[1])
                residual = (node.attrs["residual_multiplier"], self.graph[node.inputs[1]].spec.zero_point)
            recode = self.fused_recode(node)
            if recode is not None:
                nodes.append(recode)
                self.done.add(recode.name)
                writes["recoded"] = self.maps[recode.name] = self.new_map(recode)
                recoded = self.recode_arguments(recode)
            if recode is None or len(self.consumers[node.name]) > 1:
                writes["y"] = self.maps[node.name] = self.new_map(node)
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
            executed = winograd_codes.products(*weight.shape[:2], *shape[3:5])
        self.emit(nodes, kernel, reason, "conv_u8", reads, writes, macs=weight.size * shape[3] * shape[4],
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

    def normalize(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        self.emit((node,), "load_f32", "images to normalised lanes", "load_normalized", {}, {"y": y},
                  scale=node.params["scale"], offset=node.params["offset"])

    def quantize_input(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        self.emit((node,), "load_u8", "float images to codes", "load_quantized", {}, {"y": y}, low=node.attrs["low"],
                  multiplier=node.attrs["multiplier"])

    def qrecode(self, node: Node) -> None:
        x, y = self.value(node.inputs[0]), self.new_map(node)
        self.maps[node.name] = y
        self.emit((node,), "recode_u8", "codes of another scale", "recode", {"x": x}, {"y": y}, extent=y.extent,
                  recode=self.recode_arguments(node))

    def add(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        reads = {key: self.value(name) for key, name in zip("ab", node.inputs, strict=False)}
        low, high = _limits(node)
        self.emit((node,), "add_f32", "element-wise", "add_f32", reads, {"y": y}, extent=y.extent, scale=1.0, low=low,
                  high=high)

    def mean(self, node: Node) -> None:
        """((x0 + x1) + ...) * f32(1 / n), as backends.reference.mean_logits: every sum after the first is in place."""
        y = self.maps[node.name] = self.new_map(node)
        total, last = self.value(node.inputs[0]), len(node.inputs) - 1
        for index, name in enumerate(node.inputs[1:] or (None,), start=min(1, last)):
            reads = {"a": total} if name is None else {"a": total, "b": self.value(name)}
            scale = float(np.float32(1.0 / len(node.inputs))) if index == last else 1.0
            self.emit((node,), "add_f32", "running sum of a mean", "add_f32", reads, {"y": y}, extent=y.extent,
                      scale=scale, low=-math.inf, high=math.inf)
            total = y

    def qadd(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        a, b = node.inputs
        self.emit((node,), "add_u8", "element-wise", "add_u8", {"a": self.value(a), "b": self.value(b)}, {"y": y},
                  extent=y.extent, zero_points=(self.graph[a].spec.zero_point, self.graph[b].spec.zero_point),
                  multipliers=tuple(node.attrs["multipliers"]), range=self.code_range(node))

    def pool(self, node: Node) -> None:
        x, y = self.value(node.inputs[0]), self.new_map(node)
        self.maps[node.name] = y
        if "kernel" in node.attrs:
            window = (*node.attrs["kernel"], *node.attrs["stride"], *node.attrs["padding"])
        else:
            window = (x.h, x.w, 1, 1, 0, 0)
        codes = node.spec.dtype != "f32"
        kind = ("max" if node.op == "max_pool2d" else "avg") + ("_u8" if codes else "_f32")
        average = codes and kind == "avg_u8"
        self.emit((node,), f"pool_{kind}", "window by window", "pool", {"x": x}, {"y": y}, kind=kind, input=(x.h, x.w),
                  output=y.extent, window=window, count_include_pad=bool(node.attrs.get("count_include_pad", 0)),
                  zero_point_in=self.graph[node.inputs[0]].spec.zero_point,
                  multiplier=node.attrs["multiplier"] if average else 0.0,
                  range=self.code_range(node) if average else (0, 0, 0))

    def copy(self, node: Node, source: str, y: Map, channels: tuple[int, int], rows: Sequence[int],
             columns: Sequence[int], extra: Sequence[Node] = ()) -> None:
        """One strided copy into ``y``. rows, columns: (start, step); channels: (count, first in y)."""
        x = self.value(source)
        self.emit((*extra, node), "copy", "moves lines", "copy", {"x": x}, {"y": y}, input=(x.h, x.w), output=y.extent,
                  channels=channels, pixels=(rows[0], rows[1], columns[0], columns[1]), codes=node.spec.dtype != "f32")

    def fill(self, node: Node, y: Map) -> None:
        self.emit((node,), "fill", "zero maps", "fill", {}, {"y": y}, extent=y.extent, word=int(y.pattern[0]))

    def strided_slice(self, node: Node) -> None:
        users = self.consumers[node.name]
        if len(users) == 1 and users[0].op == "channel_pad" and node.name not in self.outputs:
            return  # joins the copy of channel_pad
        y = self.maps[node.name] = self.new_map(node)
        h, w = node.attrs["h"], node.attrs["w"]
        self.copy(node, node.inputs[0], y, (node.spec.shape[0], 0), (h[0], h[2]), (w[0], w[2]))

    def channel_pad(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        source = self.graph[node.inputs[0]]
        channels = (source.spec.shape[0], node.attrs["before"])
        self.fill(node, y)
        if source.op == "strided_slice" and source.name not in self.maps:
            h, w = source.attrs["h"], source.attrs["w"]
            self.copy(node, source.inputs[0], y, channels, (h[0], h[2]), (w[0], w[2]), extra=(source,))
        else:
            self.copy(node, source.name, y, channels, (0, 1), (0, 1))

    def concat(self, node: Node) -> None:
        y = self.maps[node.name] = self.new_map(node)
        first = 0
        for name in node.inputs:
            channels = self.graph[name].spec.shape[0]
            self.copy(node, name, y, (channels, first), (0, 1), (0, 1))
            first += channels

    def flatten(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        c, h, w = _chw(source.spec.shape)
        if h == w == 1:
            self.maps[node.name] = self.value(source.name)
            return
        if all(u.op in ("linear", "qlinear") for u in self.consumers[node.name]) and node.name not in self.outputs:
            return  # the linear layer reads the map itself
        y = self.maps[node.name] = self.new_map(node)
        self.emit((node,), "flatten", "moves channels", "flatten", {"x": self.value(source.name)}, {"y": y},
                  input=(h, w, c), codes=node.spec.dtype != "f32")

    HANDLERS: dict[str, Callable[[Lowering, Node], None]] = {
        "normalize": normalize, "quantize_input": quantize_input, "conv2d": conv_f32, "linear": conv_f32,
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
            self.emit((self.graph[member.output],), "store_logits", f"member {member.name}", "store_logits",
                      {"x": self.maps[member.output]}, {}, classes=classes)
