"""Exact Winograd F(4, 3) along the rows of integer codes: what a layer's kernel needs, and the proof that it fits.

    y = A^T [sum over kernel rows and channels of (G w) * (B^T d)]    4 outputs from 6 inputs of a row, * element by element

``G``, ``B^T`` and ``A^T`` here are integers, chosen so that ``y`` is 24, 12, 6 and 6 times the accumulators of the four
outputs. ``B^T d`` is shifted to unsigned bytes; what the shift adds is constant per output channel. docs/NUMERICS.md derives
it; csrc/cpu/kernels/winograd_u8.h computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ... import numerics
from .weights import CHUNK

FREQUENCIES = 6
B_T = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1]], np.int64)  # fmt: skip
G = np.array([[3, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 3]], np.int64)
A_T = np.array([[2, -4, -4, 1, 1, 0], [0, -2, 2, 1, -1, 0], [0, -1, -1, 1, 1, 0], [0, -1, 1, 2, -2, 2]], np.int64)
SCALES = np.array([24, 12, 6, 6], np.int64)  # of the four outputs
OFFSETS = -np.minimum(B_T, 0).sum(axis=1)  # times qmax: the least value of each frequency, taken away
SPANS = np.abs(B_T).sum(axis=1)  # times qmax: the largest value after that
EXACT_FLOAT = 2**24  # integers up to it are binary32 values


@dataclass(frozen=True)
class WinogradCodes:
    """constants: int32 ``[OC/4, 4 outputs, 4 channels]``, what the scaled outputs lack.  pair_sums: per frequency, how many
    sums of two products fit int16.  entries: (kernel row, unit) places per frequency, filled up to a multiple of 4."""

    constants: np.ndarray
    pair_sums: tuple[int, ...]
    entries: int


def _bytes_needed(weight: np.ndarray, qmax: int) -> str | None:
    """Why transformed inputs or weights leave 8 bits, or None."""
    if int(SPANS.max()) * qmax > 255:
        return f"transformed inputs up to {int(SPANS.max()) * qmax} leave 8 bits"
    largest = int(np.abs(np.einsum("fk,ocrk->focr", G, weight.astype(np.int64))).max(initial=0))
    return f"transformed weights up to {largest} leave 8 bits" if largest > 127 else None


def fit(weight: np.ndarray, bias: np.ndarray, qmax: int) -> WinogradCodes | str:
    """The constants of a layer with int8 ``weight [OC, C, 3, 3]``, int32 ``bias [OC]`` and input codes 0..qmax; or the reason why the
    method is not exact for it. Every intermediate sum is shown to stay inside its type, by the weights themselves."""
    reason = _bytes_needed(weight, qmax)
    if reason is not None:
        return reason
    largest = int(numerics.accumulator_bound(weight, bias, qmax).max(initial=0))
    if largest * int(SCALES.max()) > EXACT_FLOAT:
        return f"24 times an accumulator of up to {largest} is no exact float32"
    oc, c = weight.shape[:2]
    transformed = np.einsum("fk,ocrk->focr", G, weight.astype(np.int64)).reshape(FREQUENCIES, oc, -1)
    products = (SPANS * qmax)[:, None] * np.abs(transformed).sum(axis=2)  # bound of each frequency's sum, [6, OC]
    constants = SCALES[:, None] * bias.astype(np.int64) - A_T @ ((OFFSETS * qmax)[:, None] * transformed.sum(axis=2))
    if int((np.abs(A_T) @ products + np.abs(constants)).max(initial=0)) > numerics.INT32_LIMIT:
        return "sums of the output transform leave int32"
    pairs = 2 * SPANS * qmax * np.abs(transformed).max(axis=(1, 2), initial=1)
    padded = np.zeros((4, -(-oc // 4) * 4), np.int64)
    padded[:, :oc] = constants
    return WinogradCodes(
        np.ascontiguousarray(padded.reshape(4, -1, 4).transpose(1, 0, 2), np.int32),
        tuple(int(v) for v in (2**15 - 1) // pairs), -(-3 * -(-c // 4) // 4) * 4,
    )


def blocks(weight: np.ndarray) -> np.ndarray:
    """int8 codes ``[OC, C, 3, 3]`` -> codes [block of 4 output channels][entries / 4][kernel column][4 entries][4 output][4 input],
    an entry being one unit of one kernel row; unused places 0."""
    oc, c = weight.shape[:2]
    units, count = -(-c // 4), -(-oc // 4)
    entries = -(-3 * units // 4) * 4
    full = np.zeros((count * 4, units * 4, 3, 3), np.int8)
    full[:oc, :c] = weight
    # block, output, unit, input, row, column -> block, column, row, unit, output, input
    ordered = full.reshape(count, 4, units, 4, 3, 3).transpose(0, 5, 4, 2, 1, 3).reshape(count, 3, 3 * units, 16)
    filled = np.zeros((count, 3, entries, 16), np.int8)
    filled[:, :, : 3 * units] = ordered
    return np.ascontiguousarray(filled.reshape(count, 3, entries // 4, CHUNK).transpose(0, 2, 1, 3)).ravel()


def products(oc: int, c: int, out_h: int, out_w: int) -> int:
    """Multiply-accumulates per image, the last tile of a row computed whole."""
    return 3 * FREQUENCIES * oc * c * out_h * -(-out_w // 4)
