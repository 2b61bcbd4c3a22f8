"""Integer matrix product of packed codes and weights on int8 tensor cores, with the epilogue of a quantized layer.

    acc[m,n]    = bias[n] + sum_k w[n,k] * x[m,k]                                                      int32, exact
    code[m,n]   = z + rne(clamp(f32(acc) * multiplier[n] [+ f32(r[m,n] - z_r) * g], qmin - z, qmax - z))
    recoded     = clamp(z' + (((code - z) * k' + 2^15) >> 16), qmin', qmax')                           optional
    logits[m,n] = f32(acc) * multiplier[n] + offset[n]                                                 instead of codes

x, residual and outputs: maps of formats.py of 1 x 1 pixels, one image per row m (8, 4 or 3 bits; the residual 8).
weights: steps of formats.py (8, 4 or 3 bits), one run of K codes.  A tile is BLOCK_M rows x BLOCK_N channels; the rest
of its last step beyond K reads neighbours, which meet weight 0; rows that do not exist read 0 and are not stored.
Exact: every sum fits int32 in any order (layer.py), so neither the tile nor the split of K changes a bit.

``swap`` computes the transposed tile, weights as the first operand of the tensor core: its 64 rows (wgmma; 16 for
mma.sync) are then channels, of which there are many, and few rows of x need not be padded to 64. Packed weights then
also stay in registers from the unpack to the product.

``split_k`` cuts K over programs for shapes with too few tiles to fill a GPU. Each adds its sums to an int32 workspace;
integers make the order of the additions irrelevant. A second launch adds the bias, runs the epilogue and leaves the
workspace zero, as the next call needs it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configurations import GemmConfig
from .description import Codes
from .device import DeviceLayer, DeviceMap
from .epilogue import finish, outputs
from .formats import CODES_PER_BYTE, SLACK, step_tiles
from .launch import INT32_LIMIT, INTERPRETED, Cost, Launch, Recoded, Residual, require
from .tiles import activation_tiles, multiply, weight_tiles

# Blocks of rows that are walked together before the next block of channels, so that their codes stay in L2.
GROUP = 8
# Sums that one program of the second launch of a split product finishes.
SUMS = 2048


@triton.jit(do_not_specialize=["rows", "residual_factor", "recode_factor"])
def gemm_kernel(
    x0, x1, w, bias, multiplier, offset, r0, y0, y1, z0, z1, logits, workspace, rows, residual_factor, recode_factor,
    X_BITS: tl.constexpr, X_START: tl.constexpr, X_IMAGE: tl.constexpr,
    W_BITS: tl.constexpr, STEPS: tl.constexpr, TILES: tl.constexpr, STEP_BYTES: tl.constexpr, BLOCKS: tl.constexpr,
    MAGIC: tl.constexpr,
    R_START: tl.constexpr, R_IMAGE: tl.constexpr, R_PADDED: tl.constexpr, R_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_IMAGE: tl.constexpr, Y_PADDED: tl.constexpr,
    Z_BITS: tl.constexpr, Z_START: tl.constexpr, Z_IMAGE: tl.constexpr, Z_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr,
    Z_QMAX: tl.constexpr, CLAMP: tl.constexpr, Z_CLAMP: tl.constexpr, LOGITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPLIT_K: tl.constexpr,
    SWAP: tl.constexpr, ASM: tl.constexpr, STAGES: tl.constexpr,
):
    index = tl.program_id(0)
    group = index // (GROUP * BLOCKS)
    inside = index % (GROUP * BLOCKS)
    size = tl.minimum(tl.cdiv(rows, BLOCK_M) - group * GROUP, GROUP)
    row_block = group * GROUP + inside % size
    block = inside // size
    split = tl.program_id(1)
    m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < rows
    k = tl.arange(0, BLOCK_K)
    half = tl.arange(0, BLOCK_K // 2)
    o = tl.arange(0, BLOCK_N)
    start = m * X_IMAGE + X_START
    px0 = x0 + start[:, None] + k[None, :]
    px1 = x1 + (start // 2)[:, None] + half[None, :]
    pw = w + block * (STEPS * STEP_BYTES) + o[:, None] * BLOCK_K + k[None, :]
    channel = block * BLOCK_N + o
    if SPLIT_K == 1:
        b = tl.load(bias + channel)
    else:
        b = tl.zeros((BLOCK_N,), tl.int32)
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32) + b[:, None]
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32) + b[None, :]
    # Bytes of plane 0 that one step takes from a row.
    X_STEP: tl.constexpr = BLOCK_K * TILES // (1 if X_BITS == 8 else 2 if X_BITS == 4 else 4)
    for step in tl.range(split * STEPS // SPLIT_K, (split + 1) * STEPS // SPLIT_K, num_stages=STAGES):
        x = activation_tiles(px0 + step * X_STEP, px1 + step * (X_STEP // 2), ok[:, None], X_BITS, TILES, BLOCK_K, ASM)
        v = weight_tiles(pw + step * STEP_BYTES, W_BITS, TILES, BLOCK_N * BLOCK_K, ASM)
        acc = multiply(acc, x, v, TILES, SWAP)
    if SWAP:
        acc = tl.trans(acc)
    if SPLIT_K == 1:
        finish(
            acc, m, ok, block, m * R_IMAGE + R_START, m * Y_IMAGE + Y_START, m * Z_IMAGE + Z_START, multiplier, offset,
            r0, y0, y1, z0, z1, logits, residual_factor, recode_factor, MAGIC, R_PADDED, R_ZERO, Y_BITS, Y_PADDED,
            Z_BITS, Z_PADDED, ZERO, QMIN, QMAX, Z_ZERO, Z_QMIN, Z_QMAX, CLAMP, Z_CLAMP, LOGITS, BLOCK_M, BLOCK_N, ASM,
        )
    else:
        at = workspace + m[:, None] * (BLOCKS * BLOCK_N) + channel[None, :]
        tl.atomic_add(at, acc, mask=ok[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["rows", "residual_factor", "recode_factor"])
def finish_kernel(
    bias, multiplier, offset, r0, y0, y1, z0, z1, logits, workspace, rows, residual_factor, recode_factor,
    BLOCKS: tl.constexpr, MAGIC: tl.constexpr,
    R_START: tl.constexpr, R_IMAGE: tl.constexpr, R_PADDED: tl.constexpr, R_ZERO: tl.constexpr,
    Y_BITS: tl.constexpr, Y_START: tl.constexpr, Y_IMAGE: tl.constexpr, Y_PADDED: tl.constexpr,
    Z_BITS: tl.constexpr, Z_START: tl.constexpr, Z_IMAGE: tl.constexpr, Z_PADDED: tl.constexpr,
    ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr,
    Z_QMAX: tl.constexpr, CLAMP: tl.constexpr, Z_CLAMP: tl.constexpr, LOGITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ASM: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < rows
    block = tl.program_id(1)
    channel = block * BLOCK_N + tl.arange(0, BLOCK_N)
    at = workspace + m[:, None] * (BLOCKS * BLOCK_N) + channel[None, :]
    acc = tl.load(at, mask=ok[:, None], other=0)
    tl.store(at, tl.zeros((BLOCK_M, BLOCK_N), tl.int32), mask=ok[:, None])
    finish(
        acc + tl.load(bias + channel)[None, :], m, ok, block, m * R_IMAGE + R_START, m * Y_IMAGE + Y_START,
        m * Z_IMAGE + Z_START, multiplier, offset, r0, y0, y1, z0, z1, logits, residual_factor, recode_factor, MAGIC,
        R_PADDED, R_ZERO, Y_BITS, Y_PADDED, Z_BITS, Z_PADDED, ZERO, QMIN, QMAX, Z_ZERO, Z_QMIN, Z_QMAX, CLAMP, Z_CLAMP,
        LOGITS, BLOCK_M, BLOCK_N, ASM,
    )


def workspace_size(rows: int, layer: DeviceLayer, config: GemmConfig) -> int:
    """Elements of the workspace that :func:`launch` needs, 0 for none. It must be zero before the first call."""
    form = layer.arrays.form
    return rows * form.blocks * form.block_n if config.split_k > 1 else 0


def launch(
    name: str, x: DeviceMap, layer: DeviceLayer, config: GemmConfig, *, y: DeviceMap | None = None,
    codes: Codes | None = None, residual: Residual | None = None, recoded: Recoded | None = None,
    logits: torch.Tensor | None = None, workspace: torch.Tensor | None = None, asm: bool = not INTERPRETED,
) -> list[Launch]:
    """One product over ``x.batch`` rows, to be launched in the order of the list.

    Outputs: as of :func:`epilogue.outputs`.  workspace: int32, zero, of :func:`workspace_size` elements or more; it may
    be shared by products that do not run at the same time.  Raises ValueError for operands that do not fit each other.
    """
    who, form, weights, rows = f"gemm {name}", x.form, layer.arrays.form, x.batch
    require(who, (form.height, form.width) == (1, 1), "a map of one pixel", (form.height, form.width))
    runs = (weights.runs, weights.run_codes)
    require(who, runs == (1, form.padded), f"weights for {form.padded} codes in one run", runs)
    cut = (weights.bits, weights.block_k, weights.block_n)
    require(who, cut == (config.weight_bits, config.block_k, config.block_n), f"weights cut as {config}", weights)
    tiles = step_tiles(form.bits, weights.bits)
    require(who, weights.tiles == tiles, f"weights in {tiles} sub-tiles for a map of {form.bits} bits", weights.tiles)
    for key, least in (("block_m", 8), ("block_n", 16), ("block_k", 32), ("num_warps", 1)):
        value = getattr(config, key)
        require(who, value >= least and not value & (value - 1), f"{key} a power of two from {least}", value)
    split = config.split_k
    require(who, 1 <= split <= weights.steps, f"split_k of 1 to the {weights.steps} steps of K", split)
    overrun = weights.steps * config.block_k * tiles // CODES_PER_BYTE[form.bits] - form.pixel_bytes[0]
    require(who, overrun <= SLACK, f"steps that read at most {SLACK} bytes beyond a row", overrun)
    out = outputs(who, layer, (1, 1, rows), y=y, codes=codes, residual=residual, recoded=recoded, logits=logits)
    needed = workspace_size(rows, layer, config)
    if needed:
        require(who, workspace is not None, "a workspace", "none")
    if workspace is not None:
        whole = workspace.dtype == torch.int32 and workspace.is_contiguous()
        require(who, whole, "a contiguous int32 workspace", workspace.dtype)
        require(who, workspace.numel() >= needed, f"a workspace of {needed} elements", workspace.numel())
        require(who, needed <= INT32_LIMIT, f"at most {INT32_LIMIT} sums; use a smaller batch", needed)
    arguments = out.arguments | {
        "bias": layer.bias, "workspace": layer.bias if workspace is None else workspace, "rows": rows,
    }
    # A map of one pixel needs no strides within an image.
    places = {key: value for key, value in out.constants.items() if not key.endswith(("_PIXEL", "_ROW"))}
    constants = places | {"BLOCKS": weights.blocks, "BLOCK_N": config.block_n, "ASM": asm}
    pixel = form.pixel_bytes[0]
    row = form.columns * pixel
    row_blocks = -(-rows // config.block_m)
    read = rows * sum(form.pixel_bytes) + weights.bytes
    macs = rows * layer.arrays.macs_per_pixel
    walked = row_blocks * config.block_m * weights.blocks * config.block_n * weights.inner
    summed = Cost(read, 4 * needed * config.split_k, macs, walked)
    product = Launch(
        name, gemm_kernel, (row_blocks * weights.blocks, config.split_k),
        arguments | {"x0": x.plane0, "x1": x.plane1, "w": layer.weight},
        constants | {
            "X_BITS": form.bits, "X_START": form.halo[0] * row + form.halo[1] * pixel, "X_IMAGE": form.rows * row,
            "W_BITS": weights.bits, "STEPS": weights.steps, "TILES": tiles, "STEP_BYTES": weights.step_bytes,
            "BLOCK_M": config.block_m, "BLOCK_K": config.block_k, "GROUP": GROUP, "SPLIT_K": config.split_k,
            "SWAP": config.swap, "STAGES": config.num_stages,
        },
        config.num_warps, config.num_stages,
        summed if needed else Cost(read + out.read, out.written, macs, walked),
    )
    if not needed:
        return [product]
    block_m = max(1, SUMS // config.block_n)
    end = Launch(
        f"{name} (end)", finish_kernel, (-(-rows // block_m), weights.blocks), arguments,
        constants | {"BLOCK_M": block_m}, 4, 1, Cost(4 * needed + out.read, 4 * needed + out.written),
    )
    return [product, end]
