"""The epilogue of every integer kernel: sums to codes to packed bytes, each operation rounded on its own (docs/NUMERICS.md).

    v    = f32(acc) * m [+ f32(r - z_r) * g]
    code = z + rne(clamp(v, qmin - z, qmax - z))
    recoded = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')

Compile with ``enable_fp_fusion=False``: a product and a sum must not become one rounding. Rounding adds 12582912 = 1.5 * 2^23,
which leaves a float of unit spacing, and reads the integer from its bits: half to even for |v| < 2^22, and v is clamped to
[-255, 255] or proven to be small. The same number turns an accumulator into a float in one addition where |acc| < 2^22 is
proven (``MAGIC``): it is then part of the bias.

Packing is where a byte-wise compiler loses most. GPUs since sm_80 convert two integers to bytes or nibbles, saturate them and
append them to a word in one instruction (``cvt.pack.sat``, I2IP in machine code, nibbles too): with ``ASM`` a clamp to the
range of the storage and the packing together cost half an instruction per code. Each function has its plain twin.
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
def residual_to_float(r, ZERO: tl.constexpr, ASM: tl.constexpr):
    """f32(code - z) of the bytes code - 128 of an 8-bit map; exact.

    With ASM a byte is placed below the exponent of 2^23: 8388608 + code, from which 8388608 + z is subtracted.
    """
    if ASM:
        bits = tl.inline_asm_elementwise(
            """{ .reg .b32 t; xor.b32 t, $4, 0x80808080;
                 prmt.b32 $0, t, 0x4B000000, 0x7650; prmt.b32 $1, t, 0x4B000000, 0x7651;
                 prmt.b32 $2, t, 0x4B000000, 0x7652; prmt.b32 $3, t, 0x4B000000, 0x7653; }""",
            "=&r,=&r,=&r,=&r,r", [r], dtype=tl.int32, is_pure=True, pack=4,
        )
        low: tl.constexpr = 8388608.0 + ZERO
        return bits.to(tl.float32, bitcast=True) - low
    return (r.to(tl.int32) + (128 - ZERO)).to(tl.float32)


@triton.jit
def to_code(v, ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, CLAMP: tl.constexpr = True):
    """z + rne(clamp(v, qmin - z, qmax - z)), int32. Without CLAMP, z + rne(v): |v| < 2^22 must be proven, and whoever stores
    the code saturates it."""
    if CLAMP:
        low: tl.constexpr = float(QMIN - ZERO)
        high: tl.constexpr = float(QMAX - ZERO)
        v = tl.minimum(tl.maximum(v, low), high)
    return (v + MAGIC_FLOAT).to(tl.int32, bitcast=True) - (MAGIC_BITS - ZERO)


@triton.jit
def recode(code, k, ZERO_IN: tl.constexpr, ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, CLAMP: tl.constexpr = True):
    """clamp(z + (((code - z_in) * k + 2^15) >> 16), qmin, qmax), int32; integers only. Without CLAMP whoever stores it
    saturates it."""
    shifted = ((code - ZERO_IN) * k + 32768) >> 16
    if CLAMP:
        return tl.minimum(tl.maximum(shifted + ZERO, QMIN), QMAX)
    return shifted + ZERO


@triton.jit
def pack_bytes(code, ASM: tl.constexpr):
    """int8 bytes code - 128 of an 8-bit map, codes saturated to 0..255."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 t; cvt.pack.sat.s8.s32.b32 t, $4, $3, 0; cvt.pack.sat.s8.s32.b32 $0, $2, $1, t; }""",
            "=&r,r,r,r,r", [code - 128], dtype=tl.int8, is_pure=True, pack=4,
        )
    return (tl.minimum(tl.maximum(code, 0), 255) - 128).to(tl.int8)


