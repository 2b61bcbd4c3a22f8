"""Weights in the order of the NHWC convolution (csrc/cuda/nhwc.h, ConvNhwcF32Args)."""

from __future__ import annotations

import numpy as np

from .lanes_plan import TILE
from .nhwc_select import STEP


def pack_nhwc(weight: np.ndarray, groups: int, columns: int) -> np.ndarray:
    """float32 ``[OC, C / groups, KH, KW]`` -> [group][block of columns][step][16][columns], taps by row, column, channel, the
    channels of a tap filled up to a multiple of four; zeros where there is no tap or output."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    taps = weight.shape[2] * weight.shape[3]
    blocks, quads = -(-outputs // columns), -(-inputs // 4)
    steps = -(-taps * quads * 4 // STEP)
    padded = np.zeros((groups, blocks * columns, taps, quads * 4), np.float32)
    padded[:, :outputs, :, :inputs] = weight.reshape(groups, outputs, inputs, taps).transpose(0, 1, 3, 2)
    packed = np.zeros((groups, blocks, steps * STEP, columns), np.float32)
    packed[:, :, : taps * quads * 4] = padded.reshape(groups, blocks, columns, -1).swapaxes(2, 3)
    return packed


def pack_depthwise_nhwc(weight: np.ndarray) -> np.ndarray:
    """float32 ``[C, 1, KH, KW]`` -> ``[KH, KW, lines, 32]``, zeros behind the last channel."""
    channels, _, kernel_h, kernel_w = weight.shape
    packed = np.zeros((kernel_h, kernel_w, -(-channels // TILE) * TILE), np.float32)
    packed[:, :, :channels] = weight[:, 0].transpose(1, 2, 0)
    return packed.reshape(kernel_h, kernel_w, -1, TILE)


def pad_lines(values: np.ndarray) -> np.ndarray:
    """A vector filled up with zeros to whole lines."""
    return np.pad(values, (0, -len(values) % TILE))
