"""A plan of float members for the GPU: the decided, printable list of launches, in one of two layouts.

    lanes   [tile][row][column][channel][32 images]               csrc/cuda/lanes.h; a tile is 32 images
    nhwc    [image][row][column][block of channels][32 channels]  csrc/cuda/nhwc.h; a tile is one image

Either way a pixel is a row of lines of 32 floats, and sizes are per tile. A batch of n images runs whole tiles, so costs count
those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arithmetic import IEEE
from .plan import Cost, row, total_cost

if TYPE_CHECKING:
    from .split_select import SplitConfig

LANES, NHWC = "lanes", "nhwc"
LAYOUTS = (LANES, NHWC)
TILE = 32  # floats of a line
LINE_BYTES = 4 * TILE
MAP_ALIGNMENT = 2 * LINE_BYTES  # bytes: a pair of lines of a split map
Halo = tuple[int, int, int, int]  # top, left, bottom, right


def tiles_of(batch: int, layout: str = LANES) -> int:
    return batch if layout == NHWC else -(-batch // TILE)


@dataclass(eq=False)
class LaneMap:
    """Float32 values of one node: ``[tile][row][column][line][32 lanes]`` with a halo of zeros around the pixels.

    halo grows while steps are made, to what all readers need.  slot: which piece of memory holds it, set by ``place``.
    line_channels: channels of a line, 1 where lanes are images, 32 where they are channels.
    split: values as pairs of numbers of 16 bits (csrc/cuda/split.h), two lines for two channels; zero is zero in both forms.
    """

    name: str
    channels: int
    height: int
    width: int
    halo: Halo = (0, 0, 0, 0)
    slot: int = -1
    line_channels: int = 1
    split: bool = False

    @property
    def depth(self) -> int:
        """Lines of a pixel."""
        return -(-self.channels // self.line_channels) + self.channels % 2 * self.split

    @property
    def rows(self) -> int:
        return self.height + self.halo[0] + self.halo[2]

    @property
    def columns(self) -> int:
        return self.width + self.halo[1] + self.halo[3]

    @property
    def lines(self) -> int:
        """Lines of one tile, halo included."""
        return self.rows * self.columns * self.depth

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of a tile, a row and a pixel, in floats."""
        pixel = self.depth * TILE
        return (self.lines * TILE, self.columns * pixel, pixel)

    @property
    def first(self) -> int:
        """Floats in front of pixel (0, 0) of a tile."""
        _, row, pixel = self.strides
        return self.halo[0] * row + self.halo[1] * pixel

    @property
    def bytes(self) -> int:
        """Bytes of the pixels of one tile, halo left out: what a kernel reads or writes once."""
        return self.height * self.width * self.depth * LINE_BYTES

    def widen(self, halo: Halo) -> None:
        t, l, b, r = self.halo
        self.halo = (max(t, halo[0]), max(l, halo[1]), max(b, halo[2]), max(r, halo[3]))


@dataclass(frozen=True)
class LaneSlot:
    """One piece of memory: maps of one form take turns in it, so that the halo stays zero. Maps without a halo need only
    have one size: they keep (lines, 1, 1) as their form."""

    form: tuple[int, int, int]
    halo: Halo

    @property
    def tile_bytes(self) -> int:
        depth, h, w = self.form
        return depth * (h + self.halo[0] + self.halo[2]) * (w + self.halo[1] + self.halo[3]) * LINE_BYTES

    @classmethod
    def of(cls, value: LaneMap) -> LaneSlot:
        form = (value.depth, value.height, value.width) if any(value.halo) else (value.lines, 1, 1)
        return cls(form, value.halo)


@dataclass(frozen=True)
class ConvConfig:
    """Of csrc/cuda/lanes.h: register tile of a thread, warps of a thread block, lines per chunk of weights; blocks 0 lets
    the launch fill the device."""

    pixels: int
    channels: int
    channel_warps: int
    pixel_warps: int
    chunk_lines: int
    blocks: int = 0

    def values(self) -> tuple[int, int, int, int, int, int]:
        return (self.pixels, self.channels, self.channel_warps, self.pixel_warps, self.chunk_lines, self.blocks)

    @property
    def packing(self) -> tuple[int, ...]:
        """What the order of packed weights depends on."""
        return (self.channels,)

    def __str__(self) -> str:
        return f"{self.pixels}x{self.channels} warps={self.channel_warps}x{self.pixel_warps} chunk={self.chunk_lines}"


@dataclass(frozen=True)
class WinogradConfig:
    """Of csrc/cuda/lanes.h. output: m of F(m x m, 3 x 3).  tiles, channels: register tile, tiles of m x m pixels and outputs.
    channel_groups, tile_groups: how often a thread block has it.  chunk: input channels transformed at a time.  blocks 0 lets
    the launch fill the device."""

    output: int
    tiles: int
    channels: int
    channel_groups: int
    tile_groups: int
    chunk: int
    blocks: int = 0

    def values(self) -> tuple[int, int, int, int, int, int, int]:
        return (self.output, self.tiles, self.channels, self.channel_groups, self.tile_groups, self.chunk, self.blocks)

    @property
    def packing(self) -> tuple[int, ...]:
        return (self.output, self.channels)

    def __str__(self) -> str:
        m = self.output
        return f"F({m}x{m}, 3x3) {self.tiles}x{self.channels} groups={self.channel_groups}x{self.tile_groups} chunk={self.chunk}"


