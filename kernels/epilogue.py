"""What follows the sums of a layer, once for every kernel that has sums: its codes, a recoded second output, or logits.

    v           = f32(acc[p,o]) * m[o]
    code[p,o]   = z + rne(clamp(v [+ f32(r[p,o] - z_r) * g], qmin - z, qmax - z))
    recoded     = clamp(z' + (((code - z) * k + 2^15) >> 16), qmin', qmax')                             optional
    logits[p,o] = v + offset[o]                                                                         instead of codes

p: a pixel, o: a channel.  acc: int32 tile [ROWS, COLUMNS] of pixels x channels, bias included; multiplier and offset
float32 [channels]; r: 8-bit map, outputs: maps of formats.py; logits: float32 [pixels, classes].  Rounding and
exactness: requantize.py.  The second half describes the same outputs to launchers: checks, arguments, constants, bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .description import Codes, clamps
from .device import DeviceLayer, DeviceMap
from .launch import INT32_LIMIT, Recoded, Residual, require
from .requantize import recode, residual_to_float, store_codes, to_code, to_float


@triton.jit
def finish(
    acc, pixel, ok, block, r_at, y_at, z_at, multiplier, offset, r0, y0, y1, z0, z1, logits, residual_factor,
    recode_factor, MAGIC: tl.constexpr, R_PADDED: tl.constexpr, R_ZERO: tl.constexpr, Y_BITS: tl.constexpr,
    Y_PADDED: tl.constexpr, Z_BITS: tl.constexpr, Z_PADDED: tl.constexpr, ZERO: tl.constexpr, QMIN: tl.constexpr,
    QMAX: tl.constexpr, Z_ZERO: tl.constexpr, Z_QMIN: tl.constexpr, Z_QMAX: tl.constexpr, CLAMP: tl.constexpr,
    Z_CLAMP: tl.constexpr, LOGITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ASM: tl.constexpr,
):
    """Stores the outputs of one tile. pixel: numbers [ROWS] of its pixels, ok: which exist; block: of COLUMNS channels;
    r_at, y_at, z_at: byte offsets [ROWS] of the pixels in plane 0 of each map."""
    channel = block * COLUMNS + tl.arange(0, COLUMNS)
    v = to_float(acc, MAGIC) * tl.load(multiplier + channel)[None, :]
    if LOGITS:
        v = v + tl.load(offset + channel)[None, :]
        tl.store(logits + pixel[:, None] * LOGITS + channel[None, :], v, mask=ok[:, None] & (channel < LOGITS)[None, :])
    else:
        if R_PADDED:
            mask = ok[:, None] & (channel < R_PADDED)[None, :]
            r = tl.load(r0 + r_at[:, None] + channel[None, :], mask=mask, other=0)
            v = v + residual_to_float(r, R_ZERO, ASM) * residual_factor
        code = to_code(v, ZERO, QMIN, QMAX, CLAMP)
        if Y_BITS:
            store_codes(y0, y1, y_at, block * COLUMNS, code, ok, Y_BITS, Y_PADDED, ROWS, COLUMNS, ASM)
        if Z_BITS:
            code = recode(code, recode_factor, ZERO, Z_ZERO, Z_QMIN, Z_QMAX, Z_CLAMP)
            store_codes(z0, z1, z_at, block * COLUMNS, code, ok, Z_BITS, Z_PADDED, ROWS, COLUMNS, ASM)


def place(prefix: str, value: DeviceMap | None) -> dict[str, int]:
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


@dataclass(frozen=True)
class Outputs:
    """arguments and constants of a kernel that calls :func:`finish`, places of the maps included; read: bytes of the
    residual; written: bytes of the outputs."""

    arguments: dict[str, torch.Tensor | int | float]
    constants: dict[str, int | bool]
    read: int
    written: int


def outputs(
    who: str, layer: DeviceLayer, size: tuple[int, int, int], *, y: DeviceMap | None, codes: Codes | None,
    residual: Residual | None, recoded: Recoded | None, logits: torch.Tensor | None,
) -> Outputs:
    """size: height, width and images of every output.  y: map of the codes; recoded: map of the codes derived from
    them; at least one of the two, or ``logits``, float32 ``(images, classes)``, for outputs of one pixel.  Raises
    ValueError for operands that do not fit each other."""
    weights, codes = layer.arrays.form, codes or Codes()
    pixels = size[0] * size[1] * size[2]
    require(who, weights.bytes <= INT32_LIMIT, f"weights of at most {INT32_LIMIT} bytes", weights.bytes)

    def check_channels(key: str, channels: int) -> None:
        fits = (weights.blocks - 1) * weights.block_n < channels <= weights.blocks * weights.block_n
        require(who, fits, f"channels of {key} that fill {weights.blocks} blocks of {weights.block_n}", channels)

    maps = {"y": (y, codes), "recoded": (recoded.map, recoded.codes) if recoded else (None, codes)}
    if residual is not None:
        require(who, residual.map.form.bits == 8, "a residual map of 8 bits", residual.map.form)
        maps["residual"] = (residual.map, Codes())
    for key, (value, grid) in maps.items():
        if value is not None:
            actual = (value.form.height, value.form.width, value.batch)
            require(who, actual == size, f"{key} of {size[0]} x {size[1]} x {size[2]} images", actual)
            require(who, grid.qmax < 1 << value.form.bits, f"codes of {value.form.bits} bits in {key}", grid.qmax)
            check_channels(key, value.form.channels)
    if logits is None:
        require(who, y is not None or recoded is not None, "an output", "none")
    else:
        beside = y is not None or recoded is not None or residual is not None
        require(who, size[:2] == (1, 1) and not beside, "one output pixel and no maps beside logits", size)
        whole = logits.dtype == torch.float32 and logits.is_contiguous()
        require(who, whole, "contiguous float32 logits", logits.dtype)
        fits = logits.dim() == 2 and logits.shape[0] == size[2]
        require(who, fits, f"logits of {size[2]} images", tuple(logits.shape))
        require(who, logits.numel() <= INT32_LIMIT, f"at most {INT32_LIMIT} logits; use a smaller batch", logits.numel())
        check_channels("logits", logits.shape[1])
    largest = layer.arrays.largest_value + (255 * abs(residual.multiplier) if residual else 0.0)
    derived = (recoded.codes, recoded.map.form.bits, recoded.factor) if recoded else None
    clamp = clamps(largest, codes, y.form.bits if y else None, derived)
    unused = layer.weight
    arguments: dict[str, torch.Tensor | int | float] = {
        "multiplier": layer.multiplier, "offset": layer.offset, "r0": residual.map.plane0 if residual else unused,
        "logits": layer.offset if logits is None else logits,
        "residual_factor": residual.multiplier if residual else 0.0, "recode_factor": recoded.factor if recoded else 0,
    }
    constants: dict[str, int | bool] = {
        "MAGIC": layer.arrays.magic, **place("R", residual.map if residual else None),
        "R_ZERO": residual.zero_point if residual else 0,
        "ZERO": codes.zero_point, "QMIN": codes.qmin, "QMAX": codes.qmax,
        "Z_ZERO": recoded.codes.zero_point if recoded else 0, "Z_QMIN": recoded.codes.qmin if recoded else 0,
        "Z_QMAX": recoded.codes.qmax if recoded else 0, "CLAMP": clamp.value, "Z_CLAMP": clamp.recoded,
        "LOGITS": 0 if logits is None else logits.shape[1],
    }
    written = 0 if logits is None else 4 * logits.numel()
    for key, value in (("y", y), ("z", recoded.map if recoded else None)):
        arguments[f"{key}0"], arguments[f"{key}1"] = (value.plane0, value.plane1) if value else (unused, unused)
        constants |= {f"{key.upper()}_BITS": value.form.bits if value else 0, **place(key.upper(), value)}
        written += pixels * sum(value.form.pixel_bytes) if value else 0
    return Outputs(arguments, constants, pixels * residual.map.form.pixel_bytes[0] if residual else 0, written)
