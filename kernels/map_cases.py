"""Kernels of the compile check that move and change codes without tensor cores: images, pools, sums of streams, logits."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
import torch

from .. import numerics
from . import elementwise, ensemble_mean, images, move, pool
from .case import Built, Case, changed, changed_bits, ending, poisoned, random_codes
from .description import Codes, Geometry
from .device import map_of_codes
from .formats import MapFormat
from .launch import Launch

HALO = (1, 1, 1, 1)


def _tile(launch: Launch) -> int:
    return prod(launch.constants[key] for key in ("BLOCK_M", "BLOCK_C", "COLUMNS", "BLOCK") if key in launch.constants)


def _pixels(size: int, device: str, whole: bool) -> Built:
    size = size if whole else min(size, 9)
    values = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    y = poisoned(MapFormat(3, size, size, 8, HALO), 3, device)
    launch = images.load_pixels("pixels", torch.from_numpy(values).to(device), y)
    return Built([launch], lambda: changed(y, values.transpose(0, 3, 1, 2)), _tile(launch))


def _floats(size: int, device: str, whole: bool) -> Built:
    size = size if whole else min(size, 9)
    values = np.random.default_rng(2).normal(0, 1, (3, 3, size, size)).astype(np.float32)
    values[1, 2, 0, 1] = np.nan
    y = poisoned(MapFormat(3, size, size, 8, HALO), 3, device)
    flags = torch.full((3,), 7.0, device=device)
    low, multiplier = -2.0, float(np.float32(63.75))
    launch = images.quantize_floats("floats", torch.from_numpy(values).to(device), y, low, multiplier, flags)

    def differing() -> int:
        marked = np.isnan(flags.cpu().numpy())
        wrong = int((marked != [False, True, False]).sum()) + int((flags.cpu().numpy()[[0, 2]] != 0).sum())
        return wrong + changed(y, numerics.quantize_input(values, low, multiplier))

    return Built([launch], differing, prod(y.form.image_bytes[0:1]))


def _mark(device: str, whole: bool) -> Built:
    logits = np.random.default_rng(3).normal(size=(257, 10)).astype(np.float32)
    flags = np.where(np.arange(257) % 3 == 1, np.float32(np.nan), np.float32(0))
    tensor = torch.from_numpy(logits.copy()).to(device)
    launch = images.mark("logits", tensor, torch.from_numpy(flags).to(device))

    def differing() -> int:
        marked = np.isnan(flags)
        return int((~torch.isnan(tensor.cpu()).numpy()[marked]).sum()) + changed_bits(tensor[~torch.from_numpy(marked)], logits[~marked])

    return Built([launch], differing, _tile(launch))


def _pool(kind: str, channels: int, size: int, kernel: int, stride: int, bits: int, device: str, whole: bool) -> Built:
    """A stride of 0 is a global pool. Few output pixels get smaller tiles, hence the images of the whole launch."""
    rng, batch = np.random.default_rng(4), 8 * (1 if stride else 1024) if whole else 2
    size = size if whole or not stride else min(size, 10)
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1 if stride else 1
    padding = kernel // 2 if stride else 0
    geometry = Geometry((kernel,) * 2, (stride or 1,) * 2, (padding,) * 2, (1, 1), (out,) * 2)
    form = MapFormat(channels, size, size, bits, (padding,) * 4)
    codes = random_codes(rng, form, batch)
    x, y = map_of_codes(codes, form, device), poisoned(MapFormat(channels, out, out, bits, HALO), batch, device)

    def windows(pad: int) -> np.ndarray:
        return numerics.patches(codes, geometry.kernel, geometry.stride, geometry.padding, (1, 1), pad)

    if kind == "max":
        launch = pool.max_pool("max", x, y, geometry)
        return Built([launch], lambda: changed(y, windows(0).max(axis=(-2, -1))), _tile(launch))
    factor, grid = float(np.float32(1.2 / kernel**2)), Codes(0, 0, (1 << bits) - 1)
    launch = pool.average_pool("average", x, y, geometry, zero_point_in=2, multiplier=factor, codes=grid)

    def differing() -> int:
        total = numerics.pool_sum(windows(2), 2)
        return changed(y, numerics.requantize(total, factor, zero_point=0, qmin=0, qmax=grid.qmax))

    return Built([launch], differing, _tile(launch))


def _add(channels: int, size: int, bits: int, recoded_bits: int, device: str, whole: bool) -> Built:
    rng, size = np.random.default_rng(5), size if whole else min(size, 7)
    form = MapFormat(channels, size, size, bits, HALO)
    a, b = random_codes(rng, form, 2), random_codes(rng, form, 2)
    out = ending(rng, form, 2, device, bits, recoded_bits)
    multipliers = (float(np.float32(0.7)), float(np.float32(0.45)))
    launch = elementwise.add(
        "streams", map_of_codes(a, form, device), map_of_codes(b, form, device), out.y, zero_points=(0, 3),
        multipliers=multipliers, codes=out.codes, recoded=out.recoded,
    )

    def differing() -> int:
        grid = out.codes
        expected = numerics.add(
            a, b, zero_points=(0, 3), multipliers=multipliers, zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax
        )
        wrong = changed(out.y, expected) if out.y else 0
        if out.recoded:
            second = numerics.recode(expected, out.recoded.factor, zero_point_in=0, zero_point=0, qmin=0, qmax=out.recoded.codes.qmax)
            wrong += changed(out.recoded.map, second)
        return wrong

    return Built([launch], differing, _tile(launch))


def _recode(channels: int, size: int, bits: int, y_bits: int, device: str, whole: bool) -> Built:
    rng, size = np.random.default_rng(6), size if whole else min(size, 7)
    form, grid = MapFormat(channels, size, size, bits, HALO), Codes(0, 0, (1 << y_bits) - 1)
    codes, y = random_codes(rng, form, 2), poisoned(MapFormat(channels, size, size, y_bits, HALO), 2, device)
    factor = numerics.recode_factor(1.0, ((1 << bits) - 1) / grid.qmax)
    launch = elementwise.recode("stream", map_of_codes(codes, form, device), y, zero_point_in=0, codes=grid, factor=factor)

    def differing() -> int:
        return changed(y, numerics.recode(codes, factor, zero_point_in=0, zero_point=0, qmin=0, qmax=grid.qmax))

    return Built([launch], differing, _tile(launch))


def _gather(channels: int, size: int, bits: int, y_bits: int, whole_pixels: bool, device: str, whole: bool) -> Built:
    """The shortcut that takes every second pixel and adds channels on both sides, or one operand of a concatenation."""
    rng, size = np.random.default_rng(7), size if whole else min(size, 8)
    form = MapFormat(channels, size, size, bits, HALO)
    step = 2 if whole_pixels else 1
    codes = random_codes(rng, form, 2)
    y = poisoned(MapFormat(2 * channels, size // step, size // step, y_bits, HALO), 2, device)
    launch = move.gather(
        "shortcut", map_of_codes(codes, form, device), y, first_channel=channels // 2, rows=(0, step), columns=(0, step),
        fill_code=1, whole=whole_pixels,
    )
    before = y.codes()

    def differing() -> int:
        expected = np.full_like(before, 1) if whole_pixels else before.copy()
        expected[:, channels // 2 : channels // 2 + channels] = codes[:, :, ::step, ::step]
        return changed(y, expected)

    return Built([launch], differing, _tile(launch))


def _mean(members: int, device: str, whole: bool) -> Built:
    logits = np.random.default_rng(8).normal(size=(members, 300, 10)).astype(np.float32)
    out = torch.full((300, 10), torch.nan, device=device)
    launch = ensemble_mean.launch("members", [torch.from_numpy(z).to(device) for z in logits], out)

    def differing() -> int:
        total = logits[0]
        for z in logits[1:]:
            total = total + z
        return changed_bits(out, total * np.float32(1.0 / members) if members > 1 else total)

    return Built([launch], differing, _tile(launch))


def map_cases() -> list[Case]:
    return [
        Case("images.load_pixels", "32x32x3", partial(_pixels, 32)),
        Case("images.load_pixels", "224x224x3", partial(_pixels, 224)),
        Case("images.quantize_floats", "32x32x3", partial(_floats, 32), True),
        Case("images.quantize_floats", "224x224x3", partial(_floats, 224)),
        Case("images.mark", "10 classes", _mark),
        Case("pool.max_pool", "112x112 3x3 s2 64 u4", partial(_pool, "max", 64, 112, 3, 2, 4)),
        Case("pool.max_pool", "112x112 3x3 s2 64 u8", partial(_pool, "max", 64, 112, 3, 2, 8)),
        Case("pool.max_pool", "16x16 3x3 s2 32 u3", partial(_pool, "max", 32, 16, 3, 2, 3)),
        Case("pool.average_pool", "8x8 global 64 u8", partial(_pool, "average", 64, 8, 8, 0, 8), True),
        Case("pool.average_pool", "56x56 3x3 s2 64 u4", partial(_pool, "average", 64, 56, 3, 2, 4)),
        Case("elementwise.add", "32x32x16 u8 recoded u4", partial(_add, 16, 32, 8, 4), True),
        Case("elementwise.add", "56x56x256 u8 recoded u4", partial(_add, 256, 56, 8, 4)),
        Case("elementwise.recode", "32x32x16 u8 to u4", partial(_recode, 16, 32, 8, 4)),
        Case("elementwise.recode", "8x8x64 u8 to u3", partial(_recode, 64, 8, 8, 3)),
        Case("move.gather", "32x32 s2 16->32 u8", partial(_gather, 16, 32, 8, 8, True), True),
        Case("move.gather", "16x16 s2 32->64 u4", partial(_gather, 32, 16, 4, 4, True)),
        Case("move.gather", "28x28 32 of 64 u4 to u8", partial(_gather, 32, 28, 4, 8, False)),
        Case("ensemble_mean", "2 members of 10 classes", partial(_mean, 2), True),
        Case("ensemble_mean", "1 member", partial(_mean, 1)),
        Case("ensemble_mean", "16 members", partial(_mean, 16)),
    ]