@dataclass(frozen=True)
class NhwcConfig:
    """Of csrc/cuda/nhwc.h: pixels and outputs of a thread block, segments of a sum, and whether they are computed side by
    side."""

    rows: int
    columns: int
    segments: int
    parallel: bool = False

    def values(self) -> tuple[int, int, int, int]:
        return (self.rows, self.columns, self.segments, int(self.parallel))

    @property
    def packing(self) -> tuple[int, ...]:
        return (self.columns,)

    def __str__(self) -> str:
        how = " side by side" if self.parallel else ""
        return f"{self.rows}x{self.columns}" + (f" {self.segments} segments{how}" if self.segments > 1 else "")


@dataclass(frozen=True, eq=False)
class LaneWeights:
    """Constants of a layer. weight: float32 ``[OC, C / groups, KH, KW]``; a depthwise one ``[KH, KW, OC]``, as its kernel
    reads it (nhwc: ``[KH, KW, lines, 32]``).  packed_bytes: on the device, bias included."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    groups: int
    packed_bytes: int


@dataclass(frozen=True)
class LaneStep:
    """One launch. kernel: its name in the extension.  arguments: what it takes besides maps.  reads, writes: by argument.
    member: of ``store_logits``, whose result the step makes."""

    nodes: tuple[str, ...]
    kernel: str
    reason: str
    reads: Mapping[str, LaneMap]
    writes: Mapping[str, LaneMap]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: LaneWeights | None = None
    config: ConvConfig | WinogradConfig | NhwcConfig | SplitConfig | None = None
    arithmetic: str = IEEE
    member: str = ""
    cost: Cost = field(default_factory=Cost)
    launches: int = 1


@dataclass(frozen=True)
class LanesPlan:
    """What :class:`hce_engine.backends.cuda.lanes_program.LanesProgram`, or NhwcProgram, runs for ``batch`` images.

    why: what the layout was chosen by; empty where it was named.
    """

    batch: int
    members: tuple[str, ...]
    steps: tuple[LaneStep, ...]
    slots: tuple[LaneSlot, ...]
    classes: int
    image_shape: tuple[int, ...]
    float_images: bool
    layout: str = LANES
    why: str = ""
    arithmetic: str = IEEE

    @property
    def tiles(self) -> int:
        return tiles_of(self.batch, self.layout)

    @property
    def arena_bytes_per_tile(self) -> int:
        return sum(slot.tile_bytes for slot in self.slots)

    @property
    def weight_bytes(self) -> int:
        """Of weights once: plans for other batches may pack them for other configurations."""
        return sum(s.weights.packed_bytes for s in self.steps if s.weights is not None)

    @property
    def launches(self) -> int:
        return sum(s.launches for s in self.steps)

    @property
    def cost(self) -> Cost:
        return total_cost(s.cost for s in self.steps)

    @property
    def arithmetic_text(self) -> str:
        return "" if self.arithmetic == IEEE else f", convolutions in {self.arithmetic}"

    def __str__(self) -> str:
        cost = self.cost
        where, per = ("NHWC", "image") if self.layout == NHWC else ("image lanes", "tile")
        tiles = "" if self.layout == NHWC else f" in {self.tiles} tiles"
        why = f" ({self.why})" if self.why else ""
        head = (f"plan {'+'.join(self.members)} on cuda, float32 in {where}{why}{self.arithmetic_text}, for {self.batch} images{tiles}: "
                f"{self.launches} launches, arena {self.arena_bytes_per_tile / 1000:.1f} kB per {per} in {len(self.slots)} "
                f"slots, weights {self.weight_bytes / 1000:.1f} kB, {cost.bytes / self.batch / 1000:.1f} kB moved per image")
        return "\n".join([head, *(f"  {_row(s, self.batch)}" for s in self.steps)])


def _row(step: LaneStep, batch: int) -> str:
    config = f"  [{step.config}]" if step.config is not None else ""
    return row(step.nodes, step.kernel, step.cost, batch, step.reason, config)


def place(steps: Sequence[LaneStep]) -> tuple[LaneSlot, ...]:
    """Sets ``slot`` of every map. Outputs never lie where inputs do, with two exceptions that kernels allow: a running sum is
    one map, and a convolution may write over a residual that nobody reads after it.

    Maps of one size that have a halo get the same one, so that they can take turns.
    """
    alive: dict[int, tuple[LaneMap, int, int]] = {}
    for index, step in enumerate(steps):
        for value in (*step.reads.values(), *step.writes.values()):
            alive[id(value)] = (value, alive[id(value)][1] if id(value) in alive else index, index)
    with_halo = [value for value, _, _ in alive.values() if any(value.halo)]
    for value in with_halo:
        for other in with_halo:
            if (other.depth, other.height, other.width) == (value.depth, value.height, value.width):
                value.widen(other.halo)
    slots: list[LaneSlot] = []
    busy_until: list[int] = []
    for value, first, last in alive.values():
        wanted = LaneSlot.of(value)
        free = [i for i, slot in enumerate(slots) if slot == wanted and busy_until[i] < first]
        # The one that was used last: its lines are the likeliest to be in the cache.
        index = max(free, key=lambda i: busy_until[i], default=len(slots))
        residual = steps[first].reads.get("residual") if value is steps[first].writes.get("y") else None
        if residual is not None and residual is not steps[first].reads["x"] and alive[id(residual)][2] == first:
            index = residual.slot if slots[residual.slot] == wanted else index
        if index == len(slots):
            slots.append(wanted)
            busy_until.append(last)
        busy_until[index] = last
        value.slot = index
    return tuple(slots)
