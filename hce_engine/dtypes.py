"""The element types of the engine. The names are written into artifacts and must not change.

Unsigned types hold activations, signed types hold weights (two's complement, full range). ``bits`` is the width in
storage; while a kernel works it may hold a code wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DType:
    name: str
    bits: int
    container: np.dtype  # numpy type that holds one unpacked element
    qmin: int  # smallest code; 0 for float
    qmax: int  # largest code; 0 for float

    @property
    def is_float(self) -> bool:
        return self.container.kind == "f"

    @property
    def is_weight_code(self) -> bool:
        return self.name in ("s3", "s4", "s8")

    @property
    def is_activation_code(self) -> bool:
        return self.name in ("u3", "u4", "u8")


_U8, _S8 = np.dtype(np.uint8), np.dtype(np.int8)

F32 = DType("f32", 32, np.dtype(np.float32), 0, 0)
S32 = DType("s32", 32, np.dtype(np.int32), -(2**31), 2**31 - 1)
U8 = DType("u8", 8, _U8, 0, 255)
U4 = DType("u4", 4, _U8, 0, 15)
U3 = DType("u3", 3, _U8, 0, 7)
S8 = DType("s8", 8, _S8, -128, 127)
S4 = DType("s4", 4, _S8, -8, 7)
S3 = DType("s3", 3, _S8, -4, 3)

DTYPES: dict[str, DType] = {t.name: t for t in (F32, S32, U8, U4, U3, S8, S4, S3)}


def activation_dtype(bits: int) -> DType:
    """The unsigned code type that stores ``bits``-bit activations; 5 to 7 bits are stored as u8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"activation_dtype: expected 2 to 8 bits, got {bits}")
    return U3 if bits <= 3 else U4 if bits == 4 else U8


def weight_dtype(bits: int) -> DType:
    """The signed code type that stores ``bits``-bit weights; 2 bits are stored as s3, 5 to 7 bits as s8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"weight_dtype: expected 2 to 8 bits, got {bits}")
    return S3 if bits <= 3 else S4 if bits == 4 else S8
