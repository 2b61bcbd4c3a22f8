"""How wide codes and weights are stored on the GPU: the rules, each in one place and with its reason. Results never
depend on them.

A map is as wide as its type, with these exceptions:

    residual operands         8 bits   the epilogue reads them byte by byte, and streams are u8 anyway
    results of concat         8 bits   operands land at any channel, which would be any bit of a byte otherwise
    codes moved unchanged     at least as wide as they lie where they come from: a move does not narrow
    u3 below 64 channels      4 bits   three bits save a quarter of the bytes and cost about 2.5 times the instructions of an
                                       unpack (two planes instead of one); thin layers are bound by instructions

The width of u3 awaits measurement.
"""

from __future__ import annotations

from ...dtypes import DTYPES
from ...kernels.formats import WEIGHT_SCALE, MapFormat
from ...kernels.layer import narrowest_storage
from .plan import Layer

DENSE_TRIPLES_FROM = 64  # channels


def map_bits(dtype: str, channels: int, *, wide: bool) -> int:
    """Bits of storage of a map of ``dtype``; wide: a residual operand or the result of a concat."""
    bits = DTYPES[dtype].bits
    if wide or bits == 8:
        return 8
    return 4 if bits == 3 and channels < DENSE_TRIPLES_FROM else bits


def weight_storages(layer: Layer, weight_dtype: str, x: MapFormat) -> tuple[int, ...]:
    """Widths in which the weights of a layer may be stored so that every sum stays exact: 8, and narrower ones."""
    bits = DTYPES[weight_dtype].bits
    return tuple(
        b for b in sorted(WEIGHT_SCALE, reverse=True)
        if b >= bits and narrowest_storage(layer.weight, layer.bias, layer.multiplier, x, layer.x_qmax, b) == b
    )
