"""Implicit-GEMM convolution of packed codes on int8 tensor cores, with the whole epilogue of a quantized layer.

    acc[n,i,j,o] = bias[o] + sum_{c,a,b} w[o,c,a,b] * x[n, i sh + a dh - ph, j sw + b dw - pw, c]           int32, exact
    code         = z + rne(clamp(f32(acc) * m[o] [+ f32(r[n,i,j,o] - z_r) * g], qmin - z, qmax - z))
    recoded      = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')                                 optional
    logits[n,o]  = f32(acc) * m[o] + offset[o]                               instead of codes, for a head over a map

x, residual and outputs: maps of formats.py (8, 4 or 3 bits; the residual 8); weights: steps of formats.py (8, 4 or 3 bits).
A tile is BLOCK_M pixels, counted through images, rows and columns, times BLOCK_N channels. Padding is the halo of x, so no
tap is masked; the rest of a step beyond a run reads neighbours, which meet weight 0. Taps are unrolled, or walked by a
pipelined loop (``unroll``); a flattened loop over taps is the form that Triton is known to miscompile at 8 warps, so the
loop form is refused there. Exact: every bit is that of numerics.conv2d_accumulate and requantize.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configurations import ConvConfig
from .description import Codes, Geometry
from .device import DeviceLayer, DeviceMap
from .epilogue import finish, outputs
from .formats import CODES_PER_BYTE, SLACK
from .launch import INTERPRETED, Cost, Launch, Recoded, Residual, require
from .tiles import activation_tiles, multiply, weight_tiles


@triton.jit(do_not_specialize=["pixels", "residual_factor", "recode_factor"])
def conv2d_kernel(
    x0, x1, w, bias, multiplier, offset, r0, y0, y1, z0, z1, logits, pixels, residual_factor, recode_factor,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    OUT_H: tl.constexpr, OUT_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    RUNS_PER_ROW: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    W_BITS: tl.constexpr, RUNS: tl.constexpr, STEPS: tl.constexpr, TILES: tl.constexpr, STEP_BYTES: tl.constexpr,
    MAGIC: tl.constexpr,
    R_START: tl.constexpr, R_PIXEL: tl.constexpr, R_ROW: tl.constexpr, R_IMAGE: tl.constexpr, R_PADDED: tl.constexpr,
    R_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr,
    Y_PADDED: tl.constexpr,
    Z_BITS: tl.constexpr, Z_START: tl.constexpr, Z_PIXEL: tl.constexpr, Z_ROW: tl.constexpr, Z_IMAGE: tl.constexpr,
    Z_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr,
    Z_QMAX: tl.constexpr, CLAMP: tl.constexpr, Z_CLAMP: tl.constexpr,
    LOGITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
    ASM: tl.constexpr, STAGES: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < pixels
    m = tl.minimum(m, pixels - 1)
    n = m // (OUT_H * OUT_W)
    i = (m // OUT_W) % OUT_H
    j = m % OUT_W
    block = tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    half = tl.arange(0, BLOCK_K // 2)
    o = tl.arange(0, BLOCK_N)
    start = n * X_IMAGE + i * (STRIDE_H * X_ROW) + j * (STRIDE_W * X_PIXEL) + X_START
    px0 = x0 + start[:, None] + k[None, :]
    px1 = x1 + (start // 2)[:, None] + half[None, :]
    pw = w + block * (RUNS * STEPS * STEP_BYTES) + o[:, None] * BLOCK_K + k[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32) + tl.load(bias + block * BLOCK_N + o)[None, :]
    # Bytes of plane 0 that one step takes from a run.
    X_STEP: tl.constexpr = BLOCK_K * TILES // (1 if X_BITS == 8 else 2 if X_BITS == 4 else 4)
    if UNROLL:
        for run in tl.static_range(RUNS):
            for step in tl.static_range(STEPS):
                at = (run // RUNS_PER_ROW) * (DILATION_H * X_ROW) + (run % RUNS_PER_ROW) * (DILATION_W * X_PIXEL) + step * X_STEP
                x = activation_tiles(px0 + at, px1 + at // 2, None, X_BITS, TILES, BLOCK_K, ASM)
                v = weight_tiles(pw + (run * STEPS + step) * STEP_BYTES, W_BITS, TILES, BLOCK_N * BLOCK_K, ASM)
                acc = multiply(acc, x, v, TILES, False)
    else:
        for index in tl.range(0, RUNS * STEPS, num_stages=STAGES):
            run = index // STEPS
            at = (run // RUNS_PER_ROW) * (DILATION_H * X_ROW) + (run % RUNS_PER_ROW) * (DILATION_W * X_PIXEL) + (index % STEPS) * X_STEP
            x = activation_tiles(px0 + at, px1 + at // 2, None, X_BITS, TILES, BLOCK_K, ASM)
            v = weight_tiles(pw + index * STEP_BYTES, W_BITS, TILES, BLOCK_N * BLOCK_K, ASM)
            acc = multiply(acc, x, v, TILES, False)
    finish(
        acc, m, ok, block, n * R_IMAGE + i * R_ROW + j * R_PIXEL + R_START, n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START,
        n * Z_IMAGE + i * Z_ROW + j * Z_PIXEL + Z_START, multiplier, offset, r0, y0, y1, z0, z1, logits, residual_factor,
        recode_factor, MAGIC, R_PADDED, R_ZERO, Y_BITS, Y_PADDED, Z_BITS, Z_PADDED, ZERO, QMIN, QMAX, Z_ZERO, Z_QMIN,
        Z_QMAX, CLAMP, Z_CLAMP, LOGITS, BLOCK_M, BLOCK_N, ASM,
    )


def launch(
    name: str, x: DeviceMap, layer: DeviceLayer, geometry: Geometry, config: ConvConfig, *, y: DeviceMap | None = None,
    codes: Codes | None = None, residual: Residual | None = None, recoded: Recoded | None = None,
    logits: torch.Tensor | None = None, asm: bool = not INTERPRETED,
) -> Launch:
    """One convolution over ``x.batch`` images.

    Outputs: as of :func:`epilogue.outputs`.  Raises ValueError for operands that do not fit each other.
    """
    who, form, (oh, ow) = f"conv2d {name}", x.form, geometry.out
    weights = layer.arrays.form
    required = geometry.halo(form.height, form.width)
    require(who, all(has >= need for has, need in zip(form.halo, required, strict=True)), f"a halo of {required}", form.halo)
    cut = (weights.bits, weights.block_k, weights.block_n)
    require(who, cut == (config.weight_bits, config.block_k, config.block_n), f"weights cut as {config}", weights)
    require(who, config.unroll or config.num_warps <= 4, "at most 4 warps where taps are a loop", config.num_warps)
    step_bytes = config.block_k * weights.tiles // CODES_PER_BYTE[form.bits]
    overrun = weights.steps * step_bytes - weights.run_codes // CODES_PER_BYTE[form.bits]
    require(who, overrun <= SLACK, f"steps that read at most {SLACK} bytes beyond a run", overrun)
    out = outputs(who, layer, (oh, ow, x.batch), y=y, codes=codes, residual=residual, recoded=recoded, logits=logits)
    pixel = form.pixel_bytes[0]
    row = form.columns * pixel
    pixels = x.batch * oh * ow
    joined = geometry.dilation[1] == 1
    arguments = out.arguments | {"x0": x.plane0, "x1": x.plane1, "w": layer.weight, "bias": layer.bias, "pixels": pixels}
    constants = out.constants | {
        "X_BITS": form.bits, "X_PIXEL": pixel, "X_ROW": row, "X_IMAGE": form.rows * row,
        "X_START": (form.halo[0] - geometry.padding[0]) * row + (form.halo[1] - geometry.padding[1]) * pixel,
        "OUT_H": oh, "OUT_W": ow, "STRIDE_H": geometry.stride[0], "STRIDE_W": geometry.stride[1],
        "RUNS_PER_ROW": 1 if joined else geometry.kernel[1], "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1], "W_BITS": weights.bits, "RUNS": weights.runs, "STEPS": weights.steps,
        "TILES": weights.tiles, "STEP_BYTES": weights.step_bytes,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "UNROLL": config.unroll,
        "ASM": asm, "STAGES": config.num_stages,
    }
    cost = Cost(
        x.batch * form.height * form.width * sum(form.pixel_bytes) + weights.bytes + out.read, out.written,
        pixels * layer.arrays.macs_per_pixel,
        -(-pixels // config.block_m) * config.block_m * weights.blocks * config.block_n * weights.inner,
    )
    grid = (-(-pixels // config.block_m), weights.blocks)
    return Launch(name, conv2d_kernel, grid, arguments, constants, config.num_warps, config.num_stages, cost)
