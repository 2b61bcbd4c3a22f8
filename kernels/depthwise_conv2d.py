"""Depthwise convolution of packed codes, with the whole epilogue of a quantized layer.

    acc[n,i,j,c] = bias[c] + sum_{a,b} w[c,a,b] * x[n, i sh + a dh - ph, j sw + b dw - pw, c]               int32, exact
    code         = z + rne(clamp(f32(acc) * m[c] [+ f32(r[n,i,j,c] - z_r) * g], qmin - z, qmax - z))
    recoded      = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')                                 optional

x, residual and outputs: maps of formats.py (8, 4 or 3 bits; the residual 8); weights: int8, laid out by depthwise_layer.py,
codes of -128..127. One product per tap and channel leaves a tensor core nothing to share, so these are integer
multiply-adds; a tile is BLOCK_M pixels x BLOCK_C channels with channels in the fast axis, where loads of a pixel are
contiguous and each thread keeps the weights of its channels. A packed byte spreads over sub-tiles, whose sums are
interleaved to channels once, before the epilogue. Padding is the halo of x, so no tap is masked; a tile wider than a pixel
reads neighbours, which meet weight 0. Kernel columns are unrolled, rows too or walked by a pipelined loop (``unroll``).
Accumulators: the proof of depthwise_layer.py. Exact: tests compare every bit with hce_engine.numerics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .configurations import DepthwiseConfig
from .depthwise_layer import CONSTANTS, DepthwiseArrays
from .description import Codes, Geometry
from .device import DeviceLayer, DeviceMap, layer_on
from .epilogue import finish, outputs, place
from .formats import CODES_PER_BYTE, SLACK
from .launch import INTERPRETED, Cost, Launch, Recoded, Residual, require
from .tiles import activation_tiles


@dataclass(frozen=True)
class DepthwiseLayer(DeviceLayer):
    """The constants of a depthwise layer, as tensors: weight int8 [KH * KW, tiles, Cp / tiles]."""

    arrays: DepthwiseArrays


def depthwise_layer_on(arrays: DepthwiseArrays, device: torch.device | str) -> DepthwiseLayer:
    layer = layer_on(arrays, device)
    return DepthwiseLayer(arrays, layer.weight, layer.bias, layer.multiplier, layer.offset)


@triton.jit
def _sub_tile(acc, x, pw, inside):
    w = tl.load(pw, mask=inside, other=0).to(tl.int32)
    return acc + x.to(tl.int32) * w[None, :]


@triton.jit
def _tap(
    a0, a1, a2, a3, px0, px1, pw, inside, BITS: tl.constexpr, TILES: tl.constexpr, PLACES: tl.constexpr,
    BLOCK: tl.constexpr, ASM: tl.constexpr,
):
    """Sums of the sub-tiles, [BLOCK_M, BLOCK] each, and the products of one tap; those from TILES on pass unchanged."""
    x = activation_tiles(px0, px1, None, BITS, TILES, BLOCK, ASM)
    a0 = _sub_tile(a0, x[0], pw, inside)
    if TILES > 1:
        a1 = _sub_tile(a1, x[1], pw + PLACES, inside)
    if TILES > 2:
        a2 = _sub_tile(a2, x[2], pw + 2 * PLACES, inside)
        a3 = _sub_tile(a3, x[3], pw + 3 * PLACES, inside)
    return a0, a1, a2, a3


@triton.jit(do_not_specialize=["pixels", "residual_factor", "recode_factor"])
def depthwise_conv2d_kernel(
    x0, x1, w, bias, multiplier, offset, r0, y0, y1, z0, z1, logits, pixels, residual_factor, recode_factor,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    X_PADDED: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TILES: tl.constexpr, MAGIC: tl.constexpr,
    R_START: tl.constexpr, R_PIXEL: tl.constexpr, R_ROW: tl.constexpr, R_IMAGE: tl.constexpr, R_PADDED: tl.constexpr,
    R_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    Z_BITS: tl.constexpr, Z_START: tl.constexpr, Z_PIXEL: tl.constexpr, Z_ROW: tl.constexpr, Z_IMAGE: tl.constexpr,
    Z_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr,
    Z_QMAX: tl.constexpr, CLAMP: tl.constexpr, Z_CLAMP: tl.constexpr, LOGITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, ASM: tl.constexpr, STAGES: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < pixels
    m = tl.minimum(m, pixels - 1)
    n = m // (OUT_H * OUT_W)
    i = (m // OUT_W) % OUT_H
    j = m % OUT_W
    block = tl.program_id(1)
    BLOCK: tl.constexpr = BLOCK_C // TILES
    PLACES: tl.constexpr = X_PADDED // TILES
    p = block * BLOCK + tl.arange(0, BLOCK)
    half = block * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    inside = p < PLACES
    start = n * X_IMAGE + i * (STRIDE_H * X_ROW) + j * (STRIDE_W * X_PIXEL) + X_START
    px0 = x0 + start[:, None] + p[None, :]
    px1 = x1 + (start // 2)[:, None] + half[None, :]
    pw = w + p
    a0 = tl.zeros((BLOCK_M, BLOCK), tl.int32)
    a1, a2, a3 = a0, a0, a0
    if UNROLL:
        for tap in tl.static_range(KERNEL_H * KERNEL_W):
            at = (tap // KERNEL_W) * (DILATION_H * X_ROW) + (tap % KERNEL_W) * (DILATION_W * X_PIXEL)
            a0, a1, a2, a3 = _tap(
                a0, a1, a2, a3, px0 + at, px1 + at // 2, pw + tap * X_PADDED, inside, X_BITS, TILES, PLACES, BLOCK, ASM
            )
    else:
        for row in tl.range(0, KERNEL_H, num_stages=STAGES):
            for b in tl.static_range(KERNEL_W):
                at = row * (DILATION_H * X_ROW) + b * (DILATION_W * X_PIXEL)
                a0, a1, a2, a3 = _tap(
                    a0, a1, a2, a3, px0 + at, px1 + at // 2, pw + (row * KERNEL_W + b) * X_PADDED, inside, X_BITS, TILES,
                    PLACES, BLOCK, ASM,
                )
    if TILES == 1:
        acc = a0
    elif TILES == 2:
        acc = tl.interleave(a0, a1)
    else:
        acc = tl.interleave(tl.interleave(a0, a2), tl.interleave(a1, a3))
    acc += tl.load(bias + block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    finish(
        acc, m, ok, block, n * R_IMAGE + i * R_ROW + j * R_PIXEL + R_START, n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START,
        n * Z_IMAGE + i * Z_ROW + j * Z_PIXEL + Z_START, multiplier, offset, r0, y0, y1, z0, z1, logits, residual_factor,
        recode_factor, MAGIC, R_PADDED, R_ZERO, Y_BITS, Y_PADDED, Z_BITS, Z_PADDED, ZERO, QMIN, QMAX, Z_ZERO, Z_QMIN,
        Z_QMAX, CLAMP, Z_CLAMP, LOGITS, BLOCK_M, BLOCK_C, ASM,
    )


def launch(
    name: str, x: DeviceMap, layer: DepthwiseLayer, geometry: Geometry, config: DepthwiseConfig, *,
    y: DeviceMap | None = None, codes: Codes | None = None, residual: Residual | None = None,
    recoded: Recoded | None = None, asm: bool = not INTERPRETED,
) -> Launch:
    """One depthwise convolution over ``x.batch`` images.

    Outputs: as of :func:`epilogue.outputs`, without logits.  Raises ValueError for operands that do not fit each other.
    """
    who, form, (oh, ow), arrays = f"depthwise_conv2d {name}", x.form, geometry.out, layer.arrays
    required = geometry.halo(form.height, form.width)
    require(who, all(has >= need for has, need in zip(form.halo, required, strict=True)), f"a halo of {required}", form.halo)
    made_for = (arrays.channels, arrays.x_bits)
    require(who, made_for == (form.channels, form.bits), f"channels and bits of x {made_for}", (form.channels, form.bits))
    require(who, arrays.kernel == geometry.kernel, f"a window of {arrays.kernel}", geometry.kernel)
    require(who, 16 <= config.block_c <= min(CONSTANTS, SLACK), f"a block of 16 to {CONSTANTS} channels", config.block_c)
    maps = {"y": y, "recoded": recoded.map if recoded else None, "residual": residual.map if residual else None}
    for key, value in maps.items():
        if value is not None:
            require(who, value.form.channels == form.channels, f"{form.channels} channels in {key}", value.form.channels)
    out = outputs(who, layer, (oh, ow, x.batch), y=y, codes=codes, residual=residual, recoded=recoded, logits=None)
    at, pixels = place("X", x), x.batch * oh * ow
    arguments = out.arguments | {"x0": x.plane0, "x1": x.plane1, "w": layer.weight, "bias": layer.bias, "pixels": pixels}
    constants = out.constants | at | {
        "X_BITS": form.bits, "X_START": at["X_START"] - geometry.padding[0] * at["X_ROW"] - geometry.padding[1] * at["X_PIXEL"],
        "OUT_H": oh, "OUT_W": ow, "STRIDE_H": geometry.stride[0], "STRIDE_W": geometry.stride[1],
        "KERNEL_H": geometry.kernel[0], "KERNEL_W": geometry.kernel[1], "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1], "TILES": CODES_PER_BYTE[form.bits], "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c, "UNROLL": config.unroll, "ASM": asm, "STAGES": config.num_stages,
    }
    read = x.batch * form.height * form.width * sum(form.pixel_bytes) + arrays.form.bytes + out.read
    grid = (-(-pixels // config.block_m), -(-form.padded // config.block_c))
    cost = Cost(read, out.written, pixels * arrays.macs_per_pixel)
    return Launch(name, depthwise_conv2d_kernel, grid, arguments, constants, config.num_warps, config.num_stages, cost)
