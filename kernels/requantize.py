"""The epilogue of every integer kernel: sums to codes to packed bytes, each operation rounded on its own (docs/NUMERICS.md).

    v    = f32(acc) * m [+ f32(r - z_r) * g]
    code = z + rne(clamp(v, qmin - z, qmax - z))
    recoded = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')

Compile with ``enable_fp_fusion=False``: a product and a sum must not become one rounding. Rounding adds 12582912 = 1.5 * 2^23,
which leaves a float of unit spacing, and reads the integer from its bits: half to even for |v| < 2^22, and v is clamped to
[-255, 255]. The same number turns an accumulator into a float in one addition where the plan proved |acc| < 2^22
(``MAGIC``): it is then part of the bias.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGIC_FLOAT = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def to_float(acc, MAGIC: tl.constexpr):
    """f32(acc); with MAGIC, acc carries MAGIC_BITS."""
    if MAGIC:
        return acc.to(tl.float32, bitcast=True) - MAGIC_FLOAT
    return acc.to(tl.float32)


@triton.jit
def to_code(v, ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr):
    """z + rne(clamp(v, qmin - z, qmax - z)), int32."""
    low: tl.constexpr = float(QMIN - ZERO)
    high: tl.constexpr = float(QMAX - ZERO)
    v = tl.minimum(tl.maximum(v, low), high)
    return (v + MAGIC_FLOAT).to(tl.int32, bitcast=True) - (MAGIC_BITS - ZERO)


@triton.jit
def recode(code, k, ZERO_IN: tl.constexpr, ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr):
    """clamp(z + (((code - z_in) * k + 2^15) >> 16), qmin, qmax), int32; integers only."""
    shifted = ((code - ZERO_IN) * k + 32768) >> 16
    return tl.minimum(tl.maximum(shifted + ZERO, QMIN), QMAX)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Even and odd columns of x [ROWS, COLUMNS], each [ROWS, COLUMNS / 2]."""
    return tl.split(tl.reshape(x, [ROWS, COLUMNS // 2, 2]))


@triton.jit
def store_codes(
    p0, p1, pixel0, column, code, ok, BITS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Codes int32 [ROWS, COLUMNS] to a map of BITS. pixel0: byte offset [ROWS] of each pixel in plane 0 (plane 1: half of
    it); column: first channel of the tile, a multiple of COLUMNS; ok: mask [ROWS]. Channels from PADDED on are not stored."""
    if BITS == 8:
        c = tl.arange(0, COLUMNS)
        mask = ok[:, None] & ((column + c) < PADDED)[None, :]
        tl.store(p0 + (pixel0 + column)[:, None] + c[None, :], (code - 128).to(tl.int8), mask=mask)
    else:
        even, odd = halves(code, ROWS, COLUMNS)
        if BITS == 4:
            c = tl.arange(0, COLUMNS // 2)
            mask = ok[:, None] & ((column // 2 + c) < PADDED // 2)[None, :]
            tl.store(p0 + (pixel0 + column // 2)[:, None] + c[None, :], (even | odd << 4).to(tl.int8), mask=mask)
        else:
            a, b = halves((even & 3) | (odd & 3) << 2, ROWS, COLUMNS // 2)
            c = tl.arange(0, COLUMNS // 4)
            mask = ok[:, None] & ((column // 4 + c) < PADDED // 4)[None, :]
            tl.store(p0 + (pixel0 + column // 4)[:, None] + c[None, :], (a | b << 4).to(tl.int8), mask=mask)
            d, e = halves((even >> 2) | (odd >> 2) << 1, ROWS, COLUMNS // 2)
            f, g = halves(d | e << 2, ROWS, COLUMNS // 4)
            h = tl.arange(0, COLUMNS // 8)
            mask = ok[:, None] & ((column // 8 + h) < PADDED // 8)[None, :]
            tl.store(p1 + (pixel0 // 2 + column // 8)[:, None] + h[None, :], (f | g << 4).to(tl.int8), mask=mask)


@triton.jit
def load_codes(
    p0, p1, pixel0, column, ok, BITS: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Codes int32 [ROWS, COLUMNS] of a map of BITS, one channel per lane; the inverse of :func:`store_codes`. Channels from
    PADDED on are 0."""
    c = column + tl.arange(0, COLUMNS)
    mask = ok[:, None] & (c < PADDED)[None, :]
    if BITS == 8:
        return tl.load(p0 + pixel0[:, None] + c[None, :], mask=mask, other=-128).to(tl.int32) + 128
    elif BITS == 4:
        b = tl.load(p0 + pixel0[:, None] + (c // 2)[None, :], mask=mask, other=0).to(tl.int32)
        return (b >> ((c & 1) * 4)[None, :]) & 15
    else:
        a = tl.load(p0 + pixel0[:, None] + (c // 4)[None, :], mask=mask, other=0).to(tl.int32)
        b = tl.load(p1 + (pixel0 // 2)[:, None] + (c // 8)[None, :], mask=mask, other=0).to(tl.int32)
        return ((a >> ((c & 3) * 2)[None, :]) & 3) | ((b >> (c & 7)[None, :]) & 1) << 2
