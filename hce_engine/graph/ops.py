"""The closed set of operations: what each one means, its attributes and parameters, and the shape it yields.

Index names: n image, c input channel, o output channel, h w input pixel, i j output pixel, a b kernel tap.
Maps are ``(C, H, W)``. Quantized operations start with ``q``; their exact arithmetic is :mod:`hce_engine.numerics`.

    input           the images: uint8 pixels, or float32
    normalize       y = x * scale[c] + offset[c], float32, from u8 or f32
    quantize_input  y = rne(clamp((x - low) * multiplier, 0, 255)), f32 -> u8 pixel code
    conv2d          y = clamp(bias[o] + sum_{c,a,b} w[o,c,a,b] x[c, i*sh + a*dh - ph, j*sw + b*dw - pw] (+ residual[o,i,j]))
    batch_norm      y = (x - mean[c]) / sqrt(var[c] + eps) * gamma[c] + beta[c]; exists only before folding
    linear          y = clamp(bias[o] + sum_f w[o,f] x[f])
    add             y = clamp(x0 + x1)
    clamp           y = min(max(x, min), max); relu is (0, None), relu6 is (0, 6)
    max_pool2d, avg_pool2d, global_avg_pool, flatten, concat (channels)
    channel_pad     zero maps before and after;  strided_slice: x[:, h0:h1:hs, w0:w1:ws]
    mean            mean of its inputs' logits
    qconv2d, qlinear, qadd, qrecode, qavg_pool2d, qglobal_avg_pool: integer forms
    max_pool2d, flatten, concat, channel_pad and strided_slice also move codes; zero maps are then the zero point
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from .spec import TensorSpec

Attrs = Mapping[str, Any]
Params = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class ShapeError(ValueError):
    """Operands do not fit; :mod:`hce_engine.graph.verify` turns it into a GraphError that names the node."""


def conv_output(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        raise ShapeError(f"a kernel that fits {size} pixels with padding {padding}, got kernel {kernel} x {dilation}")
    return out


def _map_shape(spec: TensorSpec) -> tuple[int, int, int]:
    if len(spec.shape) != 3:
        raise ShapeError(f"a map (C, H, W), got shape {spec.shape}")
    return spec.shape


def _conv_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    c, h, w = _map_shape(inputs[0])
    weight = params["weight"]
    if weight.ndim != 4:
        raise ShapeError(f"weight [OC, C/groups, KH, KW], got rank {weight.ndim}")
    oc, cg, kh, kw = weight.shape
    if min(kh, kw) < 1:
        raise ShapeError(f"a kernel of at least one tap, got weight {weight.shape}")
    groups = attrs["groups"]
    if groups < 1 or c % groups or oc % groups or cg * groups != c:
        raise ShapeError(f"C = {c} = groups * weight.shape[1] and OC divisible, got weight {weight.shape}, groups {groups}")
    (sh, sw), (ph, pw), (dh, dw) = attrs["stride"], attrs["padding"], attrs["dilation"]
    out = (oc, conv_output(h, kh, sh, ph, dh), conv_output(w, kw, sw, pw, dw))
    if len(inputs) == 2 and inputs[1].shape != out:
        raise ShapeError(f"a residual of shape {out}, got {inputs[1].shape}")
    return out


def _linear_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    weight = params["weight"]
    if len(inputs[0].shape) != 1 or weight.ndim != 2 or weight.shape[1] != inputs[0].shape[0]:
        raise ShapeError(f"a vector and weight [O, F] of the same F, got {inputs[0].shape} and {weight.shape}")
    return (weight.shape[0],)


def _same(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    if any(i.shape != inputs[0].shape for i in inputs):
        raise ShapeError(f"operands of one shape, got {[i.shape for i in inputs]}")
    return inputs[0].shape


def _per_channel(*names: str) -> Callable[[Sequence[TensorSpec], Attrs, Params], Shape]:
    def infer(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
        for name in names:
            if params[name].shape != (inputs[0].shape[0],):
                raise ShapeError(f"{name} of shape ({inputs[0].shape[0]},), got {params[name].shape}")
        return inputs[0].shape

    return infer


def _pool_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    c, h, w = _map_shape(inputs[0])
    (kh, kw), (sh, sw), (ph, pw) = attrs["kernel"], attrs["stride"], attrs["padding"]
    if 2 * ph > kh or 2 * pw > kw:
        raise ShapeError(f"padding of at most half the kernel, got kernel {(kh, kw)} padding {(ph, pw)}")
    return (c, conv_output(h, kh, sh, ph, 1), conv_output(w, kw, sw, pw, 1))


def _global_pool_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    return (_map_shape(inputs[0])[0], 1, 1)


def _flatten_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    return (inputs[0].elements,)


def _pad_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    c, h, w = _map_shape(inputs[0])
    return (c + attrs["before"] + attrs["after"], h, w)


def _slice_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    c, h, w = _map_shape(inputs[0])
    sizes = []
    for size, (start, stop, step) in ((h, attrs["h"]), (w, attrs["w"])):
        if not (0 <= start < stop <= size and step >= 1):
            raise ShapeError(f"0 <= start < stop <= {size} and step >= 1, got {[start, stop, step]}")
        sizes.append(-(-(stop - start) // step))
    return (c, *sizes)


def _concat_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    maps = [_map_shape(i) for i in inputs]
    if any(m[1:] != maps[0][1:] for m in maps):
        raise ShapeError(f"maps of one height and width, got {maps}")
    return (sum(m[0] for m in maps), *maps[0][1:])


def _input_shape(inputs: Sequence[TensorSpec], attrs: Attrs, params: Params) -> Shape:
    raise ShapeError("an input node's shape is given, not inferred")


INT, PAIR, TRIPLE, NUMBER, OPTIONAL, TEXT, INTS = "int", "pair", "triple", "number", "optional", "text", "ints"
_CONV = {"stride": PAIR, "padding": PAIR, "dilation": PAIR, "groups": INT}
_CLAMP = {"min": OPTIONAL, "max": OPTIONAL}
_CODES = {"qmin": INT, "qmax": INT}  # output codes are clamped to [qmin, qmax], inside the range of the output dtype
_POOL = {"kernel": PAIR, "stride": PAIR, "padding": PAIR}


@dataclass(frozen=True)
class Op:
    """One row of the legality table.

    arity: least and most inputs. attrs: exactly these keys, with the kind of each value. params: exactly these
    arrays, with the numpy type of each. reads, yields: element types allowed for inputs and output; ``same`` means
    that the output has the type, scale and zero point of the first input.
    """

    name: str
    arity: tuple[int, int]
    infer: Callable[[Sequence[TensorSpec], Attrs, Params], Shape]
    attrs: Mapping[str, str]
    params: Mapping[str, str]
    reads: tuple[str, ...]
    yields: tuple[str, ...]


_F, _Q, _ANY, _SAME = ("f32",), ("u8", "u4", "u3"), ("f32", "u8", "u4", "u3"), ("same",)
_QUANT_PARAMS = {"weight": "int8", "bias": "int32", "multiplier": "float32"}

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("input", (0, 0), _input_shape, {}, {}, (), ("u8", "f32")),
        Op("normalize", (1, 1), _per_channel("scale", "offset"), {}, {"scale": "float32", "offset": "float32"},
           ("u8", "f32"), _F),
        Op("quantize_input", (1, 1), _same, {"low": NUMBER, "multiplier": NUMBER}, {}, _F, ("u8",)),
        # folded_norm: 1 if a batch norm was folded into this convolution; the ledger counts it as the paper does.
        Op("conv2d", (1, 2), _conv_shape, {**_CONV, **_CLAMP, "folded_norm": INT}, {"weight": "float32", "bias": "float32"}, _F, _F),
        Op("batch_norm", (1, 1), _per_channel("gamma", "beta", "mean", "var"), {"eps": NUMBER},
           {"gamma": "float32", "beta": "float32", "mean": "float32", "var": "float32"}, _F, _F),
        Op("linear", (1, 1), _linear_shape, _CLAMP, {"weight": "float32", "bias": "float32"}, _F, _F),
        Op("add", (2, 2), _same, _CLAMP, {}, _F, _F),
        Op("clamp", (1, 1), _same, _CLAMP, {}, _F, _F),
        Op("max_pool2d", (1, 1), _pool_shape, _POOL, {}, _ANY, _SAME),
        Op("avg_pool2d", (1, 1), _pool_shape, {**_POOL, "count_include_pad": INT}, {}, _F, _F),
        Op("global_avg_pool", (1, 1), _global_pool_shape, {}, {}, _F, _F),
        Op("flatten", (1, 1), _flatten_shape, {}, {}, _ANY, _SAME),
        Op("channel_pad", (1, 1), _pad_shape, {"before": INT, "after": INT}, {}, _ANY, _SAME),
        Op("strided_slice", (1, 1), _slice_shape, {"h": TRIPLE, "w": TRIPLE}, {}, _ANY, _SAME),
        Op("concat", (1, 64), _concat_shape, {}, {}, _ANY, _SAME),
        Op("mean", (1, 64), _same, {}, {}, _F, _F),
        # pad_code: the input code that stands for a padded pixel, one per input channel. residual_multiplier is the
        # factor g of the second input, 0 when there is none. bits: (weight, input activation) as trained, for the
        # ledger; at most the widths in storage.
        Op("qconv2d", (1, 2), _conv_shape,
           {**_CONV, **_CODES, "weight_dtype": TEXT, "bits": PAIR, "pad_code": INTS, "residual_multiplier": NUMBER,
            "folded_norm": INT}, _QUANT_PARAMS, _Q, _Q),
        Op("qlinear", (1, 1), _linear_shape, {"weight_dtype": TEXT, "bits": PAIR}, {**_QUANT_PARAMS, "offset": "float32"}, _Q, _F),
        Op("qadd", (2, 2), _same, {**_CODES, "multipliers": "numbers"}, {}, _Q, _Q),
        Op("qrecode", (1, 1), _same, {**_CODES, "k": INT}, {}, _Q, _Q),
        Op("qavg_pool2d", (1, 1), _pool_shape, {**_POOL, **_CODES, "multiplier": NUMBER}, {}, _Q, _Q),
        Op("qglobal_avg_pool", (1, 1), _global_pool_shape, {**_CODES, "multiplier": NUMBER}, {}, _Q, _Q),
    )
}

assert all(t in DTYPES for op in OPS.values() for t in op.reads)
