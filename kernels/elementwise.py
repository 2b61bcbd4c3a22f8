"""Sums of two streams of codes, and codes on another grid: what no convolution beside them could take into its epilogue.

    add       code = z + rne(clamp(f32(a - z_a) * g_a + f32(b - z_b) * g_b, qmin - z, qmax - z))
              recoded = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')                         optional
    recode    code = clamp(z + (((x - z_x) * k + 2^15) >> 16), qmin, qmax)

All operands are maps of formats.py, 8, 4 or 3 bits each, of one height, width and number of channels; 0 < k < 2^23, so 255 k
+ 2^15 < 2^31. A tile is BLOCK_M pixels x BLOCK_C channels. Both products and the sum of ``add`` are
rounded separately; ``recode`` is integers only. Bound by memory: each byte is read or written once. Exact: tests compare
every bit with hce_engine.numerics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .description import Codes, clamps
from .device import DeviceMap
from .epilogue import place
from .launch import INTERPRETED, Cost, Launch, Recoded, power_of_two_from, require
from .requantize import load_codes, residual_to_float, store_codes, to_code
from .requantize import recode as recode_code

FACTOR_LIMIT = 2**23
NUM_WARPS = 4
TILE = 4096  # codes: 32 per thread


@triton.jit
def _centred(
    p0, p1, at, column, ok, BITS: tl.constexpr, PADDED: tl.constexpr, ZERO: tl.constexpr, BLOCK_C: tl.constexpr,
    ASM: tl.constexpr,
):
    """f32(code - z) of a tile; exact."""
    if BITS == 8:
        c = column + tl.arange(0, BLOCK_C)
        r = tl.load(p0 + at[:, None] + c[None, :], mask=ok[:, None] & (c < PADDED)[None, :], other=0)
        return residual_to_float(r, ZERO, ASM)
    return (load_codes(p0, p1, at, column, ok, BITS, PADDED, BLOCK_C) - ZERO).to(tl.float32)


@triton.jit(do_not_specialize=["pixels", "factor_a", "factor_b", "recode_factor"])
def add_kernel(
    a0, a1, b0, b1, y0, y1, z0, z1, pixels, factor_a, factor_b, recode_factor,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    A_BITS: tl.constexpr, A_START: tl.constexpr, A_PIXEL: tl.constexpr, A_ROW: tl.constexpr, A_IMAGE: tl.constexpr,
    A_PADDED: tl.constexpr, A_ZERO: tl.constexpr,
    B_BITS: tl.constexpr, B_START: tl.constexpr, B_PIXEL: tl.constexpr, B_ROW: tl.constexpr, B_IMAGE: tl.constexpr,
    B_PADDED: tl.constexpr, B_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    Z_BITS: tl.constexpr, Z_START: tl.constexpr, Z_PIXEL: tl.constexpr, Z_ROW: tl.constexpr, Z_IMAGE: tl.constexpr,
    Z_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr,
    Z_QMAX: tl.constexpr, CLAMP: tl.constexpr, Z_CLAMP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ASM: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < pixels
    n = m // (HEIGHT * WIDTH)
    i = (m // WIDTH) % HEIGHT
    j = m % WIDTH
    column = tl.program_id(1) * BLOCK_C
    at = n * A_IMAGE + i * A_ROW + j * A_PIXEL + A_START
    v = _centred(a0, a1, at, column, ok, A_BITS, A_PADDED, A_ZERO, BLOCK_C, ASM) * factor_a
    at = n * B_IMAGE + i * B_ROW + j * B_PIXEL + B_START
    v = v + _centred(b0, b1, at, column, ok, B_BITS, B_PADDED, B_ZERO, BLOCK_C, ASM) * factor_b
    code = to_code(v, ZERO, QMIN, QMAX, CLAMP)
    if Y_BITS:
        at = n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START
        store_codes(y0, y1, at, column, code, ok, Y_BITS, Y_PADDED, BLOCK_M, BLOCK_C, ASM)
    if Z_BITS:
        code = recode_code(code, recode_factor, ZERO, Z_ZERO, Z_QMIN, Z_QMAX, Z_CLAMP)
        at = n * Z_IMAGE + i * Z_ROW + j * Z_PIXEL + Z_START
        store_codes(z0, z1, at, column, code, ok, Z_BITS, Z_PADDED, BLOCK_M, BLOCK_C, ASM)


@triton.jit(do_not_specialize=["pixels", "factor"])
def recode_kernel(
    x0, x1, y0, y1, pixels, factor, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    X_PADDED: tl.constexpr, X_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, CLAMP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ASM: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < pixels
    n = m // (HEIGHT * WIDTH)
    i = (m // WIDTH) % HEIGHT
    j = m % WIDTH
    column = tl.program_id(1) * BLOCK_C
    at = n * X_IMAGE + i * X_ROW + j * X_PIXEL + X_START
    code = load_codes(x0, x1, at, column, ok, X_BITS, X_PADDED, BLOCK_C)
    code = recode_code(code, factor, X_ZERO, ZERO, QMIN, QMAX, CLAMP)
    at = n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START
    store_codes(y0, y1, at, column, code, ok, Y_BITS, Y_PADDED, BLOCK_M, BLOCK_C, ASM)


def _same_place(who: str, x: DeviceMap, others: dict[str, DeviceMap | None]) -> None:
    form = x.form
    expected = (form.channels, form.height, form.width, x.batch)
    for key, value in others.items():
        if value is not None:
            got = (value.form.channels, value.form.height, value.form.width, value.batch)
            require(who, got == expected, f"{key} of channels, height, width and images {expected}", got)


def _tile(channels: int) -> dict[str, int]:
    block_c = min(power_of_two_from(channels, 16), 128)
    return {"BLOCK_M": TILE // block_c, "BLOCK_C": block_c}


def _bytes(*maps: DeviceMap | None) -> int:
    """Of the inner pixels."""
    return sum(m.batch * m.form.height * m.form.width * sum(m.form.pixel_bytes) for m in maps if m is not None)


def add(
    name: str, a: DeviceMap, b: DeviceMap, y: DeviceMap | None, *, zero_points: tuple[int, int],
    multipliers: tuple[float, float], codes: Codes, recoded: Recoded | None = None, asm: bool = not INTERPRETED,
) -> Launch:
    """The sum of two maps. y: map of the codes.  recoded: map of the codes derived from them; at least one of the two.
    Raises ValueError for operands that do not fit each other."""
    who, form = f"add {name}", a.form
    z = recoded.map if recoded else None
    require(who, y is not None or z is not None, "an output", "none")
    _same_place(who, a, {"b": b, "y": y, "recoded": z})
    for key, value, target in (("y", y, codes), ("recoded", z, recoded.codes if recoded else codes)):
        if value is not None:
            require(who, target.qmax < 1 << value.form.bits, f"codes of {value.form.bits} bits in {key}", target.qmax)
    if recoded is not None:
        require(who, 0 < recoded.factor < FACTOR_LIMIT, f"a factor in 1..{FACTOR_LIMIT - 1}", recoded.factor)
    largest = 255 * (abs(multipliers[0]) + abs(multipliers[1])) * 1.001
    derived = (recoded.codes, recoded.map.form.bits, recoded.factor) if recoded else None
    clamp = clamps(largest, codes, y.form.bits if y else None, derived)
    pixels = a.batch * form.height * form.width
    tile = _tile(form.channels)
    arguments: dict[str, torch.Tensor | int | float] = {
        "a0": a.plane0, "a1": a.plane1, "b0": b.plane0, "b1": b.plane1, "y0": (y or a).plane0, "y1": (y or a).plane1,
        "z0": (z or a).plane0, "z1": (z or a).plane1, "pixels": pixels, "factor_a": float(multipliers[0]),
        "factor_b": float(multipliers[1]), "recode_factor": recoded.factor if recoded else 0,
    }
    constants = {
        "HEIGHT": form.height, "WIDTH": form.width, "A_BITS": form.bits, **place("A", a), "A_ZERO": zero_points[0],
        "B_BITS": b.form.bits, **place("B", b), "B_ZERO": zero_points[1], "Y_BITS": y.form.bits if y else 0,
        **place("Y", y), "Z_BITS": z.form.bits if z else 0, **place("Z", z), "ZERO": codes.zero_point,
        "QMIN": codes.qmin, "QMAX": codes.qmax, "Z_ZERO": recoded.codes.zero_point if recoded else 0,
        "Z_QMIN": recoded.codes.qmin if recoded else 0, "Z_QMAX": recoded.codes.qmax if recoded else 0,
        "CLAMP": clamp.value, "Z_CLAMP": clamp.recoded, "ASM": asm, **tile,
    }
    grid = (-(-pixels // tile["BLOCK_M"]), -(-form.channels // tile["BLOCK_C"]))
    return Launch(name, add_kernel, grid, arguments, constants, NUM_WARPS, 1, Cost(_bytes(a, b), _bytes(y, z)))


def recode(
    name: str, x: DeviceMap, y: DeviceMap, *, zero_point_in: int, codes: Codes, factor: int,
    asm: bool = not INTERPRETED,
) -> Launch:
    """The codes of x on the grid of y. Raises ValueError for operands that do not fit each other."""
    who, form = f"recode {name}", x.form
    _same_place(who, x, {"y": y})
    require(who, codes.qmax < 1 << y.form.bits, f"codes of {y.form.bits} bits", codes.qmax)
    require(who, 0 < factor < FACTOR_LIMIT, f"a factor in 1..{FACTOR_LIMIT - 1}", factor)
    stored = y.form.bits in (8, 4) and (codes.qmin, codes.qmax) == (0, (1 << y.form.bits) - 1)
    pixels = x.batch * form.height * form.width
    tile = _tile(form.channels)
    arguments: dict[str, torch.Tensor | int | float] = {
        "x0": x.plane0, "x1": x.plane1, "y0": y.plane0, "y1": y.plane1, "pixels": pixels, "factor": factor,
    }
    constants = {
        "HEIGHT": form.height, "WIDTH": form.width, "X_BITS": form.bits, **place("X", x), "X_ZERO": zero_point_in,
        "Y_BITS": y.form.bits, **place("Y", y), "ZERO": codes.zero_point, "QMIN": codes.qmin, "QMAX": codes.qmax,
        "CLAMP": not stored, "ASM": asm, **tile,
    }
    grid = (-(-pixels // tile["BLOCK_M"]), -(-form.channels // tile["BLOCK_C"]))
    return Launch(name, recode_kernel, grid, arguments, constants, NUM_WARPS, 1, Cost(_bytes(x), _bytes(y)))
