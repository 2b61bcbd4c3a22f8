"""Sub-tiles of int8 codes from packed bytes: the inner step of every integer product (formats.py has the layouts).

Loads give bytes, shifts and masks spread a byte over 2, 4 or 8 sub-tiles; nothing moves between lanes. Left to itself the
compiler works byte by byte; with ``ASM`` four bytes are taken at a time as one register (1,038 instructions against 687 in
a 16-channel convolution on sm_90). Which four share a register is the compiler's choice, so assembly treats its bytes alike.
The interpreter has no assembly, so each function has both forms; a test checks the truth table of both on every byte.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack_pairs(p, ASM: tl.constexpr):
    """Unsigned nibbles of a byte: (low, high), codes 0..15 as int8."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; and.b32 $0, $2, 0x0F0F0F0F; shr.u32 t, $2, 4; and.b32 $1, t, 0x0F0F0F0F; }", "=&r,=&r,r", [p],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )
    return p & 15, (p >> 4) & 15


@triton.jit
def unpack_weight_pairs(p, ASM: tl.constexpr):
    """Signed nibbles of a byte at the top of their bytes: (16 * low, 16 * high)."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $2, 4; and.b32 $0, t, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0; }", "=&r,=&r,r", [p],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )
    return p << 4, p & -16


@triton.jit
def unpack_triples(a, h, ASM: tl.constexpr):
    """Unsigned 3-bit codes: four int8 tiles from the bytes of plane 0 and the nibble of plane 1 that belongs to each, in bits
    0..3 of a byte."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 t;
                 and.b32 $0, $4, 0x03030303; shl.b32 t, $5, 2; and.b32 t, t, 0x04040404; or.b32 $0, $0, t;
                 shr.u32 t, $4, 2; and.b32 $1, t, 0x03030303; shl.b32 t, $5, 1; and.b32 t, t, 0x04040404; or.b32 $1, $1, t;
                 shr.u32 t, $4, 4; and.b32 $2, t, 0x03030303; and.b32 t, $5, 0x04040404; or.b32 $2, $2, t;
                 shr.u32 t, $4, 6; and.b32 $3, t, 0x03030303; shr.u32 t, $5, 1; and.b32 t, t, 0x04040404; or.b32 $3, $3, t; }""",
            "=&r,=&r,=&r,=&r,r,r", [a, h], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
        )
    return ((a & 3) | (h << 2 & 4), (a >> 2 & 3) | (h << 1 & 4), (a >> 4 & 3) | (h & 4), (a >> 6 & 3) | (h >> 1 & 4))


@triton.jit
def unpack_weight_triples(a, b, c, ASM: tl.constexpr):
    """Signed 3-bit codes at the top of their bytes, 32 * w: eight int8 tiles from the bytes of three planes.

    Six codes lie whole in a byte, three bits of which are at the top already or after one shift; the other two are put
    together from two bytes. That is 17 operations for 32 codes; planes of two bits and of signs need 32.
    """
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 t, u;
                 and.b32 $0, $8, 0xE0E0E0E0; shl.b32 t, $8, 3; and.b32 $1, t, 0xE0E0E0E0;
                 and.b32 $2, $9, 0xE0E0E0E0; shl.b32 t, $9, 3; and.b32 $3, t, 0xE0E0E0E0;
                 and.b32 $4, $10, 0xE0E0E0E0; shl.b32 t, $10, 3; and.b32 $5, t, 0xE0E0E0E0;
                 shl.b32 t, $8, 6; and.b32 t, t, 0xC0C0C0C0; shl.b32 u, $10, 4; and.b32 u, u, 0x20202020; or.b32 $6, t, u;
                 shl.b32 t, $9, 6; and.b32 t, t, 0xC0C0C0C0; shl.b32 u, $10, 5; and.b32 u, u, 0x20202020; or.b32 $7, t, u; }""",
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r", [a, b, c],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
        )
    return (
        a & -32, a << 3 & -32, b & -32, b << 3 & -32, c & -32, c << 3 & -32, (a << 6 & -64) | (c << 4 & 32),
        (b << 6 & -64) | (c << 5 & 32),
    )


