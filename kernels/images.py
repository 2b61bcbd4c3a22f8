"""Images into 8-bit maps, and the marks of images that hold NaN or Inf.

    load_pixels       code[n,i,j,c] = x[n,i,j,c]                                             uint8, NHWC
    quantize_floats   code[n,i,j,c] = rne(clamp((x[n,c,i,j] - low) * multiplier, 0, 255))    float32, NCHW; NaN: code 0
                      flags[n]      = sum_{c,i,j} (x[n,c,i,j] - x[n,c,i,j])                  0, or NaN for NaN or Inf
    mark              logits[n,k]   = flags[n] where flags[n] is NaN, else unchanged         float32 [N, K]

Images x are contiguous; y is an 8-bit map of formats.py whose halo is left alone; its padding channels hold anything.
Each float operation is rounded on its own (requantize.py).  A lane reads its own image only, so a NaN never reaches a
neighbour.  Exact: codes equal numerics.quantize_input to the bit.  Each value is read once, each byte written once.

One program quantizes a whole image, since its flag is one sum; pixels and logits are cut into equal pieces.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .device import DeviceMap
from .epilogue import place
from .launch import INT32_LIMIT, INTERPRETED, Cost, Launch, power_of_two_from, require
from .requantize import store_codes, to_code

PIXEL_TILE = 1024  # values of one tile of bytes
FLOAT_TILE = 16384  # of floats: an image is one program, which must have many loads under way
CHANNELS = 64  # of one tile, at most


@triton.jit(do_not_specialize=["pixels"])
def load_pixels_kernel(
    images, y0, pixels,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr, Y_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ok = m < pixels
    p = tl.load(images + m[:, None] * C + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0)
    at = m // (H * W) * Y_IMAGE + (m // W) % H * Y_ROW + m % W * Y_PIXEL + Y_START
    # The byte of p - 128.
    byte = (p ^ 128).to(tl.int8, bitcast=True)
    tl.store(y0 + at[:, None] + c[None, :], byte, mask=ok[:, None] & (c < Y_PADDED)[None, :])


@triton.jit(do_not_specialize=["low", "multiplier"])
def quantize_floats_kernel(
    images, y0, flags, low, multiplier,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    Y_START: tl.constexpr, Y_PIXEL: tl.constexpr, Y_ROW: tl.constexpr, Y_IMAGE: tl.constexpr, Y_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr, ASM: tl.constexpr,
):
    n = tl.program_id(0)
    bad = tl.zeros((BLOCK_M, COLUMNS), tl.float32)
    for first in range(0, Y_PADDED, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        for start in range(0, H * W, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            ok = m < H * W
            mask = ok[:, None] & (c < C)[None, :]
            x = tl.load(images + n * (C * H * W) + c[None, :] * (H * W) + m[:, None], mask=mask, other=0.0)
            bad += x - x
            v = (x - low) * multiplier
            code = to_code(tl.where(v == v, v, 0.0), 0, 0, 255)
            at = n * Y_IMAGE + m // W * Y_ROW + m % W * Y_PIXEL + Y_START
            store_codes(y0, y0, at, first, code, ok, 8, Y_PADDED, BLOCK_M, COLUMNS, ASM)
    tl.store(flags + n, tl.sum(tl.reshape(bad, [BLOCK_M * COLUMNS]), axis=0))


@triton.jit(do_not_specialize=["values"])
def mark_kernel(logits, flags, values, K: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    flag = tl.load(flags + i // K, mask=i < values, other=0.0)
    tl.store(logits + i, flag, mask=(i < values) & (flag != flag))


def _check_flags(who: str, flags: torch.Tensor, batch: int) -> None:
    fits = flags.dtype == torch.float32 and flags.shape == (batch,) and flags.is_contiguous()
    require(who, fits, f"contiguous float32 flags ({batch},)", f"{flags.dtype} {tuple(flags.shape)}")


def _check(who: str, images: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], y: DeviceMap) -> None:
    require(who, y.form.bits == 8, "a map of 8 bits", y.form)
    require(who, images.dtype == dtype and images.is_contiguous(), f"contiguous images of {dtype}", images.dtype)
    require(who, tuple(images.shape) == shape, f"images {shape}", tuple(images.shape))
    require(who, images.numel() <= INT32_LIMIT, f"at most {INT32_LIMIT} values; use a smaller batch", images.numel())


def _constants(y: DeviceMap, tile: int) -> dict[str, int]:
    form = y.form
    columns = min(power_of_two_from(form.padded, 4), CHANNELS)
    block_m = min(tile // columns, power_of_two_from(form.height * form.width, 1))
    return {
        "C": form.channels, "H": form.height, "W": form.width, **place("Y", y), "BLOCK_M": block_m, "COLUMNS": columns,
    }


def load_pixels(name: str, images: torch.Tensor, y: DeviceMap) -> Launch:
    """images: uint8 ``(N, H, W, C)``.  Raises ValueError for operands that do not fit each other."""
    who, form = f"load_pixels {name}", y.form
    _check(who, images, torch.uint8, (y.batch, form.height, form.width, form.channels), y)
    constants = _constants(y, PIXEL_TILE)
    pixels = y.batch * form.height * form.width
    grid = (-(-pixels // constants["BLOCK_M"]), -(-form.padded // constants["COLUMNS"]))
    cost = Cost(images.numel(), pixels * form.padded)
    arguments: dict[str, torch.Tensor | int | float] = {"images": images, "y0": y.plane0, "pixels": pixels}
    return Launch(name, load_pixels_kernel, grid, arguments, constants, 4, 1, cost)


def quantize_floats(
    name: str, images: torch.Tensor, y: DeviceMap, low: float, multiplier: float, flags: torch.Tensor, *,
    asm: bool = not INTERPRETED,
) -> Launch:
    """images: float32 ``(N, C, H, W)``; flags: float32 ``(N,)``; low and multiplier: binary32 numbers.  Raises
    ValueError for operands that do not fit each other."""
    who, form = f"quantize_floats {name}", y.form
    _check(who, images, torch.float32, (y.batch, form.channels, form.height, form.width), y)
    _check_flags(who, flags, y.batch)
    constants = {**_constants(y, FLOAT_TILE), "ASM": asm}
    arguments: dict[str, torch.Tensor | int | float] = {
        "images": images, "y0": y.plane0, "flags": flags, "low": float(low), "multiplier": float(multiplier),
    }
    cost = Cost(4 * images.numel(), y.batch * (form.height * form.width * form.padded + 4))
    warps = min(max(constants["BLOCK_M"] * constants["COLUMNS"] // 512, 4), 16)
    return Launch(name, quantize_floats_kernel, (y.batch,), arguments, constants, warps, 1, cost)


def mark(name: str, logits: torch.Tensor, flags: torch.Tensor) -> Launch:
    """logits: float32 ``(N, K)``, changed in place; flags: float32 ``(N,)`` of :func:`quantize_floats`."""
    who = f"mark {name}"
    fits = logits.dim() == 2 and logits.dtype == torch.float32 and logits.is_contiguous()
    require(who, fits, "contiguous float32 logits (N, K)", f"{logits.dtype} {tuple(logits.shape)}")
    _check_flags(who, flags, logits.shape[0])
    require(who, logits.numel() <= INT32_LIMIT, f"at most {INT32_LIMIT} logits", logits.numel())
    block = 1024
    grid = (-(-logits.numel() // block),)
    arguments: dict[str, torch.Tensor | int | float] = {"logits": logits, "flags": flags, "values": logits.numel()}
    constants = {"K": logits.shape[1], "BLOCK": block}
    return Launch(name, mark_kernel, grid, arguments, constants, 4, 1, Cost(4 * flags.numel(), 0))
