"""Maps of codes moved unchanged: strided slices, channel padding, channel slices and concatenation.

    y[n,i,j,c] = x[n, r0 + i * rs, c0 + j * cs, c - f]          where 0 <= c - f < C_x
                 fill                                           elsewhere

(r0, rs), (c0, cs): start and step of rows and columns; f: the channel of y where channel 0 of x goes. A negative f drops the
first channels of x; channels that do not fit y are dropped too. One call makes the option-A shortcut of a residual network: a
strided slice with channels padded on both sides. x, y: maps of formats.py, 8, 4 or 3 bits each. With ``whole`` every channel
of y is written; without it those of x alone, a byte each, so that a concatenation is one launch per operand. A tile is
BLOCK_M pixels x BLOCK_C channels. No arithmetic. Exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .device import DeviceMap
from .epilogue import place
from .launch import INTERPRETED, Cost, Launch, power_of_two_from, require
from .requantize import load_codes, pack_bytes, store_codes

NUM_WARPS = 4
TILE = 4096  # codes: 32 per thread


@triton.jit(do_not_specialize=["pixels"])
def gather_kernel(
    x0, x1, y0, y1, pixels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, FIRST: tl.constexpr,
    FILL: tl.constexpr,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    X_PADDED: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ASM: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < pixels
    n = m // (HEIGHT * WIDTH)
    i = (m // WIDTH) % HEIGHT
    j = m % WIDTH
    column = tl.program_id(1) * BLOCK_C
    source = column - FIRST if WHOLE else column
    c = source + tl.arange(0, BLOCK_C)
    inside = (c >= 0) & (c < CHANNELS)
    at = n * X_IMAGE + i * X_ROW + j * X_PIXEL + X_START
    code = load_codes(x0, x1, at, source, ok, X_BITS, X_PADDED, BLOCK_C, not WHOLE or FIRST % 8 == 0)
    at = n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START
    if WHOLE:
        code = tl.where(inside[None, :], code, FILL)
        store_codes(y0, y1, at, column, code, ok, Y_BITS, Y_PADDED, BLOCK_M, BLOCK_C, ASM)
    else:
        tl.store(y0 + at[:, None] + (c + FIRST)[None, :], pack_bytes(code, ASM), mask=ok[:, None] & inside[None, :])


def gather(
    name: str, x: DeviceMap, y: DeviceMap, *, first_channel: int = 0, rows: tuple[int, int] = (0, 1),
    columns: tuple[int, int] = (0, 1), fill_code: int = 0, whole: bool = True, asm: bool = not INTERPRETED,
) -> Launch:
    """rows, columns: (start, step) in x, whose codes must fit the bits of y.  Raises ValueError where y asks for pixels that
    x does not have, and, without ``whole``, for a y that is not of 8 bits or too narrow."""
    who, form, out = f"gather {name}", x.form, y.form
    require(who, y.batch == x.batch, f"{x.batch} images", y.batch)
    walks = (("rows", rows, form.height, out.height), ("columns", columns, form.width, out.width))
    for key, (start, step), there, wanted in walks:
        last = start + (wanted - 1) * step
        require(who, start >= 0 and step >= 1 and last < there, f"{key} of x below {there}", (start, step, last))
    require(who, 0 <= fill_code < 1 << out.bits, f"a fill code of {out.bits} bits", fill_code)
    if not whole:
        fits = out.bits == 8 and 0 <= first_channel <= out.channels - form.channels
        require(who, fits, f"a map of 8 bits with room for {form.channels} channels from {first_channel} on", out)
    at, pixels = place("X", x), x.batch * out.height * out.width
    channels = out.channels if whole else form.channels
    block_c = min(power_of_two_from(channels, 16), 128)
    block_m = TILE // block_c
    arguments: dict[str, torch.Tensor | int | float] = {
        "x0": x.plane0, "x1": x.plane1, "y0": y.plane0, "y1": y.plane1, "pixels": pixels,
    }
    constants = at | {
        "HEIGHT": out.height, "WIDTH": out.width, "CHANNELS": form.channels, "FIRST": first_channel, "FILL": fill_code,
        "X_BITS": form.bits, "X_START": at["X_START"] + rows[0] * at["X_ROW"] + columns[0] * at["X_PIXEL"],
        "X_ROW": rows[1] * at["X_ROW"], "X_PIXEL": columns[1] * at["X_PIXEL"],
        "Y_BITS": out.bits, **place("Y", y), "WHOLE": whole, "BLOCK_M": block_m, "BLOCK_C": block_c, "ASM": asm,
    }
    moved = pixels * (sum(out.pixel_bytes) if whole else form.channels)
    grid = (-(-pixels // block_m), -(-channels // block_c))
    cost = Cost(pixels * sum(form.pixel_bytes), moved)
    return Launch(name, gather_kernel, grid, arguments, constants, NUM_WARPS, 1, cost)
