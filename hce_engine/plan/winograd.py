"""The matrix that transforms 3x3 weights for Winograd F(4x4, 3x3), the same on every device (Lavin and Gray, arXiv 1509.09308)."""

from __future__ import annotations

import numpy as np

WINOGRAD_G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], np.float64,
)  # fmt: skip
