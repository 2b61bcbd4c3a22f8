"""Max pool and average pool of codes.

    max_pool       y[n,i,j,c]    = max_{a,b} x[n, i sh + a dh - ph, j sw + b dw - pw, c]                 codes move
    average_pool   sum[n,i,j,c]  = sum_{a,b} (x[n, i sh + a dh - ph, j sw + b dw - pw, c] - z_x)         int32
                   y             = z + rne(clamp(f32(sum) * m, qmin - z, qmax - z))

A padded pixel is code 0 of a max pool and adds 0 to a sum: taps beyond the map are masked, and what the halo of x holds
is irrelevant.  x and y: maps of formats.py, each 8, 4 or 3 bits wide; y must have room for the codes of a max pool, and
its halo is left alone.  |sum| <= 255 * taps < 2^31, which the launcher checks.  A global pool is a window of the map's
size.  Exact: codes equal numerics.pool_sum and numerics.requantize to the bit.

A tile is BLOCK_M output pixels, counted through images, rows and columns, times COLUMNS channels; taps are a loop,
unrolled by UNROLL so that as many loads are under way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configurations import MULTIPROCESSORS
from .description import Codes, Geometry
from .device import DeviceMap
from .epilogue import place
from .formats import padded_channels
from .launch import INT32_LIMIT, INTERPRETED, Cost, Launch, power_of_two_from, require
from .requantize import load_codes, store_codes, to_code

TILE = 2048  # values of one tile
CHANNELS = 64  # of one tile, at most
UNROLLED_TAPS = 9  # at most: a small window, or a row of a large one


@triton.jit(do_not_specialize=["pixels", "multiplier"])
def pool_kernel(
    x0, x1, y0, y1, pixels, multiplier,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    X_PADDED: tl.constexpr, X_ZERO: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    OUT_H: tl.constexpr, OUT_W: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, INSIDE: tl.constexpr, AVERAGE: tl.constexpr, ZERO: tl.constexpr, QMIN: tl.constexpr,
    QMAX: tl.constexpr, UNROLL: tl.constexpr, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr, ASM: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * COLUMNS
    ok = m < pixels
    n = m // (OUT_H * OUT_W)
    i = (m // OUT_W) % OUT_H
    j = m % OUT_W
    top = i * STRIDE_H - PADDING_H
    left = j * STRIDE_W - PADDING_W
    start = n * X_IMAGE + top * X_ROW + left * X_PIXEL + X_START
    acc = tl.zeros((BLOCK_M, COLUMNS), tl.int32)
    taps = tl.zeros((BLOCK_M,), tl.int32)
    for tap in tl.range(0, KERNEL_H * KERNEL_W, loop_unroll_factor=UNROLL):
        a = tap // KERNEL_W * DILATION_H
        b = tap % KERNEL_W * DILATION_W
        has = ok
        if not INSIDE:
            has = ok & (top + a >= 0) & (top + a < HEIGHT) & (left + b >= 0) & (left + b < WIDTH)
        # A masked code is 0.
        code = load_codes(x0, x1, start + a * X_ROW + b * X_PIXEL, column, has, X_BITS, X_PADDED, COLUMNS)
        if AVERAGE:
            acc += code
            if not INSIDE:
                taps += has.to(tl.int32)
        else:
            acc = tl.maximum(acc, code)
    if AVERAGE:
        if INSIDE:
            acc -= KERNEL_H * KERNEL_W * X_ZERO
        else:
            acc -= taps[:, None] * X_ZERO
        acc = to_code(acc.to(tl.float32) * multiplier, ZERO, QMIN, QMAX)
    at = n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START
    store_codes(y0, y1, at, column, acc, ok, Y_BITS, Y_PADDED, BLOCK_M, COLUMNS, ASM)


def _launch(
    name: str, who: str, x: DeviceMap, y: DeviceMap, geometry: Geometry, zero_point: int, multiplier: float,
    codes: Codes | None, asm: bool,
) -> Launch:
    form, (oh, ow) = x.form, geometry.out
    size, expected = (y.form.channels, y.form.height, y.form.width, y.batch), (form.channels, oh, ow, x.batch)
    require(who, size == expected, f"an output of (channels, height, width, images) {expected}", size)
    columns = min(power_of_two_from(form.channels, max(padded_channels(1, m.form.bits) for m in (x, y))), CHANNELS)
    blocks, pixels, block_m = -(-form.channels // columns), x.batch * oh * ow, TILE // columns
    while block_m > 8 and -(-pixels // block_m) * blocks < MULTIPROCESSORS:
        block_m //= 2
    halo = geometry.halo(form.height, form.width)
    taps = geometry.kernel[0] * geometry.kernel[1]
    unroll = max(count for count in (1, geometry.kernel[1], taps) if count <= UNROLLED_TAPS)
    grid = codes or Codes()
    arguments: dict[str, torch.Tensor | int | float] = {
        "x0": x.plane0, "x1": x.plane1, "y0": y.plane0, "y1": y.plane1, "pixels": pixels,
        "multiplier": float(multiplier),
    }
    constants = {
        "X_BITS": form.bits, **place("X", x), "X_ZERO": zero_point, "HEIGHT": form.height, "WIDTH": form.width,
        "Y_BITS": y.form.bits, **place("Y", y), "OUT_H": oh, "OUT_W": ow,
        "KERNEL_H": geometry.kernel[0], "KERNEL_W": geometry.kernel[1],
        "STRIDE_H": geometry.stride[0], "STRIDE_W": geometry.stride[1],
        "PADDING_H": geometry.padding[0], "PADDING_W": geometry.padding[1],
        "DILATION_H": geometry.dilation[0], "DILATION_W": geometry.dilation[1],
        "INSIDE": not any(halo), "AVERAGE": codes is not None, "ZERO": grid.zero_point, "QMIN": grid.qmin,
        "QMAX": grid.qmax,
        "UNROLL": unroll, "BLOCK_M": block_m, "COLUMNS": columns, "ASM": asm,
    }
    cost = Cost(
        x.batch * form.height * form.width * sum(form.pixel_bytes), pixels * sum(y.form.pixel_bytes),
        pixels * taps * form.channels,
    )
    return Launch(name, pool_kernel, (-(-pixels // block_m), blocks), arguments, constants, 4, 1, cost)


def max_pool(name: str, x: DeviceMap, y: DeviceMap, geometry: Geometry, *, asm: bool = not INTERPRETED) -> Launch:
    """The largest code of each window.  Codes of x must fit the storage of y.  Raises ValueError for operands that do
    not fit each other."""
    return _launch(name, f"max_pool {name}", x, y, geometry, 0, 0.0, None, asm)


def average_pool(
    name: str, x: DeviceMap, y: DeviceMap, geometry: Geometry, *, zero_point_in: int, multiplier: float, codes: Codes,
    asm: bool = not INTERPRETED,
) -> Launch:
    """The sum of each window, requantized: zero_point_in is that of x, codes the grid of y, multiplier a binary32
    number that holds 1 / taps as well.  Raises ValueError for operands that do not fit each other."""
    who = f"average_pool {name}"
    require(who, codes.qmax < 1 << y.form.bits, f"codes of {y.form.bits} bits", codes.qmax)
    taps = geometry.kernel[0] * geometry.kernel[1]
    require(who, 255 * taps <= INT32_LIMIT, "sums that fit int32", f"{taps} taps")
    return _launch(name, who, x, y, geometry, zero_point_in, multiplier, codes, asm)
