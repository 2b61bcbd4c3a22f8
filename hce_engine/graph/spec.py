"""What flows along one edge of a graph: shape without the batch axis, element type, quantization."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..dtypes import DTYPES, DType


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of one image.

    shape: ``(C, H, W)`` for maps, ``(F,)`` for vectors; the batch axis is never part of it.
    dtype: a name of :data:`hce_engine.dtypes.DTYPES`.
    scale, zero_point: real = scale * (code - zero_point) for code types; ``scale`` is None for f32.
    """

    shape: tuple[int, ...]
    dtype: str = "f32"
    scale: float | None = None
    zero_point: int = 0

    @property
    def type(self) -> DType:
        return DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        quant = "" if self.scale is None else f" scale={self.scale:.6g} zero_point={self.zero_point}"
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{quant}"
