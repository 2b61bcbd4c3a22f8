"""The exact arithmetic of the quantized member: the reference that every back end equals bit for bit.

docs/NUMERICS.md derives it. In short: accumulate in int32 (proven not to overflow), then binary32 operations that are
each rounded on their own (no fused multiply-add), round half to even, clamp. Plain numpy, no cleverness: integer sums
are taken by a floating-point matrix product whose every partial sum is an integer below the format's 2^24 or 2^53, so
they are exact in any order.

Arrays carry a batch axis here: maps are ``(N, C, H, W)`` uint8 codes, vectors ``(N, F)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECODE_SHIFT = 16
RECODE_HALF = 1 << (RECODE_SHIFT - 1)
RECODE_K_LIMIT = 1 << 23  # 255 * k + 2^15 < 2^31
INT32_LIMIT = 2**31 - 1


def accumulator_bound(weight: np.ndarray, bias: np.ndarray, input_qmax: int) -> np.ndarray:
    """Per output channel, the largest ``|acc|`` that codes 0..input_qmax (padding included) can produce: int64 [OC].

    Every partial sum, in any order, is bounded by the same value.
    """
    flat = weight.reshape(weight.shape[0], -1)
    # Positive and negative parts apart: no wide copy of the weights, so that loading a file stays within its bounds.
    total = flat.sum(axis=1, where=flat > 0, dtype=np.int64) - flat.sum(axis=1, where=flat < 0, dtype=np.int64)
    return total * input_qmax + np.abs(bias.astype(np.int64))


def _exact_float(bound: int) -> type:
    return np.float32 if bound < 2**24 else np.float64


def patches(
    x: np.ndarray, kernel: tuple[int, int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    pad_value: np.ndarray | float,
) -> np.ndarray:
    """View of all windows, ``(N, C, OH, OW, KH, KW)``; padded pixels hold ``pad_value`` (scalar or one per channel)."""
    n, c, h, w = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    if ph or pw:
        padded = np.empty((n, c, h + 2 * ph, w + 2 * pw), x.dtype)
        padded[:] = np.asarray(pad_value, x.dtype).reshape(1, -1, 1, 1)
        padded[:, :, ph : ph + h, pw : pw + w] = x
        x = padded
    view = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def conv2d_accumulate(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, pad_code: np.ndarray,
) -> np.ndarray:
    """acc[n,o,i,j] = bias[o] + sum_{c,a,b} w[o,c,a,b] * x[n, c, i*sh + a*dh - ph, j*sw + b*dw - pw], exact int32.

    x: uint8 codes ``(N, C, H, W)``; weight: int8 codes ``(OC, C/groups, KH, KW)``; bias: int32 ``(OC,)``;
    pad_code: uint8 ``(C,)``, the code of a padded pixel. Returns int32 ``(N, OC, OH, OW)``.
    """
    oc, cg, kh, kw = weight.shape
    kind = _exact_float(int(np.abs(weight.astype(np.int64)).reshape(oc, -1).sum(axis=1).max(initial=0)) * 255)
    windows = patches(x, (kh, kw), stride, padding, dilation, pad_code)
    n, _, oh, ow = windows.shape[:4]
    acc = np.empty((n, oc, oh, ow), np.int32)
    per = oc // groups
    for g in range(groups):
        cols: np.ndarray = np.ascontiguousarray(windows[:, g * cg : (g + 1) * cg].transpose(0, 2, 3, 1, 4, 5), dtype=kind)
        cols = cols.reshape(n * oh * ow, cg * kh * kw)
        rows: np.ndarray = weight[g * per : (g + 1) * per].reshape(per, -1).astype(kind)
        acc[:, g * per : (g + 1) * per] = (cols @ rows.T).astype(np.int64).reshape(n, oh, ow, per).transpose(0, 3, 1, 2)
    return acc + bias.reshape(1, -1, 1, 1)


def requantize(
    acc: np.ndarray, multiplier: np.ndarray | float, *, zero_point: int, qmin: int, qmax: int,
    residual: np.ndarray | None = None, residual_zero_point: int = 0, residual_multiplier: float = 0.0,
) -> np.ndarray:
    """code = zero_point + rne(clamp(f32(acc) * m[c] (+ f32(r - z_r) * g), qmin - zero_point, qmax - zero_point)).

    acc int32 ``(N, C, ...)``, multiplier float32 ``(C,)`` or scalar, residual uint8 of acc's shape. Each conversion,
    product and sum is rounded to binary32 separately. Returns uint8.
    """
    m = np.asarray(multiplier, np.float32)
    if m.ndim == 1:
        m = m.reshape(1, -1, *([1] * (acc.ndim - 2)))
    y = acc.astype(np.float32) * m
    if residual is not None:
        y = y + (residual.astype(np.int32) - np.int32(residual_zero_point)).astype(np.float32) * np.float32(
            residual_multiplier
        )
    y = np.rint(np.clip(y, np.float32(qmin - zero_point), np.float32(qmax - zero_point)))
    return (y.astype(np.int32) + zero_point).astype(np.uint8)


def add(
    a: np.ndarray, b: np.ndarray, *, zero_points: tuple[int, int], multipliers: tuple[float, float], zero_point: int,
    qmin: int, qmax: int,
) -> np.ndarray:
    """code = zero_point + rne(clamp(f32(a - z_a) * g_a + f32(b - z_b) * g_b)); the sum of two streams of codes."""
    ints = a.astype(np.int32) - np.int32(zero_points[0])
    return requantize(
        ints, multipliers[0], zero_point=zero_point, qmin=qmin, qmax=qmax, residual=b,
        residual_zero_point=zero_points[1], residual_multiplier=multipliers[1],
    )


def recode_factor(scale_in: float, scale_out: float) -> int:
    """k = round(2^16 * scale_in / scale_out), the integer factor of :func:`recode`."""
    return int(np.rint(65536.0 * float(scale_in) / float(scale_out)))


def recode(
    codes: np.ndarray, k: int, *, zero_point_in: int, zero_point: int, qmin: int, qmax: int
) -> np.ndarray:
    """code = clamp(zero_point + (((r - z_in) * k + 2^15) >> 16), qmin, qmax): integers only, arithmetic shift."""
    wide = (codes.astype(np.int32) - np.int32(zero_point_in)) * np.int32(k) + np.int32(RECODE_HALF)
    return np.clip((wide >> RECODE_SHIFT) + zero_point, qmin, qmax).astype(np.uint8)


def logits(acc: np.ndarray, multiplier: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """f32(acc) * m[o] + offset[o], two roundings; acc int32 ``(N, O)``."""
    return acc.astype(np.float32) * multiplier.astype(np.float32) + offset.astype(np.float32)


def pool_sum(windows: np.ndarray, zero_point: int) -> np.ndarray:
    """Sum over the last two axes of (code - zero_point), int32."""
    count = windows.shape[-1] * windows.shape[-2]
    return (windows.sum(axis=(-2, -1), dtype=np.int64) - count * zero_point).astype(np.int32)


def quantize_input(x: np.ndarray, low: float, multiplier: float) -> np.ndarray:
    """rne(clamp((x - low) * multiplier, 0, 255)) as uint8, three binary32 roundings; a NaN becomes code 0.

    The engine marks images that hold NaN or Inf (see docs/NUMERICS.md) and returns NaN logits for them, so the code
    chosen here never decides a prediction.
    """
    y = (x.astype(np.float32) - np.float32(low)) * np.float32(multiplier)
    y = np.where(np.isnan(y), np.float32(0), np.clip(y, np.float32(0), np.float32(255)))
    return np.rint(y).astype(np.uint8)