@triton.jit
def _chunk(p0, p1, ok, BITS: tl.constexpr, ASM: tl.constexpr):
    """The sub-tiles of one chunk of BLOCK_K bytes of packed codes, 4 or 3 bits. ok: mask of rows, or None."""
    if ok is None:
        a = tl.load(p0)
    else:
        a = tl.load(p0, mask=ok, other=0)
    if BITS == 4:
        return unpack_pairs(a, ASM)
    else:
        if ok is None:
            b = tl.load(p1)
        else:
            b = tl.load(p1, mask=ok, other=0)
        _, high = unpack_pairs(b, ASM)
        return unpack_triples(a, tl.reshape(tl.join(b, high), a.shape), ASM)


@triton.jit
def _plain(p, ok):
    if ok is None:
        return tl.load(p)
    else:
        return tl.load(p, mask=ok, other=0)


@triton.jit
def activation_tiles(p0, p1, ok, BITS: tl.constexpr, TILES: tl.constexpr, BLOCK_K: tl.constexpr, ASM: tl.constexpr):
    """TILES int8 tiles [rows, BLOCK_K] of one step. p0: pointers [rows, BLOCK_K] to plane 0, p1: [rows, BLOCK_K / 2] to
    plane 1 (3 bits only); ok: mask [rows, 1] or None."""
    if BITS == 8:
        if TILES == 1:
            return (_plain(p0, ok),)
        elif TILES == 2:
            return _plain(p0, ok), _plain(p0 + BLOCK_K, ok)
        else:
            return (
                _plain(p0, ok), _plain(p0 + BLOCK_K, ok), _plain(p0 + 2 * BLOCK_K, ok), _plain(p0 + 3 * BLOCK_K, ok),
                _plain(p0 + 4 * BLOCK_K, ok), _plain(p0 + 5 * BLOCK_K, ok), _plain(p0 + 6 * BLOCK_K, ok),
                _plain(p0 + 7 * BLOCK_K, ok),
            )
    elif BITS == 4:
        if TILES == 2:
            return _chunk(p0, p1, ok, 4, ASM)
        else:
            return (
                _chunk(p0, p1, ok, 4, ASM) + _chunk(p0 + BLOCK_K, p1, ok, 4, ASM)
                + _chunk(p0 + 2 * BLOCK_K, p1, ok, 4, ASM) + _chunk(p0 + 3 * BLOCK_K, p1, ok, 4, ASM)
            )
    else:
        if TILES == 4:
            return _chunk(p0, p1, ok, 3, ASM)
        else:
            return _chunk(p0, p1, ok, 3, ASM) + _chunk(p0 + BLOCK_K, p1 + BLOCK_K // 2, ok, 3, ASM)


@triton.jit
def weight_tiles(p, BITS: tl.constexpr, TILES: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr):
    """TILES int8 tiles [BLOCK_N, BLOCK_K] of one step, WEIGHT_SCALE times the weights. p: pointers [BLOCK_N, BLOCK_K] to
    plane 0; PLANE: BLOCK_N * BLOCK_K."""
    if BITS == 8:
        if TILES == 1:
            return (tl.load(p),)
        elif TILES == 2:
            return tl.load(p), tl.load(p + PLANE)
        else:
            return tl.load(p), tl.load(p + PLANE), tl.load(p + 2 * PLANE), tl.load(p + 3 * PLANE)
    elif BITS == 4:
        if TILES == 2:
            return unpack_weight_pairs(tl.load(p), ASM)
        else:
            return unpack_weight_pairs(tl.load(p), ASM) + unpack_weight_pairs(tl.load(p + PLANE), ASM)
    else:
        return unpack_weight_triples(tl.load(p), tl.load(p + PLANE), tl.load(p + 2 * PLANE), ASM)


@triton.jit
def multiply(acc, x, w, TILES: tl.constexpr, SWAP: tl.constexpr):
    """acc + sum of the products of a step: acc [rows, BLOCK_N], or [BLOCK_N, rows] with SWAP."""
    for t in tl.static_range(TILES):
        if SWAP:
            acc = tl.dot(w[t], tl.trans(x[t]), acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(x[t], tl.trans(w[t]), acc, out_dtype=tl.int32)
    return acc
