"""What a layer does, in the words that plans and launchers share. Plain data: no torch, no Triton."""

from __future__ import annotations

from dataclasses import dataclass

from .formats import Halo

Pair = tuple[int, int]


@dataclass(frozen=True)
class Codes:
    """The grid of codes of an output: zero point, and the range that it is clamped to."""

    zero_point: int = 0
    qmin: int = 0
    qmax: int = 255


@dataclass(frozen=True)
class Geometry:
    """Window and output size of a convolution or pool, (height, width) each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair

    def halo(self, height: int, width: int) -> Halo:
        """The halo that the windows reach on a map of height x width."""
        bottom, right = (
            (self.out[i] - 1) * self.stride[i] + (self.kernel[i] - 1) * self.dilation[i] - self.padding[i] + 1 - size
            for i, size in enumerate((height, width))
        )
        return (self.padding[0], self.padding[1], max(bottom, 0), max(right, 0))
