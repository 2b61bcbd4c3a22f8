"""How a map lies in the sixteen lanes of a tile (csrc/cpu/lanes.h, LaneGrid).

With 16 images in a tile a lane is an image. With fewer, each map is cut into a grid of equal blocks, and a lane is one block
of one image. Kernels compute h x w pixels on 16 lanes either way, with the same operations for each pixel, so a result does
not depend on the arrangement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LANES = 16


@dataclass(frozen=True)
class Lanes:
    """Lane ``(image * rows + i) * columns + j`` holds the block of h x w pixels whose first is ``(i * h, j * w)``.

    An axis that is not cut (rows or columns 1) has the map's own size. Else the last blocks may reach beyond the map.
    """

    images: int
    rows: int
    columns: int
    h: int
    w: int

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """As the native program takes it."""
        return (self.images, self.rows, self.columns, self.h, self.w)

    @property
    def grid(self) -> tuple[int, int, int]:
        return (self.images, self.rows, self.columns)

    @property
    def used(self) -> int:
        return self.images * self.rows * self.columns

    def __str__(self) -> str:
        blocks = f"{self.rows}x{self.columns} blocks of {self.h}x{self.w}" if self.rows * self.columns > 1 else "whole maps"
        return f"{self.images} image{'s' if self.images > 1 else ''}, {blocks}"


def whole(images: int, h: int, w: int) -> Lanes:
    """A lane is an image."""
    return Lanes(images, 1, 1, h, w)


def cut(images: int, rows: int, columns: int, h: int, w: int, align: int = 1) -> Lanes:
    """A map of h x w pixels in rows x columns blocks, whose sizes are multiples of ``align`` where the axis is cut."""
    def block(size: int, blocks: int) -> int:
        return size if blocks == 1 else -(-size // (blocks * align)) * align

    return Lanes(images, rows, columns, block(h, rows), block(w, columns))


def cuts(images: int, h: int, w: int, align: int = 1) -> Iterator[Lanes]:
    """Every arrangement in which each row and column of blocks holds a pixel of the map."""
    for rows in range(1, LANES // images + 1):
        for columns in range(1, LANES // (images * rows) + 1):
            lanes = cut(images, rows, columns, h, w, align)
            if (rows - 1) * lanes.h < h and (columns - 1) * lanes.w < w:
                yield lanes


def strided(y: Lanes, y_size: tuple[int, int], x_size: tuple[int, int], stride: tuple[int, int], align: int = 1) -> tuple[Lanes, Lanes]:
    """(lanes of y, lanes of x) of a layer of this stride: like ``y``, with blocks that also cover x, which has ``stride`` pixels
    for each of y's along an axis that is cut."""
    def blocks(count: int, size: int, out: int, source: int, step: int) -> tuple[int, int]:
        if count == 1:
            return out, source
        size = max(size, -(-source // (count * step * align)) * align)
        return size, size * step

    (h, x_h), (w, x_w) = (blocks(*axis) for axis in zip((y.rows, y.columns), (y.h, y.w), y_size, x_size, stride, strict=True))
    return Lanes(y.images, y.rows, y.columns, h, w), Lanes(y.images, y.rows, y.columns, x_h, x_w)
