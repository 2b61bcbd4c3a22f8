"""A launch: one kernel with everything it needs, made once and called many times.

Launchers check their arguments and return a :class:`Launch`; calling it does nothing but launch. A back end therefore checks
while it builds, allocates nothing while it runs, and can capture the calls in a CUDA graph. The same object knows what the
launch costs and can be compiled for a GPU that is not there (compiler.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton

from .description import Codes

if TYPE_CHECKING:
    from .device import DeviceMap

# Whether this process runs kernels in the interpreter (TRITON_INTERPRET=1 when this package is imported): no assembly.
INTERPRETED = bool(triton.knobs.runtime.interpret)
INT32_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Residual:
    """An 8-bit map that an epilogue adds: f32(r - zero_point) * multiplier."""

    map: DeviceMap
    zero_point: int
    multiplier: float


@dataclass(frozen=True)
class Recoded:
    """A second output: the codes of the first on another grid, by an integer factor (requantize.py)."""

    map: DeviceMap
    codes: Codes
    factor: int


@dataclass(frozen=True)
class Cost:
    """What a launch must move and compute. read, written: bytes, each counted once; macs: real multiply-accumulates;
    walked: multiply-accumulates that the tensor cores do, padding included."""

    read: int
    written: int
    macs: int = 0
    walked: int = 0


@dataclass(frozen=True)
class Launch:
    """name: kernel and layer, for people.  arguments: tensors and numbers by parameter; constants: the constexprs."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, torch.Tensor | int | float]
    constants: Mapping[str, int | bool]
    num_warps: int
    num_stages: int
    cost: Cost

    def __call__(self) -> None:
        self.kernel[self.grid](
            **self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages,
            enable_fp_fusion=False,
        )


def require(who: str, holds: bool, expected: str, got: object) -> None:
    """Raises ValueError with both values: launchers are called by back ends, whose own checks come first."""
    if not holds:
        raise ValueError(f"{who}: expected {expected}, got {got}")


def power_of_two_from(value: int, smallest: int) -> int:
    """The smallest power of two that is at least ``value`` and ``smallest``."""
    return max(smallest, 1 << max(value - 1, 0).bit_length())
