"""The constants of one depthwise layer as its kernel wants them. Plain numpy.

A pixel of a packed map spreads over ``tiles`` sub-tiles (formats.py): place ``p`` of sub-tile ``t`` is channel
``p * tiles + t``. Weights follow it, one byte each whatever their width:

    weight[a * KW + b][t][p] = w[p * tiles + t, 0, a, b]                int8 [KH * KW][tiles][Cp / tiles], 0 beyond C

so a byte of codes and its weights meet in the same lane. Kernels see ``x - centre``, centre 128 for 8-bit maps, hence

    bias' = bias + centre * sum w                                       [+ MAGIC_BITS where the proof of layer.py holds]

The bound of the true sum, ``|bias| + qmax * sum |w| < 2^31``, is all that is needed: bias' and partial sums are taken modulo
2^32 and come back to the true sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import CENTRE, CODES_PER_BYTE, MapFormat, WeightFormat
from .layer import INT32_LIMIT, MAGIC_BITS, MAGIC_LIMIT, LayerArrays, largest_sum

CONSTANTS = 128  # bias and multipliers are padded to a multiple of it: the widest tile of a launch


@dataclass(frozen=True)
class DepthwiseArrays(LayerArrays):
    """Of LayerArrays, form: one block of all Cp channels, a step of one code per tap; weight: int8 as above.  kernel:
    (KH, KW).  channels, x_bits: of the map it reads."""

    kernel: tuple[int, int]
    channels: int
    x_bits: int


def depthwise_arrays(
    weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, x: MapFormat, x_qmax: int
) -> DepthwiseArrays:
    """weight: int8 codes ``[C, 1, KH, KW]``; bias int32 and multiplier float32 ``[C]``; x: the map it reads, with codes up
    to ``x_qmax``.  Raises ValueError for other shapes and where a sum could leave int32."""
    channels, per_group, kh, kw = weight.shape
    if (channels, per_group) != (x.channels, 1):
        raise ValueError(f"depthwise_arrays: expected weights ({x.channels}, 1, KH, KW), got {weight.shape}")
    flat = weight.astype(np.int64).reshape(channels, -1)
    sums = np.abs(bias.astype(np.int64)) + x_qmax * np.abs(flat).sum(axis=1)
    if int(sums.max(initial=0)) > INT32_LIMIT:
        raise ValueError(f"depthwise_arrays: expected sums up to {INT32_LIMIT}, got {sums.max()}")
    tiles, length = CODES_PER_BYTE[x.bits], -(-x.padded // CONSTANTS) * CONSTANTS
    taps = np.zeros((kh * kw, x.padded), np.int8)
    taps[:, :channels] = weight.reshape(channels, kh * kw).T
    tiled = np.ascontiguousarray(taps.reshape(kh * kw, x.padded // tiles, tiles).transpose(0, 2, 1))
    magic = largest_sum(weight, bias, x, x_qmax) < MAGIC_LIMIT
    biases = np.full(length, MAGIC_BITS if magic else 0, np.int64)
    biases[:channels] += bias.astype(np.int64) + (CENTRE * flat.sum(axis=1) if x.bits == 8 else 0)
    factors = np.zeros(length, np.float32)
    factors[:channels] = multiplier
    largest = float((sums * np.abs(multiplier.astype(np.float64))).max(initial=0)) * 1.001
    return DepthwiseArrays(
        WeightFormat(8, 1, x.padded, 1, kh * kw, 1, 1, 1), tiled, biases.astype(np.int32), factors, np.zeros_like(factors),
        magic, weight.size, largest, (kh, kw), channels, x.bits,
    )
