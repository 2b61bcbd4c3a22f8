"""How a kernel is cut and launched: the choices that change speed and never a result. Plain data: no torch, no Triton.

What is chosen where nothing was measured, and the candidates that a tuner measures, stand here beside each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from .formats import MapFormat, step_tiles


@dataclass(frozen=True)
class ConvConfig:
    """conv2d.py. A tile is block_m pixels x block_n channels; weight_bits: of storage; unroll: taps unrolled, else a
    pipelined loop of num_stages."""

    block_m: int = 128
    block_n: int = 16
    block_k: int = 32
    weight_bits: int = 8
    num_warps: int = 4
    num_stages: int = 3
    unroll: bool = True


# Convolutions. Up to so many pixels per launch, reading the weights is what takes the time (int8 tensor cores of an H200
# do 206 rows in the time that their weights take to arrive), and packed weights save it; above, they are unpacked once and
# stored as 8 bits, since a packed tile would be unpacked again by every block of pixels. Awaits measurement.
PACKED_PIXELS = 256
MULTIPROCESSORS = 132  # of an H200: fewer tiles than that leave some of it idle
UNROLLED_PRODUCTS = 24  # matrix products that a kernel unrolls; 36 of 128 x 128 spilled on sm_80 and took 19 s to compile
_STEP_OF_TRIPLES = 256  # codes of one step where weights are stored in 3 bits, with the smallest BLOCK_K


def _padded(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _largest_of(sizes: Sequence[int], needed: int, unit: int = 1) -> int:
    """The largest size whose multiples cover ``needed`` with at most an eighth more than the smallest size needs."""
    least = _padded(needed, sizes[0] * unit)
    return max(size for size in sizes if 8 * _padded(needed, size * unit) <= 9 * least)


def conv_storages(run: int, storages: Sequence[int]) -> tuple[int, ...]:
    """Of the storages that are exact for a layer, those worth having: 3 bits only where runs fill whole steps."""
    return tuple(bits for bits in storages if bits != 3 or run % _STEP_OF_TRIPLES == 0)


def default_conv_config(
    shape: Sequence[int], x: MapFormat, pixels: int, storages: Sequence[int] = (8,), dilation_w: int = 1
) -> ConvConfig:
    """What a convolution with weights ``shape`` [OC, C, KH, KW] over ``pixels`` output pixels gets unmeasured.

    storages: widths in which its weights may be stored (layer.narrowest_storage), 8 among them.
    """
    oc, _, kh, kw = shape
    run = (kw if dilation_w == 1 else 1) * x.padded
    runs = kh if dilation_w == 1 else kh * kw
    bits = min(conv_storages(run, storages)) if pixels <= PACKED_PIXELS else 8
    tiles = step_tiles(x.bits, bits)
    block_k = _largest_of((32, 64, 128), run, tiles)
    unroll = runs * _padded(run, tiles * block_k) // block_k <= UNROLLED_PRODUCTS
    block_n = _largest_of((16, 32, 64, 128) if unroll else (16, 32, 64), oc)
    block_m = 128
    blocks = -(-oc // block_n)
    while block_m > 16 and (block_m >= 2 * pixels or (block_m > 64 and -(-pixels // block_m) * blocks < MULTIPROCESSORS)):
        block_m //= 2
    # Registers of a thread of 4 warps: its sums, and the codes of a step where four come from one byte (spilled on sm_100).
    registers = block_m * (block_n + (block_k if x.bits == 3 else 0)) // 128
    return ConvConfig(block_m, block_n, block_k, bits, 8 if registers >= 128 and unroll else 4, 3, unroll)


def conv_candidates(
    shape: Sequence[int], x: MapFormat, pixels: int, storages: Sequence[int] = (8,), dilation_w: int = 1
) -> list[ConvConfig]:
    """What a tuner measures for the same layer, the default first."""
    oc, _, kh, kw = shape
    run = (kw if dilation_w == 1 else 1) * x.padded
    runs = kh if dilation_w == 1 else kh * kw
    found = [default_conv_config(shape, x, pixels, storages, dilation_w)]
    for bits, block_k, block_n, block_m in product(
        conv_storages(run, storages), (32, 64, 128), (16, 32, 64, 128), (16, 32, 64, 128, 256)
    ):
        tiles = step_tiles(x.bits, bits)
        products = runs * _padded(run, tiles * block_k) // block_k
        wasteful = _padded(run, tiles * block_k) >= 2 * _padded(run, tiles * 32) or block_n >= 2 * _padded(oc, 16)
        if wasteful or block_m >= 2 * max(pixels, 16):
            continue
        for warps, stages, unroll in ((4, 3, True), (8, 3, True), (4, 2, False), (4, 4, False)):
            sums = block_m * block_n // (32 * warps)  # per thread
            if 4 <= sums <= 128 and (products <= 2 * UNROLLED_PRODUCTS or not unroll):
                found.append(ConvConfig(block_m, block_n, block_k, bits, warps, stages, unroll))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class GemmConfig:
    """gemm.py. A tile is block_m rows x block_n channels; weight_bits: of storage; split_k: programs that share K; swap:
    weights are the first operand of the tensor cores; num_stages: of the pipelined loop."""

    block_m: int = 128
    block_n: int = 128
    block_k: int = 64
    weight_bits: int = 8
    split_k: int = 1
    swap: bool = False
    num_warps: int = 4
    num_stages: int = 3


# Matrix products. What a configuration is expected to take, from the data sheet of an H200 and from counts of
# instructions in compiled code (sm_90); it only puts candidates in order, and awaits measurement. What decides: up to
# some hundred rows the weights must arrive from memory, so they stay packed and enough of them must be under way;
# every block of channels fetches all rows of x again, from L2; above, tensor cores and L2 decide, packed weights are
# unpacked again by every block of rows, and 8 bits are taken (a tuner measures both).
_CLOCKS = 1755.0  # per microsecond
_MEMORY, _L2 = 4.8e6, 6.5e6  # bytes per microsecond
_PORT = 64.0  # bytes per clock that a multiprocessor takes from L2
_LATENCY = 1000.0  # clocks of a load from memory that is busy
_WGMMA, _MMA = 4096.0, 2540.0  # products per clock of a multiprocessor
_UNPACK_WEIGHT = {8: 0.0, 4: 0.375, 3: 0.53}  # instructions of a thread per code
_UNPACK_CODE = {8: 0.0, 4: 0.375, 3: 1.4}
_ISSUED = 64.0  # instructions of threads per clock beside everything else
_STEP, _TILE = 100.0, 40.0  # clocks of barriers per step of unpacked operands, and of waiting per sub-tile
_FLOW = 50.0  # clocks of barriers per step where both operands go from memory to tensor cores as they are
_SECOND_LAUNCH = 2.0  # microseconds
_SHARED, _SHARED_OF_PAIR = 160 << 10, 112 << 10  # bytes of one program, and of one that shares its multiprocessor


def _gemm_stage(x: MapFormat, config: GemmConfig) -> tuple[int, int, int]:
    """Codes of a step, its bytes of weights and of rows of x."""
    tiles = step_tiles(x.bits, config.weight_bits)
    codes = tiles * config.block_k
    x_bytes = codes * x.pixel_bytes[0] // x.padded
    planes = {8: tiles, 4: tiles // 2, 3: 3}[config.weight_bits]
    x_bytes += x_bytes // 2 if x.bits == 3 else 0
    return codes, planes * config.block_n * config.block_k, config.block_m * x_bytes


def gemm_microseconds(shape: Sequence[int], x: MapFormat, rows: int, config: GemmConfig) -> float:
    """Expected time of a product of ``rows`` codes of x with weights ``shape`` [N, K, 1, 1]; see above."""
    codes, weight_step, x_step = _gemm_stage(x, config)
    steps, blocks, row_blocks = -(-x.padded // codes), -(-shape[0] // config.block_n), -(-rows // config.block_m)
    programs = row_blocks * blocks * config.split_k
    share = -(-steps // config.split_k)
    x_step = x_step * min(rows, config.block_m) // config.block_m
    each = -(-programs // MULTIPROCESSORS)  # programs of the busiest multiprocessor
    together = max(1, min(each, (227 << 10) // ((weight_step + x_step) * config.num_stages), 32 // config.num_warps))
    wide, narrow = (config.block_n, config.block_m) if config.swap else (config.block_m, config.block_n)
    rate = _WGMMA if wide >= 64 and narrow >= 16 and config.num_warps >= 4 else _MMA
    product = config.block_m * config.block_n * codes / rate
    # The first operand goes from the unpack to the tensor core in registers, the second through shared memory.
    unpack_w = config.block_n * codes * _UNPACK_WEIGHT[config.weight_bits] * (1.0 if config.swap else 1.5)
    unpack_x = config.block_m * codes * _UNPACK_CODE[x.bits] * (1.5 if config.swap else 1.0)
    unpacked = x.bits < 8 or config.weight_bits < 8
    waiting = (_STEP + _TILE * step_tiles(x.bits, config.weight_bits) if unpacked else _FLOW) / together
    under_way = together * (config.num_stages - 1) * (weight_step + x_step)
    arrival = (weight_step + x_step) / min(_PORT, under_way / _LATENCY)
    work = product + (unpack_w + unpack_x) / _ISSUED + waiting
    busy = each * share * (arrival**4 + work**4) ** 0.25 + 2 * _LATENCY
    weights, fetched = blocks * steps * weight_step, programs * share * (weight_step + x_step)
    sums = 4 * rows * blocks * config.block_n
    second = _SECOND_LAUNCH + sums * (config.split_k + 2) / (_L2 / 2) if config.split_k > 1 else 0.0
    # What does not decide still costs a little where it comes close.
    return sum(time**4 for time in (busy / _CLOCKS, weights / _MEMORY, fetched / _L2)) ** 0.25 + second


def _gemm_configs(shape: Sequence[int], x: MapFormat, rows: int, storages: Sequence[int]) -> list[GemmConfig]:
    covering = 8
    while covering < min(rows, 128):
        covering *= 2
    heights = sorted({covering, max(covering // 2, 64)} if covering > 64 else {covering})
    found = []
    for bits, swap, block_m, block_n, block_k in product(
        storages, (rows < 64, rows >= 64), heights, (16, 32, 64, 128, 256), (32, 64, 128)
    ):
        wide = block_n if swap else block_m
        if wide < 16 or block_n >= 2 * _padded(shape[0], 16):
            continue
        for warps in sorted({max(1, min(wide // 16, 4)), max(1, min(wide // 16, 8))} if swap else {4, 8}):
            if 128 * warps > block_m * block_n:  # one product of 16 x 8 for every warp
                continue
            sums = block_m * block_n // (32 * warps)  # per thread
            bare = GemmConfig(block_m, block_n, block_k, bits, 1, swap, warps, 2)
            codes, weight_step, x_step = _gemm_stage(x, bare)
            packed = bits < 8 if swap else x.bits < 8
            operand = wide * codes // (128 * warps) if packed else 0  # registers that hold an unpacked first operand
            # Without wgmma every warp also unpacks all of a packed second operand into registers.
            alone = wide < 64 or warps < 4
            other = (block_m if swap else block_n) * codes // 128 if alone and (x.bits if swap else bits) < 8 else 0
            if not 2 <= sums <= 128 or sums + operand > 160 or sums + other > 192 or (x.bits == 3 and codes > 256):
                continue
            steps = -(-x.padded // codes)
            programs = -(-rows // block_m) * -(-shape[0] // block_n)
            filling = (MULTIPROCESSORS // programs, 2 * MULTIPROCESSORS // programs)
            splits = {1} | {split for split in filling if 1 < split <= steps // 4}
            for stages, split in product(
                sorted({min(room // (weight_step + x_step), 6) for room in (_SHARED, _SHARED_OF_PAIR)}), sorted(splits)
            ):
                if stages >= 3:
                    found.append(replace(bare, split_k=split, num_stages=stages))
    return found


def default_gemm_config(shape: Sequence[int], x: MapFormat, rows: int, storages: Sequence[int] = (8,)) -> GemmConfig:
    """What a product of ``rows`` rows of the map x with weights ``shape`` [N, K, 1, 1] gets unmeasured: the candidate
    with the least expected time.

    storages: widths in which its weights may be stored (layer.narrowest_storage), 8 among them.
    """
    stored = (8,) if rows > PACKED_PIXELS else storages
    return min(_gemm_configs(shape, x, rows, stored), key=lambda config: gemm_microseconds(shape, x, rows, config))


def gemm_candidates(
    shape: Sequence[int], x: MapFormat, rows: int, storages: Sequence[int] = (8,), count: int = 12
) -> list[GemmConfig]:
    """What a tuner measures for the same layer, the default first: up to ``count`` of each storage and form (swapped or
    not, split or not), as far as they are expected to be within twice the time of the default."""
    def expected(config: GemmConfig) -> float:
        return gemm_microseconds(shape, x, rows, config)

    found = [default_gemm_config(shape, x, rows, storages)]
    kept: Counter[tuple[int, bool, bool]] = Counter()
    for config in sorted(_gemm_configs(shape, x, rows, storages), key=expected):
        kind = (config.weight_bits, config.swap, config.split_k > 1)
        kept[kind] += 1
        if kept[kind] <= count and expected(config) <= 2 * expected(found[0]):
            found.append(config)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class DepthwiseConfig:
    """depthwise_conv2d.py. A tile is block_m pixels x block_c channels; unroll: all taps unrolled, else kernel rows are a
    pipelined loop of num_stages."""

    block_m: int = 64
    block_c: int = 64
    num_warps: int = 4
    num_stages: int = 2
    unroll: bool = True


UNROLLED_TAPS = 9  # of a depthwise window; larger ones loop over their rows, or their loads in flight would spill


def default_depthwise_config(kernel: Sequence[int], x: MapFormat, pixels: int) -> DepthwiseConfig:
    """What a depthwise convolution with windows ``kernel`` (KH, KW) over ``pixels`` output pixels gets unmeasured."""
    block_c = 16
    while block_c < min(x.padded, 64):
        block_c *= 2
    block_m = 4096 // block_c
    while block_m > 16 and (block_m >= 2 * pixels or -(-pixels // block_m) * -(-x.padded // block_c) < MULTIPROCESSORS):
        block_m //= 2
    return DepthwiseConfig(block_m, block_c, 4 if block_m * block_c >= 2048 else 2, 2, kernel[0] * kernel[1] <= UNROLLED_TAPS)


def depthwise_candidates(kernel: Sequence[int], x: MapFormat, pixels: int) -> list[DepthwiseConfig]:
    """What a tuner measures for the same layer, the default first."""
    found = [default_depthwise_config(kernel, x, pixels)]
    loops = ((1, True), (1, False), (2, False)) if kernel[0] * kernel[1] <= UNROLLED_TAPS else ((1, False), (2, False))
    for block_c, block_m, warps, (stages, unroll) in product((16, 32, 64, 128), (16, 32, 64, 128, 256), (2, 4, 8), loops):
        sums = block_m * block_c // (32 * warps)  # per thread
        if 8 <= sums <= 32 and block_c < 2 * max(x.padded, 16) and block_m < 2 * max(pixels, 16):
            found.append(DepthwiseConfig(block_m, block_c, warps, stages, unroll))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class HeadConfig:
    """head.py. A program takes block_n classes; block_k: channels of one matrix product."""

    block_n: int = 16
    block_k: int = 64


HEAD_CLASSES = 64  # of one block; a head with more pools and multiplies in two launches, since every block pools again


def default_head_config(classes: int, channels: int) -> HeadConfig:
    """Powers of two that hold up to HEAD_CLASSES classes and 128 channels."""
    block_n, block_k = 16, 32
    while block_n < min(classes, HEAD_CLASSES):
        block_n *= 2
    while block_k < min(channels, 128):
        block_k *= 2
    return HeadConfig(block_n, block_k)
