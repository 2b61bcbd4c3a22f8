"""Implicit-GEMM convolution of packed codes on int8 tensor cores, with the whole epilogue of a quantized layer.

    acc[n,i,j,o] = bias[o] + sum_{c,a,b} w[o,c,a,b] * x[n, i sh + a dh - ph, j sw + b dw - pw, c]           int32, exact
    code         = z + rne(clamp(f32(acc) * m[o] [+ f32(r[n,i,j,o] - z_r) * g], qmin - z, qmax - z))
    recoded      = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')                                 optional
    logits[n,o]  = f32(acc) * m[o] + offset[o]                               instead of codes, for a head over a map

x, residual and outputs: maps of formats.py (8, 4 or 3 bits; the residual 8); weights: steps of formats.py (8, 4 or 3 bits).
A tile is BLOCK_M pixels, counted through images, rows and columns, times BLOCK_N channels. Padding is the halo of x, so no
tap is masked; the rest of a step beyond a run reads neighbours, which meet weight 0. Taps are unrolled, or walked by a
pipelined loop (``unroll``); a flattened loop over taps is the form that Triton is known to miscompile at 8 warps, so the
loop form is refused there. Exact: tests compare every bit with :func:`reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configurations import ConvConfig
from .description import Codes, Geometry, clamps
from .device import DeviceLayer, DeviceMap
from .formats import CODES_PER_BYTE, SLACK
from .launch import INTERPRETED, Cost, Launch, Recoded, Residual, require
from .requantize import recode, residual_to_float, store_codes, to_code, to_float
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
    channel = block * BLOCK_N + o
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32) + tl.load(bias + channel)[None, :]
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
    v = to_float(acc, MAGIC) * tl.load(multiplier + channel)[None, :]
    if LOGITS:
        v = v + tl.load(offset + channel)[None, :]
        tl.store(logits + m[:, None] * LOGITS + channel[None, :], v, mask=ok[:, None] & (channel < LOGITS)[None, :])
    else:
        if R_PADDED:
            at = n * R_IMAGE + i * R_ROW + j * R_PIXEL + R_START
            r = tl.load(r0 + at[:, None] + channel[None, :], mask=ok[:, None] & (channel < R_PADDED)[None, :], other=0)
            v = v + residual_to_float(r, R_ZERO, ASM) * residual_factor
        code = to_code(v, ZERO, QMIN, QMAX, CLAMP)
        if Y_BITS:
            at = n * Y_IMAGE + i * Y_ROW + j * Y_PIXEL + Y_START
            store_codes(y0, y1, at, block * BLOCK_N, code, ok, Y_BITS, Y_PADDED, BLOCK_M, BLOCK_N, ASM)
        if Z_BITS:
            code = recode(code, recode_factor, ZERO, Z_ZERO, Z_QMIN, Z_QMAX, Z_CLAMP)
            at = n * Z_IMAGE + i * Z_ROW + j * Z_PIXEL + Z_START
            store_codes(z0, z1, at, block * BLOCK_N, code, ok, Z_BITS, Z_PADDED, BLOCK_M, BLOCK_N, ASM)


def _place(prefix: str, value: DeviceMap | None) -> dict[str, int]:
    """Where the inner pixels of an output or residual lie: byte strides of plane 0."""
    if value is None:
        return dict.fromkeys((f"{prefix}_{key}" for key in ("START", "PIXEL", "ROW", "IMAGE", "PADDED")), 0)
    form = value.form
    pixel = form.pixel_bytes[0]
    row = form.columns * pixel
    return {
        f"{prefix}_START": form.halo[0] * row + form.halo[1] * pixel, f"{prefix}_PIXEL": pixel, f"{prefix}_ROW": row,
        f"{prefix}_IMAGE": form.rows * row, f"{prefix}_PADDED": form.padded,
    }


def launch(
    name: str, x: DeviceMap, layer: DeviceLayer, geometry: Geometry, config: ConvConfig, *, y: DeviceMap | None = None,
    codes: Codes | None = None, residual: Residual | None = None, recoded: Recoded | None = None,
    logits: torch.Tensor | None = None, asm: bool = not INTERPRETED,
) -> Launch:
    """One convolution over ``x.batch`` images.

    y: map of the codes.  recoded: map of the codes derived from them; at least one of the two, or ``logits``, float32
    ``(batch, classes)``, for a layer with one output pixel.  Raises ValueError for operands that do not fit each other.
    """
    who, form, (oh, ow), codes = f"conv2d {name}", x.form, geometry.out, codes or Codes()
    weights = layer.arrays.form
    required = geometry.halo(form.height, form.width)
    require(who, all(has >= need for has, need in zip(form.halo, required, strict=True)), f"a halo of {required}", form.halo)
    cut = (weights.bits, weights.block_k, weights.block_n)
    require(who, cut == (config.weight_bits, config.block_k, config.block_n), f"weights cut as {config}", weights)
    require(who, config.unroll or config.num_warps <= 4, "at most 4 warps where taps are a loop", config.num_warps)
    step_bytes = config.block_k * weights.tiles // CODES_PER_BYTE[form.bits]
    overrun = weights.steps * step_bytes - weights.run_codes // CODES_PER_BYTE[form.bits]
    require(who, overrun <= SLACK, f"steps that read at most {SLACK} bytes beyond a run", overrun)
    outputs = {"y": (y, codes), "recoded": (recoded.map, recoded.codes) if recoded else (None, codes)}
    if residual is not None:
        require(who, residual.map.form.bits == 8, "a residual map of 8 bits", residual.map.form)
        outputs["residual"] = (residual.map, Codes())
    for key, (value, grid) in outputs.items():
        if value is not None:
            size = (value.form.height, value.form.width, value.batch)
            require(who, size == (oh, ow, x.batch), f"{key} of {oh} x {ow} x {x.batch} images", size)
            require(who, grid.qmax < 1 << value.form.bits, f"codes of {value.form.bits} bits in {key}", grid.qmax)
    if logits is None:
        require(who, y is not None or recoded is not None, "an output", "none")
    else:
        require(who, (oh, ow) == (1, 1) and y is None and recoded is None, "one output pixel and no maps beside logits", geometry.out)
        require(who, logits.dtype == torch.float32 and logits.is_contiguous(), "contiguous float32 logits", logits.dtype)
    largest = layer.arrays.largest_value + (255 * abs(residual.multiplier) if residual else 0.0)
    derived = (recoded.codes, recoded.map.form.bits, recoded.factor) if recoded else None
    clamp = clamps(largest, codes, y.form.bits if y else None, derived)
    pixel = form.pixel_bytes[0]
    row = form.columns * pixel
    pixels = x.batch * oh * ow
    joined = geometry.dilation[1] == 1
    unused = x.plane0
    outputs_of = {key: (m if m is not None else None) for key, m in (("y", y), ("z", recoded.map if recoded else None))}
    arguments: dict[str, torch.Tensor | int | float] = {
        "x0": x.plane0, "x1": x.plane1, "w": layer.weight, "bias": layer.bias, "multiplier": layer.multiplier,
        "offset": layer.offset, "r0": residual.map.plane0 if residual else unused,
    }
    for key, value in outputs_of.items():
        arguments[f"{key}0"], arguments[f"{key}1"] = (value.plane0, value.plane1) if value else (unused, unused)
    arguments |= {
        "logits": layer.offset if logits is None else logits, "pixels": pixels,
        "residual_factor": residual.multiplier if residual else 0.0, "recode_factor": recoded.factor if recoded else 0,
    }
    constants = {
        "X_BITS": form.bits, "X_PIXEL": pixel, "X_ROW": row, "X_IMAGE": form.rows * row,
        "X_START": (form.halo[0] - geometry.padding[0]) * row + (form.halo[1] - geometry.padding[1]) * pixel,
        "OUT_H": oh, "OUT_W": ow, "STRIDE_H": geometry.stride[0], "STRIDE_W": geometry.stride[1],
        "RUNS_PER_ROW": 1 if joined else geometry.kernel[1], "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1], "W_BITS": weights.bits, "RUNS": weights.runs, "STEPS": weights.steps,
        "TILES": weights.tiles, "STEP_BYTES": weights.step_bytes, "MAGIC": layer.arrays.magic,
        **_place("R", residual.map if residual else None), "R_ZERO": residual.zero_point if residual else 0,
        "Y_BITS": y.form.bits if y else 0, **_place("Y", y), "Z_BITS": recoded.map.form.bits if recoded else 0,
        **_place("Z", recoded.map if recoded else None), "ZERO": codes.zero_point, "QMIN": codes.qmin, "QMAX": codes.qmax,
        "Z_ZERO": recoded.codes.zero_point if recoded else 0, "Z_QMIN": recoded.codes.qmin if recoded else 0,
        "Z_QMAX": recoded.codes.qmax if recoded else 0, "CLAMP": clamp.value, "Z_CLAMP": clamp.recoded,
        "LOGITS": 0 if logits is None else logits.shape[1],
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "UNROLL": config.unroll,
        "ASM": asm, "STAGES": config.num_stages,
    }
    written = sum(x.batch * oh * ow * sum(m.form.pixel_bytes) for m in outputs_of.values() if m is not None)
    read = x.batch * form.height * form.width * sum(form.pixel_bytes) + weights.bytes
    if residual is not None:
        read += x.batch * oh * ow * residual.map.form.pixel_bytes[0]
    cost = Cost(
        read, written + (0 if logits is None else 4 * logits.numel()), pixels * layer.arrays.macs_per_pixel,
        -(-pixels // config.block_m) * config.block_m * weights.blocks * config.block_n * weights.inner,
    )
    grid = (-(-pixels // config.block_m), weights.blocks)
    return Launch(name, conv2d_kernel, grid, arguments, constants, config.num_warps, config.num_stages, cost)
