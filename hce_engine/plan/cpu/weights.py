"""Weights in the order the CPU kernels read them (csrc/cpu/lanes.h, csrc/cpu/kernels/unpack.h).

A block is a few output channels computed together; ``blocks`` rows are (first channel, channels, first input line,
input lines, offset of its weights). Grouped layers differ only in the lines their blocks read; depthwise layers have no blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..split import split_evenly
from ..winograd import WINOGRAD_G

CHUNK = 64  # weights per chunk of packed storage


def blocks_u8(weight: np.ndarray, groups: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes ``[OC, C/groups, KH, KW]`` -> (codes in kernel order [n], blocks [n, 5]).

    ``largest`` (a multiple of 4) output channels per block or 4, where so many are left or a larger block would span groups;
    [KH][KW][line][output][4 input]. Places of channels that a block does not use (group borders, channels beyond C or OC)
    hold weight 0, which is exact.
    """
    oc, cg, kh, kw = weight.shape
    per = oc // groups
    if groups > 1 and per % largest:
        largest = 4
    rows, parts, offset, first = [], [], 0, 0
    while first < oc:
        count = largest if oc - first > largest - 4 else 4
        last = min(first + count, oc)
        begin, end = first // per * cg, ((last - 1) // per + 1) * cg
        line, lines = begin // 4, -(-end // 4) - begin // 4
        part = np.zeros((kh, kw, lines * 4, count), np.int8)
        for o in range(first, last):
            to = o // per * cg - 4 * line
            part[:, :, to : to + cg, o - first] = weight[o].transpose(1, 2, 0)
        part = part.reshape(kh, kw, lines, 4, count).swapaxes(3, 4)
        rows.append((first, count, line, lines, offset))
        parts.append(part.ravel())
        offset += part.size
        first += count
    return np.concatenate(parts), np.array(rows, np.int64)


