"""How codes and weights lie in GPU memory: the layouts that every Triton kernel of this package reads and writes.

Plain numpy, no torch and no Triton: the plan computes sizes from it, the back end packs weights with it once, tests
check kernels against it.

Maps
----
A map is NHWC with a halo: ``[image][halo top + height + halo bottom][halo left + width + halo right][pixel bytes]``. The
halo holds the code of a padded pixel and is written once, when the memory is set up; kernels write inner pixels only and
read taps without a mask. Channels ``C`` are padded to ``Cp``; what padding channels hold is arbitrary, because the weights
that meet them are 0.

    bits 8    one plane, byte c of a pixel   = code[c] - 128, as int8: tensor cores multiply signed by signed
    bits 4    one plane, byte b              = code[2b] | code[2b+1] << 4
    bits 3    plane 0,   byte a              = sum_{i<4} (code[4a+i] & 3) << 2i
              plane 1,   byte b              = sum_{i<8} (code[8b+i] >> 2) << i

The planes of a 3-bit map are two blocks of memory. ``bits`` is the width in storage: 3-bit codes may lie in a 4-bit map.

Weights
-------
A tile of the integer matrix product is ``BLOCK_M`` pixels x ``BLOCK_N`` output channels, and its inner dimension is walked
in *steps* of ``tiles`` sub-tiles of ``BLOCK_K``. NHWC makes the window of one kernel row contiguous: KW * Cp codes, one
*run* (with a dilation, KW runs of Cp codes per row). Each run starts a new step; its last step is filled up with weight 0.
Sub-tile t, column j of step k is code ``e`` of the run:

    bits of x 8    e = (k * tiles + t) * BLOCK_K + j
    bits of x 4    e = 2 * ((k * tiles/2 + t/2) * BLOCK_K + j) + t % 2
    bits of x 3    e = 4 * ((k * tiles/4 + t/4) * BLOCK_K + j) + t % 4

that is: one byte of packed activations feeds column j of 2 or 4 sub-tiles, by shifts and masks alone, and no element ever
changes its lane. Weights are stored per (block of output channels, run, step) as byte planes ``[BLOCK_N][BLOCK_K]``:

    bits 8    plane t         byte = w[t]                                      tiles planes
    bits 4    plane p         byte = (w[2p] & 15) | (w[2p+1] & 15) << 4        tiles / 2 planes
    bits 3    plane 0         byte = w[0] << 5 | w[1] << 2 | w[6] >> 1         3 planes, tiles = 8; each w as 3 bits
              plane 1         byte = w[2] << 5 | w[3] << 2 | w[7] >> 1
              plane 2         byte = w[4] << 5 | w[5] << 2 | (w[6] & 1) << 1 | (w[7] & 1)

A kernel takes the sign for free by moving a code to the top of its byte: the products are then ``WEIGHT_SCALE[bits]`` times
too large (16 or 32), which the multiplier of the epilogue takes back exactly (a power of two).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BITS = (8, 4, 3)
CODES_PER_BYTE = {8: 1, 4: 2, 3: 4}  # of plane 0 of a map
WEIGHT_SCALE = {8: 1, 4: 16, 3: 32}
CENTRE = 128  # an 8-bit map stores code - CENTRE
# Bytes after the last pixel of a plane that kernels may read: the rest of the last step of the last window.
SLACK = 2048
Halo = tuple[int, int, int, int]  # top, left, bottom, right


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def padded_channels(channels: int, bits: int) -> int:
    """Channels that a pixel has room for: plane 0 takes 4, 8 or a multiple of 16 bytes (2-byte plane 1 included: 3 bits
    take multiples of 16 channels), so that loads are as wide as they can be."""
    per_byte = CODES_PER_BYTE[bits]
    size = _round_up(channels, per_byte) // per_byte
    size = 4 if size <= 4 else 8 if size <= 8 else _round_up(size, 16)
    return size * per_byte


@dataclass(frozen=True)
class MapFormat:
    """The place of one map of codes. channels, height, width: of the tensor; bits: 8, 4 or 3; halo in pixels."""

    channels: int
    height: int
    width: int
    bits: int
    halo: Halo = (0, 0, 0, 0)

    @property
    def padded(self) -> int:
        return padded_channels(self.channels, self.bits)

    @property
    def pixel_bytes(self) -> tuple[int, ...]:
        """Bytes of a pixel, per plane."""
        first = self.padded // CODES_PER_BYTE[self.bits]
        return (first, first // 2) if self.bits == 3 else (first,)

    @property
    def rows(self) -> int:
        return self.halo[0] + self.height + self.halo[2]

    @property
    def columns(self) -> int:
        return self.halo[1] + self.width + self.halo[3]

    @property
    def image_bytes(self) -> tuple[int, ...]:
        """Bytes of an image with its halo, per plane."""
        return tuple(self.rows * self.columns * size for size in self.pixel_bytes)

    def with_halo(self, halo: Halo) -> MapFormat:
        return MapFormat(self.channels, self.height, self.width, self.bits, halo)

    def __str__(self) -> str:
        halo = f" halo {','.join(map(str, self.halo))}" if any(self.halo) else ""
        return f"c{self.bits}[{self.height}x{self.width}x{self.channels}/{self.padded}]{halo}"


def pack_map(codes: np.ndarray, form: MapFormat, pad_code: np.ndarray | int = 0) -> tuple[np.ndarray, ...]:
    """Planes, uint8 ``[N, rows, columns, pixel bytes]``, of codes uint8 ``(N, C, H, W)``.

    pad_code: code of the halo, a scalar or one per channel. Padding channels hold code 0.
    """
    n, c, h, w = codes.shape
    if (c, h, w) != (form.channels, form.height, form.width):
        raise ValueError(f"pack_map: expected codes (N, {form.channels}, {form.height}, {form.width}), got {codes.shape}")
    if codes.size and int(codes.max()) >= 1 << form.bits:
        raise ValueError(f"pack_map: expected codes below {1 << form.bits}, got {codes.max()}; clamp before packing")
    full = np.zeros((n, form.rows, form.columns, form.padded), np.uint8)
    full[..., :c] = np.broadcast_to(np.asarray(pad_code, np.uint8), (c,))
    top, left = form.halo[:2]
    full[:, top : top + h, left : left + w, :c] = codes.transpose(0, 2, 3, 1)
    if form.bits == 8:
        return (full ^ np.uint8(CENTRE),)
    if form.bits == 4:
        return (full[..., 0::2] | full[..., 1::2] << 4,)
    low = full & 3
    pairs = low[..., 0::4] | low[..., 1::4] << 2 | low[..., 2::4] << 4 | low[..., 3::4] << 6
    return pairs, np.packbits(full >> 2, axis=-1, bitorder="little")


def unpack_map(planes: Sequence[np.ndarray], form: MapFormat) -> np.ndarray:
    """Codes uint8 ``(N, C, H, W)`` of the inner pixels; the inverse of :func:`pack_map`. Planes of any integer type of
    one byte, in any shape."""
    images = planes[0].size // max(form.image_bytes[0], 1)
    views = [
        np.ascontiguousarray(p).view(np.uint8).reshape(images, form.rows, form.columns, size)
        for p, size in zip(planes, form.pixel_bytes, strict=True)
    ]
    if form.bits == 8:
        full: np.ndarray = views[0] ^ np.uint8(CENTRE)
    elif form.bits == 4:
        full = np.stack([views[0] & 15, views[0] >> 4], axis=-1).reshape(*views[0].shape[:3], form.padded)
    else:
        pairs = (views[0][..., None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        high = np.unpackbits(views[1], axis=-1, bitorder="little")
        full = pairs.reshape(*views[0].shape[:3], form.padded) | high << 2
    top, left = form.halo[:2]
    inner = full[:, top : top + form.height, left : left + form.width, : form.channels]
    return np.ascontiguousarray(inner.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of one layer are cut and stored.

    bits: of storage.  block_k, block_n: of a sub-tile.  tiles: sub-tiles of one step.  runs: contiguous pieces of a window.
    steps: of one run.  blocks: of output channels.  run_codes: real codes of a run, for the waste.
    """

    bits: int
    block_k: int
    block_n: int
    tiles: int
    runs: int
    steps: int
    blocks: int
    run_codes: int

    @property
    def planes(self) -> int:
        return {8: self.tiles, 4: self.tiles // 2, 3: 3}[self.bits]

    @property
    def step_bytes(self) -> int:
        return self.planes * self.block_n * self.block_k

    @property
    def bytes(self) -> int:
        return self.blocks * self.runs * self.steps * self.step_bytes

    @property
    def inner(self) -> int:
        """Length of the inner dimension that tensor cores walk, padding included."""
        return self.runs * self.steps * self.tiles * self.block_k


def step_tiles(x_bits: int, weight_bits: int) -> int:
    """Sub-tiles of a step: as many as one byte of either operand spreads over; 3-bit weights need 8."""
    return 8 if weight_bits == 3 else max(CODES_PER_BYTE[x_bits], 2 if weight_bits == 4 else 1)


def weight_format(
    shape: Sequence[int], x: MapFormat, bits: int, block_k: int, block_n: int, dilation_w: int = 1
) -> WeightFormat:
    """The format of weights ``[OC, C, KH, KW]`` of a convolution that reads ``x``."""
    oc, _, kh, kw = shape
    tiles = step_tiles(x.bits, bits)
    joined = dilation_w == 1
    run = (kw if joined else 1) * x.padded
    steps = -(-run // (tiles * block_k))
    return WeightFormat(bits, block_k, block_n, tiles, kh if joined else kh * kw, steps, -(-oc // block_n), run)


def element_order(x_bits: int, form: WeightFormat) -> np.ndarray:
    """Which code of a run each place of its steps holds: int64 ``[steps, tiles, BLOCK_K]``, the equation above."""
    k, t, j = np.ogrid[: form.steps, : form.tiles, : form.block_k]
    per_byte = CODES_PER_BYTE[x_bits]
    return per_byte * ((k * (form.tiles // per_byte) + t // per_byte) * form.block_k + j) + t % per_byte


def pack_weights(weight: np.ndarray, x: MapFormat, form: WeightFormat) -> np.ndarray:
    """uint8 ``[form.bytes]`` from int8 codes ``[OC, C, KH, KW]``; raises ValueError for a code that does not fit."""
    oc, c, kh, kw = weight.shape
    limit = 1 << (form.bits - 1)
    if weight.size and not -limit <= int(weight.min()) <= int(weight.max()) < limit:
        raise ValueError(f"pack_weights: expected codes in [{-limit}, {limit}), got [{weight.min()}, {weight.max()}]")
    full = np.zeros((form.blocks * form.block_n, kh, kw, x.padded), np.int8)
    full[:oc, :, :, :c] = weight.transpose(0, 2, 3, 1)
    order = element_order(x.bits, form)
    runs = np.zeros((full.shape[0], form.runs, int(order.max()) + 1), np.int8)
    runs[:, :, : form.run_codes] = full.reshape(full.shape[0], form.runs, form.run_codes)
    cut = runs[:, :, order]  # [channel][run][step][tile][BLOCK_K]
    cut = cut.reshape(form.blocks, form.block_n, *cut.shape[1:]).transpose(0, 2, 3, 4, 1, 5).view(np.uint8)
    if form.bits == 8:
        packed = cut
    elif form.bits == 4:
        packed = (cut[:, :, :, 0::2] & 15) | (cut[:, :, :, 1::2] & 15) << 4
    else:
        w = [cut[:, :, :, t] & 7 for t in range(8)]
        packed = np.stack(
            [w[0] << 5 | w[1] << 2 | w[6] >> 1, w[2] << 5 | w[3] << 2 | w[7] >> 1,
             w[4] << 5 | w[5] << 2 | (w[6] & 1) << 1 | (w[7] & 1)], axis=3,
        )  # fmt: skip
    return np.ascontiguousarray(packed).ravel()
