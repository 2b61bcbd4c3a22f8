"""Global average pool and linear head in one launch: a map in, logits out.

    sum[n,c]    = sum_{i,j} (x[n,i,j,c] - z_x)                                              int32
    p[n,c]      = z + rne(clamp(f32(sum) * m_p, qmin - z, qmax - z))                        8 bits
    acc[n,o]    = bias[o] + sum_c w[o,c] * p[n,c]                                           int32, exact
    logits[n,o] = f32(acc) * m[o] + offset[o]                                               two roundings

x: map of formats.py (8, 4 or 3 bits).  weights: 8-bit steps of formats.py for the pooled vector, a map [C, 1, 1] of 8
bits: the tensor core multiplies p - 128, and 128 * sum w is part of the bias (layer.py).  logits: float32 [N, O].
|sum| <= 255 * H * W < 2^31, which the launcher checks.  Exact: equal to numerics.pool_sum, requantize and logits to the
bit.

A program takes IMAGES images and BLOCK_N classes. Its tile has IMAGES * GROUPS rows: a row sums every GROUPS-th pixel
of one image, so that even a single image is read by a whole program; the rows of an image are then added. The tensor
core wants 16 rows, so each image is repeated 16 / IMAGES times there. Every block of classes pools again: with more
classes than one block, a pool and a matrix product are the better pair.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configurations import MULTIPROCESSORS
from .description import Codes
from .device import DeviceLayer, DeviceMap
from .epilogue import place
from .launch import INT32_LIMIT, Cost, Launch, power_of_two_from, require
from .requantize import load_codes, to_code, to_float

MMA_ROWS = 16  # the fewest rows of an integer product on tensor cores
TILE = 4096  # values of the tile that sums pixels
UNROLLED_PIXELS = 8


@triton.jit(do_not_specialize=["images", "pool_multiplier"])
def head_kernel(
    x0, x1, w, bias, multiplier, offset, logits, images, pool_multiplier,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_PIXEL: tl.constexpr, X_ROW: tl.constexpr, X_IMAGE: tl.constexpr,
    X_PADDED: tl.constexpr, X_ZERO: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, STEPS: tl.constexpr, MAGIC: tl.constexpr,
    CLASSES: tl.constexpr, IMAGES: tl.constexpr, GROUPS: tl.constexpr, MMA_ROWS: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    COPIES: tl.constexpr = MMA_ROWS // IMAGES
    r = tl.arange(0, IMAGES * GROUPS)
    n = tl.program_id(0) * IMAGES + r // GROUPS
    start = n * X_IMAGE + X_START
    block = tl.program_id(1)
    o = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    channel = block * BLOCK_N + o
    pw = w + block * (STEPS * BLOCK_N * BLOCK_K) + o[:, None] * BLOCK_K + k[None, :]
    acc = tl.zeros((MMA_ROWS, BLOCK_N), tl.int32) + tl.load(bias + channel)[None, :]
    for step in range(STEPS):
        total = tl.zeros((IMAGES * GROUPS, BLOCK_K), tl.int32)
        for first in tl.range(0, HEIGHT * WIDTH, GROUPS, loop_unroll_factor=UNROLL):
            pixel = first + r % GROUPS
            at = start + pixel // WIDTH * X_ROW + pixel % WIDTH * X_PIXEL
            ok = (n < images) & (pixel < HEIGHT * WIDTH)
            total += load_codes(x0, x1, at, step * BLOCK_K, ok, X_BITS, X_PADDED, BLOCK_K)
        # [IMAGES, GROUPS, BLOCK_K] to [IMAGES, 1, BLOCK_K]
        total = tl.sum(tl.reshape(total, [IMAGES, GROUPS, BLOCK_K]), axis=1, keep_dims=True)
        pooled = to_code((total - HEIGHT * WIDTH * X_ZERO).to(tl.float32) * pool_multiplier, ZERO, QMIN, QMAX)
        p = tl.broadcast_to((pooled - 128).to(tl.int8), [IMAGES, COPIES, BLOCK_K])
        p = tl.reshape(p, [MMA_ROWS, BLOCK_K])
        acc = tl.dot(p, tl.trans(tl.load(pw + step * (BLOCK_N * BLOCK_K))), acc, out_dtype=tl.int32)
    v = to_float(acc, MAGIC) * tl.load(multiplier + channel)[None, :]
    v = v + tl.load(offset + channel)[None, :]
    row = tl.arange(0, MMA_ROWS)
    image = tl.program_id(0) * IMAGES + row // COPIES
    ok = (image < images) & (row % COPIES == 0)
    tl.store(logits + image[:, None] * CLASSES + channel[None, :], v, mask=ok[:, None] & (channel < CLASSES)[None, :])


def launch(
    name: str, x: DeviceMap, layer: DeviceLayer, *, zero_point_in: int, pool_multiplier: float, pooled: Codes,
    logits: torch.Tensor,
) -> Launch:
    """The logits of ``x.batch`` images.

    layer: weights ``[O, C, 1, 1]`` cut by a HeadConfig for a map ``[C, 1, 1]`` of 8 bits; pool_multiplier: binary32,
    1 / pixels included; pooled: grid of the pooled codes; logits: float32 ``(batch, O)``.  Raises ValueError for
    operands that do not fit each other.
    """
    who, form, weights = f"head {name}", x.form, layer.arrays.form
    classes, pixels = logits.shape[-1], form.height * form.width
    vector = weights.bits == 8 and weights.tiles == 1 and weights.runs == 1
    require(who, vector, "weights of 8 bits for a vector of 8-bit codes", weights)
    fits = layer.arrays.macs_per_pixel == classes * form.channels and weights.blocks == -(-classes // weights.block_n)
    fits = fits and weights.run_codes >= form.channels
    require(who, fits, f"weights of {classes} classes and {form.channels} channels", weights)
    fits = weights.block_n >= 16 and weights.block_k >= 32
    require(who, fits, "blocks of at least 16 classes and 32 channels", weights)
    require(who, pooled.qmax <= 255, "pooled codes of 8 bits", pooled.qmax)
    require(who, 255 * pixels <= INT32_LIMIT, "sums that fit int32", f"{pixels} pixels")
    require(who, logits.dtype == torch.float32 and logits.is_contiguous(), "contiguous float32 logits", logits.dtype)
    require(who, logits.shape == (x.batch, classes), f"logits of {x.batch} images", tuple(logits.shape))
    images = min(power_of_two_from(-(-x.batch // MULTIPROCESSORS), 1), MMA_ROWS)
    groups = min(max(TILE // (weights.block_k * images), 1), power_of_two_from(pixels, 1))
    arguments: dict[str, torch.Tensor | int | float] = {
        "x0": x.plane0, "x1": x.plane1, "w": layer.weight, "bias": layer.bias, "multiplier": layer.multiplier,
        "offset": layer.offset, "logits": logits, "images": x.batch, "pool_multiplier": float(pool_multiplier),
    }
    constants = {
        "X_BITS": form.bits, **place("X", x), "X_ZERO": zero_point_in, "HEIGHT": form.height, "WIDTH": form.width,
        "ZERO": pooled.zero_point, "QMIN": pooled.qmin, "QMAX": pooled.qmax, "STEPS": weights.steps,
        "MAGIC": layer.arrays.magic, "CLASSES": classes, "IMAGES": images, "GROUPS": groups, "MMA_ROWS": MMA_ROWS,
        "UNROLL": min(-(-pixels // groups), UNROLLED_PIXELS), "BLOCK_N": weights.block_n, "BLOCK_K": weights.block_k,
    }
    programs = (-(-x.batch // images), weights.blocks)
    cost = Cost(
        x.batch * pixels * sum(form.pixel_bytes) + weights.bytes, 4 * logits.numel(),
        x.batch * layer.arrays.macs_per_pixel,
        programs[0] * MMA_ROWS * weights.blocks * weights.block_n * weights.inner,
    )
    return Launch(name, head_kernel, programs, arguments, constants, 4, 1, cost)
