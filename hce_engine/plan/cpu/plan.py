"""A plan: the decided, printable list of steps that runs some members of a graph on the CPU.

Each step names the kernel, why it was chosen, and what it costs; nothing is decided later. Back ends obey.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .lanes import LANES, Lanes

LINE_BYTES = 64  # one (pixel, channel) of float32 or one (pixel, 4 channels) of codes, for 16 lanes


@dataclass
class Map:
    """A tensor of one tile in the lanes layout, with a halo around its pixels.

    h, w: pixels of one lane.  lines: units of 4 channels for codes, channels for float32.
    size: pixels of the whole map, and grid: (images, rows, columns) of its lanes; by default a lane is an image.
    halo: (top, left, bottom, right) pixels.  pattern: the 4-byte value that each line has outside the map, uint32 [lines];
    surrounded: someone reads it there.  start: byte offset in the arena, set by the memory planner.
    odd_rows, odd_pixels: a row, a pixel takes an odd number of lines, so that the pixels of a column, those of a row do not fall
    into one set of a cache.
    """

    name: str
    h: int
    w: int
    lines: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    pattern: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    start: int = -1
    size: tuple[int, int] = (0, 0)
    grid: tuple[int, int, int] = (LANES, 1, 1)
    surrounded: bool = False
    odd_rows: bool = False
    odd_pixels: bool = False

    def __post_init__(self) -> None:
        if self.size == (0, 0):
            self.size = (self.h, self.w)

    @property
    def lanes(self) -> Lanes:
        return Lanes(*self.grid, self.h, self.w)

    @property
    def images(self) -> int:
        return self.grid[0]

    @property
    def pixel(self) -> int:
        return (self.lines | self.odd_pixels) * LINE_BYTES

    @property
    def row(self) -> int:
        lines = (self.halo[1] + self.w + self.halo[3]) * self.pixel // LINE_BYTES
        return (lines | self.odd_rows) * LINE_BYTES

    @property
    def bytes(self) -> int:
        return (self.halo[0] + self.h + self.halo[2]) * self.row

    @property
    def ref(self) -> tuple[int, int, int]:
        """(offset of pixel (0, 0), row stride, pixel stride), in bytes, as the native program takes it."""
        return (self.start + self.halo[0] * self.row + self.halo[1] * self.pixel, self.row, self.pixel)

    @property
    def extent(self) -> tuple[int, int, int]:
        return (self.h, self.w, self.lines)

    def widen(self, top: int, left: int, bottom: int, right: int) -> None:
        t, l, b, r = self.halo
        self.halo = (max(t, top), max(l, left), max(b, bottom), max(r, right))


@dataclass(frozen=True)
class Step:
    """One call of a kernel for one group of images.

    nodes: the graph nodes it computes.  kernel: a name such as ``conv2d_u4xs4_u8``.  reason: why this kernel.
    method: the builder of the native program.  maps: argument name -> Map read or written (reads, writes).
    arguments: everything else the builder takes.  packed_bytes: weights in memory.
    macs: multiply-accumulates per image that the layer is defined by.  executed_macs: those that the kernel does, transforms
    not counted, where an algorithm saves some; 0 means ``macs``.
    images: in a group. Steps of equal ``images`` are a stage.
    """

    nodes: tuple[str, ...]
    kernel: str
    reason: str
    method: str
    reads: Mapping[str, Map]
    writes: Mapping[str, Map]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    macs: int = 0
    packed_bytes: int = 0
    executed_macs: int = 0
    images: int = LANES

    def calls(self, count: int, tile: int) -> int:
        """How often the step runs for ``count`` images in tiles of ``tile``: once per group of each tile."""
        whole, rest = divmod(count, tile)
        return whole * -(-tile // self.images) + -(-rest // self.images)


@dataclass(frozen=True)
class Plan:
    """What :class:`hce_engine.backends.cpu.CpuBackend` runs: ``members`` in the order of the program's outputs, for tiles of
    ``images`` images. Steps stand in the order of their stages (csrc/cpu/program.h)."""

    isa: str
    members: tuple[str, ...]
    images: int
    steps: tuple[Step, ...]
    arena_bytes: int
    reason: str  # for the images that each stage takes at a time
    times: tuple[tuple[int, float], ...]  # (images, estimated nanoseconds) of tiles up to this plan's, by size

    @property
    def packed_bytes(self) -> int:
        return sum(s.packed_bytes for s in self.steps)

    def __str__(self) -> str:
        rows = [f"plan {'+'.join(self.members)} on {self.isa}, tiles of {self.images}: {len(self.steps)} steps, arena "
                f"{self.arena_bytes / 2**20:.2f} MiB per thread, weights {self.packed_bytes / 1000:.1f} kB; {self.reason}"]
        stage = 0
        for s in self.steps:
            if s.images != stage:
                stage = s.images
                rows.append(f" {stage} image{'s' if stage > 1 else ''} at a time:")
            y = next(iter((*s.writes.values(), *s.reads.values())))
            rows.append(f"  {'+'.join(s.nodes):32} {s.kernel:30} {s.macs / 1e6:8.3f} MMAC  {s.reason}; {y.lanes}")
        return "\n".join(rows)