def depthwise_u8(weight: np.ndarray, stride_h: int, dilation_h: int) -> np.ndarray:
    """int8 codes ``[C, 1, KH, KW]`` -> [line][shift][set][KW][4 channels][4 rows], unused places 0 (csrc/cpu/lanes.h,
    DepthwiseU8Args: a set is four kernel rows, shift 1 serves the next output row from the same input rows)."""
    c, _, kh, kw = weight.shape
    sets, lines = -(-kh // 4), -(-c // 4)
    shifts = 2 if stride_h == dilation_h == 1 and kh % 4 else 1
    full = np.zeros((lines * 4, shifts, 4 * sets, kw), np.int8)
    for shift in range(shifts):
        full[:c, shift, shift : shift + kh] = weight[:, 0]
    full = full.reshape(lines, 4, shifts, sets, 4, kw)
    return np.ascontiguousarray(full.transpose(0, 2, 3, 5, 1, 4)).ravel()


@dataclass(frozen=True)
class AmxCut:
    """How the lines and channels of a layer fill AMX tiles (csrc/cpu/lanes.h, ConvU8AmxArgs).

    channels_per_tile: output channels in one tile, a multiple of 4.  rows: input lines in one tile.
    kernel_rows: a run of contiguous lines is a whole kernel row, else one tap.
    """

    channels_per_tile: int
    channel_tiles: int
    rows: int
    tiles_per_run: int
    kernel_rows: bool

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        return (self.channels_per_tile, self.channel_tiles, self.rows, self.tiles_per_run)


def amx_cut(weight_shape: tuple[int, ...], dilation_w: int) -> AmxCut:
    """As few and as even tiles as possible; weight_shape [OC, C, KH, KW]."""
    oc, c, _, kw = weight_shape
    tiles = -(-oc // 16)
    lines = -(-c // 4) * (kw if dilation_w == 1 else 1)
    per_run = -(-lines // 16)
    return AmxCut(-(-oc // (4 * tiles)) * 4, tiles, -(-lines // per_run), per_run, dilation_w == 1)


def tiles_amx(weight: np.ndarray, cut: AmxCut) -> np.ndarray:
    """int8 codes ``[OC, C, KH, KW]`` -> [channel tile][run][tile of the run][channel][line][4], unused places 0."""
    oc, c, kh, kw = weight.shape
    lines = -(-c // 4)
    full = np.zeros((cut.channel_tiles * cut.channels_per_tile, kh, kw, lines * 4), np.int8)
    full[:oc, :, :, :c] = weight.transpose(0, 2, 3, 1)
    runs = kh if cut.kernel_rows else kh * kw
    full = full.reshape(full.shape[0], runs, -1)
    padded = np.zeros((full.shape[0], runs, cut.tiles_per_run * cut.rows * 4), np.int8)
    padded[:, :, : full.shape[2]] = full
    padded = padded.reshape(cut.channel_tiles, cut.channels_per_tile, runs, cut.tiles_per_run, cut.rows * 4)
    return np.ascontiguousarray(padded.transpose(0, 2, 3, 1, 4)).ravel()


def blocks_f32(weight: np.ndarray, groups: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[OC, C/groups, KH, KW]`` -> (weights [block][KH][KW][C][channels], blocks); no block spans two groups."""
    oc, cg, _, _ = weight.shape
    per = oc // groups
    rows, parts, offset = [], [], 0
    for group in range(groups):
        channel = group * per
        for count in split_evenly(per, largest):
            part = weight[channel : channel + count].transpose(2, 3, 1, 0)
            rows.append((channel, count, group * cg, cg, offset))
            parts.append(part.ravel())
            offset += part.size
            channel += count
    return np.ascontiguousarray(np.concatenate(parts), np.float32), np.array(rows, np.int64)


def blocks_dense(weight: np.ndarray, block: int) -> np.ndarray:
    """float32 ``[OC, C]`` -> [block][C][``block`` output channels], unused places 0 (csrc/cpu/lanes.h, DenseF32Args).

    The result starts at a cache line, so that no register of it spans two.
    """
    oc, c = weight.shape
    blocks = -(-oc // block)
    bytes_ = np.zeros(blocks * block * c * 4 + 64, np.uint8)
    result = bytes_[-bytes_.ctypes.data % 64 :][: blocks * block * c * 4].view(np.float32).reshape(blocks, c, block)
    full = np.zeros((blocks * block, c), np.float32)
    full[:oc] = weight
    result[:] = full.reshape(blocks, block, c).swapaxes(1, 2)
    return result.ravel()


def blocks_winograd(weight: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[OC, C, 3, 3]`` -> (G w G^T, [block][36][C][channels], rounded once from float64; blocks)."""
    oc, c, _, _ = weight.shape
    transformed = np.einsum("ia,ocab,jb->ijco", WINOGRAD_G, weight.astype(np.float64), WINOGRAD_G).reshape(36, c, oc)
    rows, parts, channel = [], [], 0
    for count in split_evenly(oc, largest):
        rows.append((channel, count, 0, c, 36 * c * channel))
        parts.append(transformed[:, :, channel : channel + count].ravel())
        channel += count
    return np.concatenate(parts).astype(np.float32), np.array(rows, np.int64)


def pack(codes: np.ndarray, dtype: str) -> np.ndarray:
    """int8 codes [n] in kernel order -> bytes, in chunks of 64 weights, the last one filled with zeros.

    s4: byte i = weight i | weight i + 32 << 4.  s3: 16 bytes of low bit pairs (weights i, i + 16, i + 32, i + 48 in
    byte i), then 8 bytes of sign bits (bit q of byte j: weight 8 q + j).  s8: as they are.
    """
    chunks = -(-codes.size // CHUNK)
    full = np.zeros((chunks, CHUNK), np.int8)
    full.ravel()[: codes.size] = codes
    bits = full.view(np.uint8)
    if dtype == "s8":
        return bits.ravel()
    if dtype == "s4":
        return np.ascontiguousarray((bits[:, :32] & 15) | (bits[:, 32:] << 4)).ravel()
    if dtype == "s3":
        low = (bits & 3).reshape(chunks, 4, 16)
        pairs = low[:, 0] | low[:, 1] << 2 | low[:, 2] << 4 | low[:, 3] << 6
        sign = ((bits >> 2) & 1).reshape(chunks, 8, 8)  # [chunk][q][j]
        signs = (sign << np.arange(8, dtype=np.uint8)[None, :, None]).sum(axis=1, dtype=np.uint8)
        return np.ascontiguousarray(np.concatenate([pairs, signs], axis=1)).ravel()
    raise ValueError(f"pack: expected s3, s4 or s8, got {dtype}")
