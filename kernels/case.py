"""One case of the compile check: launches that can be compiled without a GPU, or run and compared with a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .. import numerics
from .description import Codes
from .device import DeviceMap, empty_map, map_of_codes
from .formats import MapFormat
from .launch import Launch, Recoded, Residual

POISON = 0x55


@dataclass(frozen=True)
class Built:
    """launches in order; differing: after they ran, how many values of the outputs are not those of the reference, bytes
    around them that must not change included.  tile: outputs of one program of the last launch."""

    launches: Sequence[Launch]
    differing: Callable[[], int]
    tile: int


@dataclass(frozen=True)
class Case:
    """kernel and name: unique together.  build: takes the device and ``whole``.  quick: part of the short check.
    weights_as_bytes: the same launches with weights stored as 8 bits, where these are packed."""

    kernel: str
    name: str
    build: Callable[[str, bool], Built]
    quick: bool = False
    weights_as_bytes: Callable[[str, bool], Built] | None = None

    @property
    def title(self) -> str:
        return f"{self.kernel}: {self.name}"


def random_codes(rng: np.random.Generator, form: MapFormat, batch: int) -> np.ndarray:
    return rng.integers(0, 1 << form.bits, (batch, form.channels, form.height, form.width), dtype=np.uint8)


def poisoned(form: MapFormat, batch: int, device: str) -> DeviceMap:
    """An output before the launch: bytes that no result may leave, and a halo that no launch may change."""
    return empty_map(form, batch, device, pad_code=1, fill=POISON)


def changed(value: DeviceMap, expected: np.ndarray) -> int:
    """Codes that differ from ``expected``, and halo bytes that are not what :func:`poisoned` wrote."""
    form, wrong = value.form, int((value.codes() != expected).sum())
    before = empty_map(form, value.batch, "cpu", pad_code=1, fill=POISON)
    top, left = form.halo[:2]
    for now, then, size, pixel in zip(value.planes, before.planes, form.image_bytes, form.pixel_bytes, strict=True):
        shape = (value.batch, form.rows, form.columns, pixel)
        moved = (now.cpu() != then)[: value.batch * size].view(shape).numpy().copy()
        moved[:, top : top + form.height, left : left + form.width] = False
        wrong += int(moved.sum())
    return wrong


def changed_bits(a: torch.Tensor, b: np.ndarray) -> int:
    """Floats whose bits are not those expected."""
    return int((a.cpu().numpy().view(np.uint32) != b.astype(np.float32).view(np.uint32)).sum())


def random_weights(rng: np.random.Generator, shape: Sequence[int], bits: int) -> np.ndarray:
    """int8, every code of ``bits``."""
    limit = 1 << (bits - 1)
    return rng.integers(-limit, limit, shape, dtype=np.int8)


def spread_multiplier(weight: np.ndarray, x_bits: int, y_qmax: int) -> np.ndarray:
    """Multipliers that spread the sums of random codes over the range of y, and some beyond."""
    deviation = np.sqrt(weight[0].size) * 2.0 ** (x_bits - 1) * max(float(weight.std()), 1.0)
    return np.geomspace(0.25, 2.0, len(weight)).astype(np.float32) * np.float32(y_qmax / deviation)


@dataclass(frozen=True)
class Ending:
    """The outputs of a quantized layer. stream: codes of the residual."""

    y: DeviceMap | None
    codes: Codes
    residual: Residual | None
    recoded: Recoded | None
    stream: np.ndarray | None

    @property
    def operands(self) -> dict[str, Any]:
        return {"y": self.y, "codes": self.codes, "residual": self.residual, "recoded": self.recoded}

    def differing(self, acc: np.ndarray, multiplier: np.ndarray) -> int:
        """Values that are not those which numerics.py makes of the sums."""
        grid, residual, recoded = self.codes, self.residual, self.recoded
        expected = numerics.requantize(
            acc, multiplier, zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax, residual=self.stream,
            residual_zero_point=residual.zero_point if residual else 0,
            residual_multiplier=residual.multiplier if residual else 0.0,
        )
        wrong = changed(self.y, expected) if self.y else 0
        if recoded:
            second = numerics.recode(
                expected, recoded.factor, zero_point_in=grid.zero_point, zero_point=recoded.codes.zero_point,
                qmin=recoded.codes.qmin, qmax=recoded.codes.qmax,
            )
            wrong += changed(recoded.map, second)
        return wrong


def ending(
    rng: np.random.Generator, place: MapFormat, batch: int, device: str, y_bits: int, recoded_bits: int = 0,
    residual: bool = False, zero_point: int = 0,
) -> Ending:
    """Outputs at ``place``, whose bits do not matter; 0 bits: no such output."""
    grid = Codes(zero_point, 0, (1 << (y_bits or 8)) - 1)
    y = poisoned(replace(place, bits=y_bits), batch, device) if y_bits else None
    stream = added = recoded = None
    if residual:
        stream = random_codes(rng, replace(place, bits=8), batch)
        added = Residual(map_of_codes(stream, replace(place, bits=8), device), 128, float(np.float32(0.37)))
    if recoded_bits:
        derived = Codes(0, 0, (1 << recoded_bits) - 1)
        factor = numerics.recode_factor(1.0, grid.qmax / derived.qmax / 1.5)
        recoded = Recoded(poisoned(replace(place, bits=recoded_bits), batch, device), derived, factor)
    return Ending(y, grid, added, recoded, stream)
