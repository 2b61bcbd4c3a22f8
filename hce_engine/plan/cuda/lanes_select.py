"""Which configuration a float convolution on image lanes gets, and what it costs. The only place that decides it.

The rule knows shapes alone, never timing. It minimises an estimate of the cycles that a multiprocessor needs, from three
facts of the kernel (csrc/cuda/kernels/conv2d_f32.h): one line (tap, input channel) of a warp with a register tile of
P pixels x O channels x 4 images takes

    issue   4 P O multiply-adds, P loads of inputs and O / 4 of weights, 2 of the loop; four per cycle
    L1      P loads of 512 bytes at 128 bytes per cycle, and O / 4 broadcasts

and both proceed at once, so the larger counts. An output count is cut evenly, so it wastes nothing; an odd row does, with
P = 2: its last pixel is computed twice. Where a launch has fewer warps than the GPU can hold, time stops falling with the
work per warp: small batches therefore get smaller tiles.

What a warp does besides, once per tile and per tap, hardly depends on the tile; it counts where this kernel is compared with
the Winograd ones (winograd_select.py).
"""

from __future__ import annotations

from .lanes_plan import TILE, ConvConfig

CONV_WARPS = 4  # most warps of a thread block, as kConvWarps
CONV_CHANNELS = {1: 16, 2: 12}  # most channels for each number of pixels, as kConvChannels
RUNS = 4  # runs of pixels that a warp computes at a time, as kConvRuns
MULTIPROCESSORS = 132  # of an H200
# Warps that keep it busy: 8 on each (two per scheduler, which hide the latency of the other).
FILLING_WARPS = MULTIPROCESSORS * 8
# Resident weights of a thread block: with 3 or 4 blocks on a multiprocessor more than half of its 228 kB are left to L1,
# where the inputs are shared between warps.
RESIDENT_BYTES = 24 * 1024
CHUNK_BYTES = 12 * 1024  # of each of two buffers, where the weights do not fit
# Instructions of a warp outside its loop over lines, in the machine code for sm_90a of tiles 2 x 5, 2 x 8 and 1 x 16: where its
# pixels lie, bounds, bias; residual, clamp and store of each of P x O quads of images; and addresses of each tap.
JOB_INSTRUCTIONS, QUAD_INSTRUCTIONS, TAP_INSTRUCTIONS = 340, 38, 30


def _up(a: int, b: int) -> int:
    return -(-a // b)


def even_channels(outputs: int, limit: int) -> int:
    """The larger of the sizes when ``outputs`` are cut evenly into as few blocks as ``limit`` allows."""
    return _up(outputs, _up(outputs, limit))


def _stride(channels: int) -> int:
    return _up(channels, 4) * 4


def _cycles(pixels: int, channels: int, outputs: int, groups: int, rows: int, width: int) -> float:
    """Estimated cycles per line, of all multiprocessors together; rows: of all tiles."""
    weights = _stride(channels) // 4
    issue = (4 * pixels * channels + pixels + weights + 2) / 4
    l1 = 4 * pixels + weights
    blocks = groups * _up(outputs, channels)
    warps = _up(rows * _up(width, pixels), RUNS) * blocks
    return max(issue, l1) * max(warps, FILLING_WARPS)


def conv_config(outputs: int, groups: int, lines: int, rows: int, width: int) -> ConvConfig:
    """For ``rows`` output rows (of all tiles) of ``width`` pixels. outputs: of a group; lines: taps times its inputs.

    Of tiles that tie, the one with more pixels, then more channels: both reuse more of what they load.
    """
    tiles = {(p, even_channels(outputs, limit)) for p, most in CONV_CHANNELS.items() for limit in range(1, most + 1)}
    pixels, channels = min(sorted(tiles, reverse=True), key=lambda t: _cycles(t[0], t[1], outputs, groups, rows, width))
    blocks = groups * _up(outputs, channels)
    # Warps side by side along the outputs read the same inputs, which L1 then gives once; as many as leave none idle.
    channel_warps = next(n for n in (4, 3, 2, 1) if blocks % n == 0)
    line = channel_warps * _stride(channels) * 4
    chunk = lines if lines * line <= RESIDENT_BYTES else _up(lines, _up(lines, max(CHUNK_BYTES // line, 1)))
    return ConvConfig(pixels, channels, channel_warps, CONV_WARPS // channel_warps, chunk)


def conv_cycles(outputs: int, groups: int, lines: int, taps: int, rows: int, width: int, config: ConvConfig) -> float:
    """Estimated cycles of a launch, summed over the multiprocessors of an H200; memory left out. Arguments as of conv_config."""
    p, o = config.pixels, config.channels
    warps = _up(rows * _up(width, p), RUNS) * groups * _up(outputs, o)
    once = (JOB_INSTRUCTIONS + QUAD_INSTRUCTIONS * p * o + TAP_INSTRUCTIONS * taps) / 4
    return lines * _cycles(p, o, outputs, groups, rows, width) + once * max(warps, FILLING_WARPS)


def packed_bytes(outputs: int, groups: int, lines: int, config: ConvConfig) -> int:
    """Of the weights in the layout of the kernel."""
    return 4 * groups * _up(outputs, config.channels) * lines * _stride(config.channels)


def walked_macs(outputs: int, groups: int, lines: int, rows: int, width: int, config: ConvConfig) -> int:
    """Multiply-accumulates with the padding: pixels computed twice, and runs that repeat the last one of a launch."""
    jobs = _up(rows * _up(width, config.pixels), RUNS) * RUNS
    return jobs * config.pixels * groups * outputs * lines * TILE
