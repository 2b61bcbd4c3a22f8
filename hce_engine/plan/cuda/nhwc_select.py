"""Which configuration a float convolution on NHWC maps gets, and what it costs. The only place that decides it.

The number of segments of a sum decides its bits, so it is a function of the layer alone: as few as keep each to SEGMENT_STEPS
steps of 16 products. The tile of a thread block, and whether the segments are computed side by side or one after the other,
leave the bits as they are, and follow an estimate of time from facts of the kernel (csrc/cuda/kernels/conv_nhwc_f32.h). One
step of a warp with TM x TN results per lane takes

    issue   the instructions of the main loop as compiled for sm_90a (docs/LOG.md), four per cycle of a multiprocessor
    shared  4 (TM + TN) loads of 128 bits per lane, at most 4 cycles each: no broadcast between quarters of a warp is assumed

and both proceed at once, so the larger counts. The busiest multiprocessor has blocks / 132 of them, rounded up; with fewer than
8 warps it issues instructions no faster, because they wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from .lanes_plan import LINE_BYTES, TILE, NhwcConfig
from .lanes_select import FILLING_WARPS, MULTIPROCESSORS
from .roofline import GPUS, LAUNCH_FLOOR

STEP = 16  # products of a step, as kNhwcStep
SEGMENT_STEPS = 36  # 3 x 3 taps of 64 channels
FILLING = FILLING_WARPS // MULTIPROCESSORS
CLOCK = 1.98e9  # of an H200, hertz: 67e12 / (132 * 256)
BANDWIDTH = GPUS["h200"].bandwidth


@dataclass(frozen=True)
class Tile:
    """Results of a lane, warps of a block, and instructions of the main loop per step of 16 products."""

    lane: tuple[int, int]
    warps: int
    instructions: int

    def cycles(self, warps: int) -> float:
        """Of a multiprocessor that holds so many warps, for one step of each."""
        return max(self.instructions / 4 * max(warps, FILLING), 4 * 4 * sum(self.lane) * warps)


# (rows, columns), as kNhwcTiles; the last one alone serves groups that do not begin at multiples of four channels.
TILES = {
    (128, 64): Tile((8, 8), 4, 1190), (64, 64): Tile((8, 4), 4, 648), (64, 32): Tile((4, 4), 4, 375),
    (32, 32): Tile((2, 4), 4, 231),
}
SMALL_TILE = (32, 32)


def _up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Product:
    """A convolution as a matrix product: output pixels of all images, outputs and inputs of a group, taps."""

    pixels: int
    groups: int
    outputs: int
    inputs: int
    taps: int

    @property
    def steps(self) -> int:
        return _up(self.taps * _up(self.inputs, 4) * 4, STEP)

    @property
    def segments(self) -> int:
        return _up(self.steps, SEGMENT_STEPS)

    @property
    def lines(self) -> int:
        """Lines of an output pixel."""
        return _up(self.groups * self.outputs, TILE)

    def walked_macs(self, config: NhwcConfig) -> int:
        """Multiply-accumulates with the padding of rows, columns and steps."""
        rows, columns = (_up(n, size) * size for n, size in ((self.pixels, config.rows), (self.outputs, config.columns)))
        return rows * self.groups * columns * self.steps * STEP

    def packed_bytes(self, config: NhwcConfig) -> int:
        """Of the weights in the layout of the kernel."""
        return 4 * self.groups * _up(self.outputs, config.columns) * config.columns * self.steps * STEP

    def seconds(self, config: NhwcConfig) -> float:
        """Estimated arithmetic of the launch on an H200."""
        tile = TILES[config.rows, config.columns]
        blocks = _up(self.pixels, config.rows) * self.groups * _up(self.outputs, config.columns)
        steps = self.steps
        if config.parallel:
            blocks, steps = blocks * config.segments, _up(steps, config.segments)
        return tile.cycles(_up(blocks, MULTIPROCESSORS) * tile.warps) * steps / CLOCK

    def sum_seconds(self, config: NhwcConfig) -> float:
        """What computing the segments side by side costs: partial sums to memory and back, and a launch that adds them."""
        moved = 2 * config.segments * self.pixels * self.lines * LINE_BYTES
        return max(moved / BANDWIDTH, LAUNCH_FLOOR) if config.parallel else 0.0


def nhwc_config(product: Product) -> NhwcConfig:
    """Of configurations that tie, the one with the larger tile, then the one without partial sums."""
    whole = product.groups == 1 or product.inputs % 4 == 0
    tiles = list(TILES) if whole else [SMALL_TILE]
    ways = (False, True) if product.segments > 1 else (False,)
    configs = [NhwcConfig(*tile, product.segments, parallel) for tile in tiles for parallel in ways]
    return min(configs, key=lambda c: product.seconds(c) + product.sum_seconds(c))
