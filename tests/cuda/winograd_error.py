"""The error bound of the Winograd kernels of csrc/cuda (docs/NUMERICS.md), on planes [images, channels, rows, columns]."""

from __future__ import annotations

import numpy as np

from hce_engine.plan.cuda.winograd_weights import G

BT = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    4: np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
                 [0, 4, 0, -5, 0, 1]], np.float64),
}  # fmt: skip
AT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64),
}
# Roundings on the longest path of one product to its output, but for the C of the sum: the input transform twice, the output
# transform twice, the weight, bias and residual.
ROUNDINGS = {2: 2 * 1 + 2 * 2 + 3, 4: 2 * 2 + 2 * 3 + 3}


def winograd_bound(m: int, x: np.ndarray, weight: np.ndarray, others: np.ndarray) -> np.ndarray:
    """gamma_n times the operations on magnitudes, |A^T| [sum_c |G||w||G^T| (|B^T||d||B|)] |A| + others.

    x: magnitudes [N, C, H + 2, W + 2], the padding included.  weight: [OC, C, 3, 3].  others: |bias| + |residual|, of
    a shape that broadcasts to the result, [N, OC, H, W].
    """
    at, bt, g = np.abs(AT[m]), np.abs(BT[m]), np.abs(G[m])
    n, c, h, w = x.shape
    h, w = h - 2, w - 2
    u = np.einsum("ia,ocab,jb->ijoc", g, np.abs(weight.astype(np.float64)), g)
    magnitude = np.empty((n, len(weight), h, w))
    # The last tile ends with the map; from right to left and upwards, so that a pixel of two tiles is the first one's.
    for i in sorted({min(i, h - m) for i in range(0, h, m)}, reverse=True):
        for j in sorted({min(j, w - m) for j in range(0, w, m)}, reverse=True):
            v = np.einsum("pi,ncij,qj->pqnc", bt, x[:, :, i : i + m + 2, j : j + m + 2], bt, optimize=True)
            products = np.einsum("pqnc,pqoc->nopq", v, u, optimize=True)
            magnitude[:, :, i : i + m, j : j + m] = np.einsum("ip,nopq,jq->noij", at, products, at, optimize=True)
    roundings = (ROUNDINGS[m] + c) * 2.0**-24
    return roundings / (1 - roundings) * (magnitude + others)
