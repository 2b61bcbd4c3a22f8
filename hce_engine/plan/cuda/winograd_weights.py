"""Weights of a 3 x 3 convolution in the order of the Winograd kernels (csrc/cuda/lanes.h, WinogradF32Args).

``U = G w G^T`` is computed in float64 and rounded once, so a weight carries one rounding more than in a direct kernel. The
matrices are those of Lavin and Gray (arXiv 1509.09308), from the points 0, 1, -1, infinity for F(2x2, 3x3) and
0, 1, -1, 2, -2, infinity for F(4x4, 3x3); the latter is shared with the CPU's kernel.
"""

from __future__ import annotations

import numpy as np

from ..split import split_evenly
from ..winograd import WINOGRAD_G
from .lanes_select import even_channels

G = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float64),
    4: WINOGRAD_G,
}
"""By m, the outputs of a tile in each dimension: [m + 2, 3]."""


def pack_winograd(weight: np.ndarray, m: int, channels: int) -> np.ndarray:
    """float32 ``[OC, C, 3, 3]`` -> [block][C][f / 4][o / 4][f % 4][o % 4], the larger blocks of ``channels`` outputs first,
    zeros where a block has fewer than its multiple of 4."""
    outputs, inputs, kernel_h, kernel_w = weight.shape
    if (kernel_h, kernel_w) != (3, 3) or m not in G or even_channels(outputs, channels) != channels:
        raise ValueError("pack_winograd: expected weights [OC, C, 3, 3], m 2 or 4 and channels of an even cut of OC, got "
                         f"{weight.shape}, {m} and {channels}")
    frequencies, stride = (m + 2) ** 2, -(-channels // 4) * 4
    transformed = np.einsum("ia,ocab,jb->cijo", G[m], weight.astype(np.float64), G[m]).reshape(inputs, frequencies, outputs)
    parts, first = [], 0
    for count in sorted(split_evenly(outputs, channels), reverse=True):
        block = np.zeros((inputs, frequencies, stride), np.float32)
        block[:, :, :count] = transformed[:, :, first : first + count]
        parts.append(block.reshape(inputs, frequencies // 4, 4, stride // 4, 4).swapaxes(2, 3).ravel())
        first += count
    return np.concatenate(parts)
