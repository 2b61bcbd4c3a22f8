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
class Clamps:
    """Whether an epilogue must clamp its codes, and those it derives from them: it need not where storing saturates to the
    same range."""

    value: bool
    recoded: bool


def clamps(
    largest: float, codes: Codes, bits: int | None, derived: tuple[Codes, int, int] | None = None
) -> Clamps:
    """largest: bound of |code - z| before clamping; bits: of the storage of the codes, None if they are not stored;
    derived: (codes, bits, factor k) of a recoded output.

    Recoding is monotone, so clamping before it changes nothing if the ends of the range already reach the ends of the
    recoded range, and if the wider codes do not overflow ``(code - z) * k + 2^15``.
    """
    def full(grid: Codes, width: int) -> bool:
        return width in (8, 4) and (grid.qmin, grid.qmax) == (0, (1 << width) - 1)

    value = largest >= 2.0**22 or not (bits is None or full(codes, bits))
    if derived is None:
        return Clamps(value, True)
    grid, width, factor = derived
    low, high = (grid.zero_point + (((end - codes.zero_point) * factor + 32768) >> 16) for end in (codes.qmin, codes.qmax))
    commutes = low <= grid.qmin and high >= grid.qmax and (largest + 1) * factor + 32768 < 2.0**31
    return Clamps(value or not commutes, not full(grid, width))


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