@triton.jit
def pack_nibbles(even, odd, ASM: tl.constexpr):
    """int8 bytes even | odd << 4 of a 4-bit map, codes saturated to 0..15."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 t; cvt.pack.sat.u4.s32.b32 t, $8, $4, 0; cvt.pack.sat.u4.s32.b32 t, $7, $3, t;
                 cvt.pack.sat.u4.s32.b32 t, $6, $2, t; cvt.pack.sat.u4.s32.b32 $0, $5, $1, t; }""",
            "=&r,r,r,r,r,r,r,r,r", [even, odd], dtype=tl.int8, is_pure=True, pack=4,
        )
    even = tl.minimum(tl.maximum(even, 0), 15)
    odd = tl.minimum(tl.maximum(odd, 0), 15)
    return (even | odd << 4).to(tl.int8)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Even and odd columns of x [ROWS, COLUMNS], each [ROWS, COLUMNS / 2]."""
    return tl.split(tl.reshape(x, [ROWS, COLUMNS // 2, 2]))


@triton.jit
def store_codes(
    p0, p1, pixel0, column, code, ok, BITS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ASM: tl.constexpr = False,
):
    """Codes int32 [ROWS, COLUMNS] to a map of BITS; 8 and 4 bits saturate, 3 bits must be in range. pixel0: byte offset [ROWS] of each pixel in plane 0 (plane 1: half of
    it); column: first channel of the tile, a multiple of COLUMNS; ok: mask [ROWS]. Channels from PADDED on are not stored."""
    if BITS == 8:
        c = tl.arange(0, COLUMNS)
        mask = ok[:, None] & ((column + c) < PADDED)[None, :]
        tl.store(p0 + (pixel0 + column)[:, None] + c[None, :], pack_bytes(code, ASM), mask=mask)
    else:
        even, odd = halves(code, ROWS, COLUMNS)
        if BITS == 4:
            c = tl.arange(0, COLUMNS // 2)
            mask = ok[:, None] & ((column // 2 + c) < PADDED // 2)[None, :]
            tl.store(p0 + (pixel0 + column // 2)[:, None] + c[None, :], pack_nibbles(even, odd, ASM), mask=mask)
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
    ALIGNED: tl.constexpr = True,
):
    """Codes int32 [ROWS, COLUMNS] of a map of BITS; the inverse of :func:`store_codes`. Channels below 0 and from PADDED on
    are 0. ALIGNED: column is a multiple of 8, so each byte is loaded once and spread over lanes; else each lane loads its byte."""
    if BITS == 8 or not ALIGNED:
        c = column + tl.arange(0, COLUMNS)
        mask = ok[:, None] & ((c >= 0) & (c < PADDED))[None, :]
        if BITS == 8:
            return tl.load(p0 + pixel0[:, None] + c[None, :], mask=mask, other=-128).to(tl.int32) + 128
        elif BITS == 4:
            b = tl.load(p0 + pixel0[:, None] + (c // 2)[None, :], mask=mask, other=0).to(tl.int32)
            return (b >> ((c & 1) * 4)[None, :]) & 15
        else:
            a = tl.load(p0 + pixel0[:, None] + (c // 4)[None, :], mask=mask, other=0).to(tl.int32)
            b = tl.load(p1 + (pixel0 // 2)[:, None] + (c // 8)[None, :], mask=mask, other=0).to(tl.int32)
            return ((a >> ((c & 3) * 2)[None, :]) & 3) | ((b >> (c & 7)[None, :]) & 1) << 2
    elif BITS == 4:
        c = column // 2 + tl.arange(0, COLUMNS // 2)
        mask = ok[:, None] & ((c >= 0) & (c < PADDED // 2))[None, :]
        b = tl.load(p0 + pixel0[:, None] + c[None, :], mask=mask, other=0).to(tl.int32)
        return tl.interleave(b & 15, (b >> 4) & 15)
    else:
        c = column // 4 + tl.arange(0, COLUMNS // 4)
        mask = ok[:, None] & ((c >= 0) & (c < PADDED // 4))[None, :]
        a = tl.load(p0 + pixel0[:, None] + c[None, :], mask=mask, other=0).to(tl.int32)
        d = column // 8 + tl.arange(0, COLUMNS // 8)
        mask = ok[:, None] & ((d >= 0) & (d < PADDED // 8))[None, :]
        b = tl.load(p1 + (pixel0 // 2)[:, None] + d[None, :], mask=mask, other=0).to(tl.int32)
        h = tl.interleave(b, b >> 4)
        even = tl.interleave((a & 3) | (h & 1) << 2, ((a >> 4) & 3) | (h & 4))
        odd = tl.interleave(((a >> 2) & 3) | (h & 2) << 1, ((a >> 6) & 3) | (h & 8) >> 1)
        return tl.interleave(even, odd)
