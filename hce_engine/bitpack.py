"""Dense storage of 3-, 4- and 8-bit codes: the canonical order of every file, from which kernels make their own layouts.

A matrix of codes ``[rows, cols]`` (weights: one row per output channel, its taps in ``C, KH, KW`` order) becomes bytes
``[rows, row_bytes]``. Rows do not share bytes, so a row can be read alone. A signed code is stored as its low ``bits``
bits of two's complement.

    8 bits: byte j     = code[j]
    4 bits: byte j     = code[2j] | code[2j+1] << 4
    3 bits: a plane of the low two bits, then a plane of the high bit:
            byte j     = sum_{i<4} (code[4j+i] & 3) << 2i      j < ceil(cols/4)
            byte p + j = sum_{i<8} (code[8j+i] >> 2) << i      p = ceil(cols/4), j < ceil(cols/8)

Bits past the last column are zero, and ``unpack`` refuses anything else: one matrix has one encoding. Padding costs a
row at most 7 bits at 4 bits and 13 at 3 bits; whole multiples of 8 columns take exactly ``cols * bits`` bits.
"""

from __future__ import annotations

import numpy as np

from .dtypes import DTYPES, DType

_PAIRS_OF_BITS = np.array([0, 2, 4, 6], np.uint8)


def _code_type(dtype: str) -> DType:
    kind = DTYPES.get(dtype)
    if kind is None or kind.bits > 8:
        codes = ", ".join(t.name for t in DTYPES.values() if t.bits <= 8)
        raise ValueError(f"bitpack: expected a code type of {codes}, got {dtype!r}; name one of these")
    return kind


def row_bytes(cols: int, dtype: str) -> int:
    """Bytes that one row of ``cols`` codes takes."""
    bits = _code_type(dtype).bits
    if bits == 3:
        return -(-cols // 4) + -(-cols // 8)
    return -(-cols * bits // 8)


def pack(codes: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 ``[rows, row_bytes]`` from codes ``[rows, cols]``: int8 for s3, s4, s8, uint8 for u3, u4, u8.

    Raises ValueError for another rank or element type and for a code outside ``dtype``.
    """
    kind = _code_type(dtype)
    if codes.ndim != 2 or codes.dtype != kind.container:
        raise ValueError(
            f"bitpack.pack: expected {kind.container} codes [rows, cols] for {dtype}, got {codes.dtype} {codes.shape}; "
            "reshape to one row per output channel and cast"
        )
    if codes.size and not kind.qmin <= int(codes.min()) <= int(codes.max()) <= kind.qmax:
        raise ValueError(
            f"bitpack.pack: expected {dtype} codes in [{kind.qmin}, {kind.qmax}], got [{codes.min()}, {codes.max()}]; "
            "clamp before packing"
        )
    rows, cols = codes.shape
    raw = np.ascontiguousarray(codes).view(np.uint8)
    if kind.bits == 8:
        return raw.copy()
    raw = np.pad(raw & np.uint8((1 << kind.bits) - 1), ((0, 0), (0, -cols % 8)))
    if kind.bits == 4:
        return (raw[:, 0::2] | raw[:, 1::2] << 4)[:, : row_bytes(cols, dtype)].copy()
    low = np.bitwise_or.reduce((raw & 3).reshape(rows, raw.shape[1] // 4, 4) << _PAIRS_OF_BITS, axis=2)
    high = np.packbits(raw >> 2, axis=1, bitorder="little")
    return np.concatenate([low[:, : -(-cols // 4)], high], axis=1)


def unpack(packed: np.ndarray, cols: int, dtype: str) -> np.ndarray:
    """Codes ``[rows, cols]``, int8 or uint8 as ``dtype`` is signed or not, from uint8 ``[rows, row_bytes]``.

    Raises ValueError when the shape does not belong to ``cols`` or when a padding bit is set.
    """
    kind = _code_type(dtype)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != row_bytes(cols, dtype):
        raise ValueError(
            f"bitpack.unpack: expected uint8 [rows, {row_bytes(cols, dtype)}] for {cols} columns of {dtype}, "
            f"got {packed.dtype} {packed.shape}; pass what pack returned"
        )
    rows = packed.shape[0]
    if kind.bits == 8:
        wide = packed.copy()
    elif kind.bits == 4:
        wide = np.empty((rows, 2 * packed.shape[1]), np.uint8)
        wide[:, 0::2] = packed & 15
        wide[:, 1::2] = packed >> 4
    else:
        planes = -(-cols // 4)
        wide = (packed[:, :planes, None] >> _PAIRS_OF_BITS & 3).reshape(rows, 4 * planes)
        high = np.unpackbits(packed[:, planes:], axis=1, bitorder="little")
        if high[:, cols:].any():
            raise ValueError(f"bitpack.unpack: expected zero padding bits after {cols} columns, got set bits; repack")
        wide[:, :cols] |= high[:, :cols] << 2
    if wide[:, cols:].any():
        raise ValueError(f"bitpack.unpack: expected zero padding bits after {cols} columns, got set bits; repack")
    codes = np.ascontiguousarray(wide[:, :cols])
    if kind.qmin < 0 and kind.bits < 8:
        sign = np.uint8(1 << (kind.bits - 1))
        codes ^= sign  # (u ^ sign) - sign extends the sign bit; the subtraction wraps as two's complement must
        codes -= sign
    return codes.view(kind.container)
