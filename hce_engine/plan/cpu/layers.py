"""Convolutions and linear layers -> steps: kernels, weights, fused epilogues.

Fusions decided here: a flatten before a linear layer becomes a convolution with the map's size as kernel; an input recoding runs
in the epilogue of the convolution that made the codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ... import numerics
from ...graph import Node
from . import select, weights, winograd_codes
from .lanes import LANES, Lanes, strided
from .maps import Maps
from .plan import Map
from .spread import size_of

INT16_LIMIT = 2**15 - 1
ONE = (1, 1)


def chw(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def limits(node: Node) -> tuple[float, float]:
    low, high = node.attrs["min"], node.attrs["max"]
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


class Layers(Maps):
    """The layers that have weights."""

    def conv_choice(self, node: Node) -> select.ConvChoice:
        """The kernel of a float convolution or linear layer: of the layer alone, not of the lanes, since it decides the bits."""
        weight, a = self.weight(node), node.attrs
        _, h, w = chw(node.spec.shape)
        return self.choose_conv_f32(self.isa, weight.shape, a.get("stride", ONE), a.get("dilation", ONE), a.get("groups", 1), h, w)

    def weight(self, node: Node) -> np.ndarray:
        """4-D weight of a convolution or linear layer; a flatten before it dissolves where only linear layers read it."""
        weight = node.params["weight"]
        source = self.graph[node.inputs[0]]
        if node.op not in ("linear", "qlinear"):
            return weight
        if self.dissolves(source):
            return weight.reshape(-1, *chw(self.graph[source.inputs[0]].spec.shape))
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
        low, high = limits(node)
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
        low, high = limits(node)
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

    @staticmethod
    def code_range(node: Node) -> tuple[int, int, int]:
        return (node.spec.zero_point, node.attrs["qmin"], node.attrs["qmax"])

    def recode_arguments(self, node: Node) -> tuple[int, int, int, int, int]:
        return (node.attrs["k"], self.graph[node.inputs[0]].spec.zero_point, *self.code_range(node))
