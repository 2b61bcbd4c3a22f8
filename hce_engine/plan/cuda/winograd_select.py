"""Which 3 x 3 layers of float members run by Winograd on image lanes, and with which configuration. The only place that decides it.

The rule knows shapes alone, never timing, and the algorithm not even the number of images: it sets the bytes of a result, which
may depend on the image alone. It is the one of least estimated time for REFERENCE_TILES tiles of 32 images, if it is WORTH its
larger error; the configuration, which does not show in results, is that of the actual number. No algorithm is faster than
memory: maps are read and written once.

Estimates are cycles, in the unit of lanes_select.conv_cycles, of the three phases of csrc/cuda/kernels/winograd_f32.h. A thread
block of W warps takes T tiles of m x m pixels through them together; F = (m + 2)^2 frequencies are F / 4 warps per S tiles and O
outputs:

    transform inputs    T C times    INPUT[m] instructions of one warp
    multiply            C times      4 S O multiply-adds, S + O / 4 loads and about 5 more, of every warp
    transform outputs   T K times    OUTPUT[m, residual] instructions of one warp

and a warp looks up where a tile lies before it takes a part of it. Four instructions are issued per cycle; L1 and shared memory
give 128 bytes. Barriers part the phases, so a block that is alone on its multiprocessor also waits for loads, and for the quarter
with the most warps; several blocks fill each other's gaps.

The counts are those of the machine code for sm_90a of CUDA 13.0 (F(4x4) of 2 x 9 and 1 x 8, F(2x2) of 1 x 16, tiles inside the
map); tests/cuda/test_build.py compares them with what was compiled. Of the 313 and 297 of F(4x4), 144 and 116 are the arithmetic
of the transforms and the bias, 72 and 53 loads and stores; most of the others are addresses and the clamp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .lanes_plan import LINE_BYTES, TILE, WinogradConfig
from .lanes_select import MULTIPROCESSORS, conv_config, conv_cycles, even_channels

CONVOLUTIONS = ("auto", "direct")
REFERENCE_TILES = 32  # 1,024 images
# F(2x2) rounds more than the direct kernel and F(4x4) more than F(2x2): each must take at most this share of the other's time.
WORTH = 0.95

CHANNELS = {(2, 1): 16, (2, 2): 10, (4, 1): 11, (4, 2): 9}
"""Most outputs of a register tile by (m, tiles), as kWinogradChannels."""
GROUPS = {2: 4, 4: 2}
"""Most groups of a thread block by m, as kWinogradGroups."""
MOST_CHUNK = 256  # as kWinogradChunk
# Of one thread block; every GPU from sm_80 on gives it, so one plan fits all. The 227 kB of an H200 would save up to a tenth.
SHARED_BYTES = 96 * 1024

INPUT = {2: 106, 4: 313}
OUTPUT = {(2, False): 106, (2, True): 138, (4, False): 297, (4, True): 384}
INPUT_PLACE, OUTPUT_PLACE = 80, 70  # of a warp, for each tile of which it has a part
PASS = 190  # of every warp, once: accumulators cleared and stored, addresses of its share, barriers
STAGE = 15  # of a copy of 16 bytes of weights by each thread
# Assumed, cycles: until a load that misses L1 arrives while others are under way, and until one from shared memory does.
LOAD_LATENCY, SHARED_LATENCY = 700, 30
# An H200's 4.8 TB/s over its multiprocessors at 1.98 GHz, the clock of its 67 TFLOPS.
MEMORY_BYTES_PER_CYCLE = 4.8e12 / (MULTIPROCESSORS * 1.98e9)
SHARED_BYTES_OF_MULTIPROCESSOR, SHARED_BYTES_RESERVED = 227 * 1024, 1024  # in all; by the system, for each block
RESIDENT_WARPS = {2: 16, 4: 20}  # whose registers a multiprocessor has: 112 and 96 per thread


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _stride(channels: int) -> int:
    return _up(channels, 4) * 4


def frequencies(m: int) -> int:
    return (m + 2) ** 2


def pixel_tiles(m: int, height: int, width: int) -> int:
    """Tiles of m x m pixels that cover a map."""
    return _up(height, m) * _up(width, m)


def shared_bytes(config: WinogradConfig) -> int:
    """Of a thread block, as WinogradWork::SharedFloats."""
    f, c = frequencies(config.output), config
    lines = max(c.channel_groups * c.channels, c.chunk)
    return 4 * f * (c.tile_groups * c.tiles * TILE * lines + c.channel_groups * c.chunk * _stride(c.channels))


def _quarter(jobs: int, warps: int) -> int:
    """Most jobs that fall to one quarter of a multiprocessor when ``warps`` take turns."""
    return jobs // warps * _up(warps, 4) + _up(jobs % warps, 4)


@dataclass(frozen=True)
class _Phase:
    """Cycles of a multiprocessor. busy: that a phase of a block occupies.  alone: that it takes without other blocks."""

    busy: float
    alone: float

    def __add__(self, other: _Phase) -> _Phase:
        return _Phase(self.busy + other.busy, self.alone + other.alone)

    def times(self, count: int) -> _Phase:
        return _Phase(count * self.busy, count * self.alone)


def _transform(tiles: int, parts: int, instructions: int, lines: int, place: int, warps: int) -> _Phase:
    """parts: of each tile, of one warp each and of ``lines`` accesses to L1 or shared memory."""
    jobs, looked_up = tiles * parts, tiles * min(parts, warps)
    quarter = _quarter(jobs, warps) * instructions + _up(looked_up, 4) * place
    longest = _up(jobs, warps) * (instructions + LOAD_LATENCY) + _up(looked_up, warps) * place
    busy = max((jobs * instructions + looked_up * place) / 4, jobs * lines)
    return _Phase(busy, max(quarter + LOAD_LATENCY, longest, jobs * lines))


def _multiply(config: WinogradConfig, channels: int, staged: bool, warps: int) -> _Phase:
    s, o = config.tiles, config.channels
    # The loop of small register tiles is unrolled.
    own = channels * (4 * s * o + s + _up(o, 4) + (5 if s * o > 12 else 2.5))
    lines = warps * channels * (4 * s + _up(o, 4))
    if staged:
        own += STAGE * _up(config.channel_groups * channels * frequencies(config.output) * _stride(o), 4 * 32 * warps)
    return _Phase(max(warps * own / 4, lines), max(_up(warps, 4) * own, own + channels * SHARED_LATENCY, lines))


def winograd_cycles(config: WinogradConfig, inputs: int, outputs: int, jobs: int, residual: bool) -> float:
    """Estimated cycles of a launch, summed over the multiprocessors of an H200; memory left out. jobs: tiles of pixels, of all maps."""
    m, groups, o = config.output, config.channel_groups, config.channels
    f, tiles = frequencies(m), config.tiles * config.tile_groups
    warps = groups * config.tile_groups * f // 4
    block = _Phase(PASS * warps / 4, PASS * _up(warps, 4))
    kept, lines = min(groups * o, outputs), f + (2 if residual else 1) * m * m
    block += _transform(tiles, kept, OUTPUT[m, residual], lines, OUTPUT_PLACE, warps)
    full, rest = divmod(inputs, config.chunk)
    for count, channels in ((full, config.chunk), (min(rest, 1), rest)):
        chunk = _transform(tiles, channels, INPUT[m], 2 * f, INPUT_PLACE, warps)
        block += (chunk + _multiply(config, channels, config.chunk < inputs, warps)).times(count)

    columns, passes = _up(_up(outputs, o), groups), _up(jobs, tiles)
    resident = min(SHARED_BYTES_OF_MULTIPROCESSOR // (shared_bytes(config) + SHARED_BYTES_RESERVED), RESIDENT_WARPS[m] // warps,
                   _up(passes * columns, MULTIPROCESSORS))
    rounds = _up(passes, max(MULTIPROCESSORS * resident // columns, 1))
    weights = 4 * groups * inputs * f * _stride(o) / 64  # from L2 at 64 bytes per cycle, once
    return MULTIPROCESSORS * (weights * resident + rounds * max(resident * block.busy, block.alone))


def _configurations(m: int, inputs: int, outputs: int) -> Iterator[WinogradConfig]:
    """Those that the kernel has and that fit; of chunks the largest with which 1, 2, ... blocks fit on a multiprocessor."""
    for tiles in (1, 2):
        for channels in sorted({even_channels(outputs, limit) for limit in range(1, CHANNELS[m, tiles] + 1)}):
            for groups in range(1, min(GROUPS[m], _up(outputs, channels)) + 1):
                for tile_groups in range(1, GROUPS[m] // groups + 1):
                    found = set()
                    for blocks in range(1, RESIDENT_WARPS[m] * 4 // frequencies(m) + 1):
                        limit = min(SHARED_BYTES, SHARED_BYTES_OF_MULTIPROCESSOR // blocks - SHARED_BYTES_RESERVED)
                        for parts in range(_up(inputs, MOST_CHUNK), inputs + 1 if tiles == 1 else 2):
                            config = WinogradConfig(m, tiles, channels, groups, tile_groups, _up(inputs, parts))
                            if shared_bytes(config) <= limit:
                                found.add(config)
                                break
                    yield from sorted(found, key=lambda c: -c.chunk)


@lru_cache(maxsize=1024)
def winograd_config(m: int, inputs: int, outputs: int, jobs: int, residual: bool) -> WinogradConfig:
    """For ``jobs`` tiles of m x m pixels, of all maps."""
    return min(_configurations(m, inputs, outputs), key=lambda config: winograd_cycles(config, inputs, outputs, jobs, residual))


def estimates(inputs: int, outputs: int, height: int, width: int, residual: bool, tiles: int = REFERENCE_TILES) -> dict[int, float]:
    """Estimated cycles, memory left out, of a 3 x 3 layer by algorithm: 0 for the direct kernel, and m of those F(m x m, 3 x 3) for
    which the map has a tile."""
    shape = (outputs, 1, 9 * inputs)
    found = {0: conv_cycles(*shape, 9, tiles * height, width, conv_config(*shape, tiles * height, width))}
    for m in (2, 4):
        if min(height, width) >= m:
            jobs = tiles * pixel_tiles(m, height, width)
            found[m] = winograd_cycles(winograd_config(m, inputs, outputs, jobs, residual), inputs, outputs, jobs, residual)
    return found


def memory_cycles(channels: int, height: int, width: int, tiles: int = REFERENCE_TILES) -> float:
    """Cycles in which the memory of an H200 moves maps of so many channels, in the unit of ``estimates``."""
    return tiles * height * width * channels * LINE_BYTES / MEMORY_BYTES_PER_CYCLE


@lru_cache(maxsize=1024)
def algorithm(inputs: int, outputs: int, height: int, width: int, residual: bool) -> int:
    """m of F(m x m, 3 x 3), or 0 for the direct kernel, of a layer with stride 1 and one group. height, width: of its output."""
    memory = memory_cycles(inputs + outputs * (2 if residual else 1), height, width)
    times = {m: max(cycles, memory) for m, cycles in estimates(inputs, outputs, height, width, residual).items()}
    best = 0
    for m in (2, 4):
        if m in times and times[m] <= WORTH * times[best]:
            best = m
    return best


def packed_bytes(inputs: int, outputs: int, config: WinogradConfig) -> int:
    """Of the weights in the layout of the kernel."""
    return 4 * _up(outputs, config.channels) * inputs * frequencies(config.output) * _stride(config.channels)


def walked_multiplications(inputs: int, outputs: int, jobs: int, config: WinogradConfig) -> int:
    """Of the products, with the padding: tiles that reach beyond the map, and passes whose last tiles are missing."""
    tiles = config.tiles * config.tile_groups
    return _up(jobs, tiles) * tiles * frequencies(config.output) * inputs * outputs * TILE
