"""The constants of one quantized layer as a kernel wants them: packed weights, bias and multiplier.

A kernel computes ``S * sum w (x - centre)`` with S = WEIGHT_SCALE and centre 128 for 8-bit maps, so

    bias'       = S * (bias + centre * sum w)           [+ MAGIC_BITS where the proof of requantize.py holds]
    multiplier' = multiplier / S                        exact: a power of two

and ``f32(S * acc) * (m / S)`` is ``f32(acc) * m`` to the bit, as long as nothing overflows, which is proven here per layer.
Plain numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import CENTRE, WEIGHT_SCALE, MapFormat, WeightFormat, pack_weights, weight_format

MAGIC_BITS = 0x4B400000
MAGIC_LIMIT = 2**22
INT32_LIMIT = 2**31 - 1
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class LayerArrays:
    """weight: uint8 [form.bytes].  bias: int32, multiplier and offset: float32, each [blocks * block_n].  magic: the bias
    carries MAGIC_BITS.  macs_per_pixel: real multiply-accumulates of one output pixel.  largest_value: bound of
    |f32(acc) * m|, with room for the rounding."""

    form: WeightFormat
    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray
    magic: bool
    macs_per_pixel: int
    largest_value: float


def largest_sum(weight: np.ndarray, bias: np.ndarray, x: MapFormat, x_qmax: int) -> int:
    """Bound of |bias' / S| and of every partial sum, in any order."""
    flat = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1)
    if x.bits == 8:
        centred = bias.astype(np.int64) + CENTRE * weight.astype(np.int64).reshape(weight.shape[0], -1).sum(axis=1)
        return int((np.abs(centred) + CENTRE * flat).max(initial=0))
    return int((np.abs(bias.astype(np.int64)) + x_qmax * flat).max(initial=0))


def narrowest_storage(weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, x: MapFormat, x_qmax: int, bits: int) -> int:
    """Bits of weight storage, ``bits`` or 8, for which the scaled sums provably fit int32 and the multipliers stay exact."""
    scale = WEIGHT_SCALE[bits]
    nonzero = np.abs(multiplier[multiplier != 0])
    exact = nonzero.size == 0 or float(nonzero.min()) / scale >= SMALLEST_NORMAL
    return bits if exact and largest_sum(weight, bias, x, x_qmax) * scale <= INT32_LIMIT else 8


def layer_arrays(
    weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, offset: np.ndarray | None, x: MapFormat, x_qmax: int,
    bits: int, block_k: int, block_n: int, dilation_w: int = 1,
) -> LayerArrays:
    """weight: int8 codes ``[OC, C, KH, KW]``; bias int32, multiplier and offset float32 ``[OC]``; x: the map it reads, with
    codes up to ``x_qmax``.  Raises ValueError where :func:`narrowest_storage` does not allow ``bits``."""
    if narrowest_storage(weight, bias, multiplier, x, x_qmax, bits) != bits:
        raise ValueError(f"layer_arrays: expected sums that fit int32 when scaled by {WEIGHT_SCALE[bits]}; store 8 bits")
    form = weight_format(weight.shape, x, bits, block_k, block_n, dilation_w)
    scale, oc = WEIGHT_SCALE[bits], weight.shape[0]
    magic = largest_sum(weight, bias, x, x_qmax) * scale < MAGIC_LIMIT
    sums = bias.astype(np.int64)
    if x.bits == 8:
        sums = sums + CENTRE * weight.astype(np.int64).reshape(oc, -1).sum(axis=1)
    sums = sums * scale + (MAGIC_BITS if magic else 0)

    def pad(values: np.ndarray, dtype: type) -> np.ndarray:
        full: np.ndarray = np.zeros(form.blocks * block_n, dtype)
        full[:oc] = values
        return full

    padded = pad(sums, np.int32)
    if magic:
        padded[oc:] = MAGIC_BITS
    # True sums, not centred ones: what the epilogue multiplies is the same number either way.
    flat = np.abs(weight.astype(np.int64)).reshape(oc, -1).sum(axis=1)
    values = (np.abs(bias.astype(np.float64)) + x_qmax * flat) * np.abs(multiplier.astype(np.float64))
    return LayerArrays(
        form, pack_weights(weight, x, form), padded, pad(multiplier / np.float32(scale), np.float32),
        pad(np.zeros(oc, np.float32) if offset is None else offset, np.float32), magic, weight[0].size * oc,
        float(values.max(initial=0)) * 1.001,
    )
