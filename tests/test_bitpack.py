"""Packing: exact round trips, the documented byte order, one encoding per matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hce_engine.bitpack import pack, row_bytes, unpack
from hce_engine.dtypes import DTYPES

CODES = ["s3", "s4", "s8", "u3", "u4", "u8"]


def random_codes(seed: int, rows: int, cols: int, dtype: str) -> np.ndarray:
    kind = DTYPES[dtype]
    return np.random.default_rng(seed).integers(kind.qmin, kind.qmax + 1, (rows, cols)).astype(kind.container)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("cols", [*range(34), 63, 144, 577])
def test_round_trip(dtype: str, cols: int) -> None:
    codes = random_codes(cols, 5, cols, dtype)
    packed = pack(codes, dtype)
    assert packed.shape == (5, row_bytes(cols, dtype)) and packed.dtype == np.uint8
    back = unpack(packed, cols, dtype)
    assert back.dtype == codes.dtype and np.array_equal(back, codes)


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 70), st.sampled_from(CODES))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_have_this_one_meaning(seed: int, rows: int, cols: int, dtype: str) -> None:
    packed = np.random.default_rng(seed).integers(0, 256, (rows, row_bytes(cols, dtype))).astype(np.uint8)
    clean = packed.copy()
    bits = DTYPES[dtype].bits
    if bits == 4 and cols % 2:
        clean[:, -1] &= 15
    elif bits == 3 and cols:
        planes = -(-cols // 4)
        clean[:, planes - 1] &= 0xFF >> 2 * (-cols % 4)
        clean[:, -1] &= 0xFF >> -cols % 8
    assert np.array_equal(pack(unpack(clean, cols, dtype), dtype), clean)
    if not np.array_equal(clean, packed):
        with pytest.raises(ValueError, match="padding"):
            unpack(packed, cols, dtype)


@pytest.mark.parametrize("dtype", CODES)
def test_every_code_keeps_its_value(dtype: str) -> None:
    kind = DTYPES[dtype]
    codes = np.arange(kind.qmin, kind.qmax + 1).astype(kind.container)[None]
    assert np.array_equal(unpack(pack(codes, dtype), codes.shape[1], dtype), codes)


def test_documented_order() -> None:
    assert pack(np.array([[-8, 7, 3]], np.int8), "s4").tolist() == [[0x78, 0x03]]
    assert pack(np.array([[-128, -1, 5]], np.int8), "s8").tolist() == [[0x80, 0xFF, 0x05]]
    # codes -4 -1 3 0 1: low two bits 0 3 3 0 | 1, high bits 1 1 0 0 0
    assert pack(np.array([[-4, -1, 3, 0, 1]], np.int8), "s3").tolist() == [[0b00111100, 0b01, 0b00011]]


def test_by_the_formula_of_the_docstring() -> None:
    codes = random_codes(3, 4, 37, "u3")
    p, want = 10, np.zeros((4, 10 + 5), np.uint8)
    for r in range(4):
        for k in range(37):
            want[r, k // 4] |= (codes[r, k] & 3) << 2 * (k % 4)
            want[r, p + k // 8] |= (codes[r, k] >> 2) << k % 8
    assert np.array_equal(pack(codes, "u3"), want)


@pytest.mark.parametrize("cols", [16, 144, 288, 576])
def test_three_bits_are_three_bits(cols: int) -> None:
    assert row_bytes(cols, "s3") * 8 == 3 * cols and row_bytes(cols, "s4") * 8 == 4 * cols


def test_views_pack_like_copies() -> None:
    codes = random_codes(1, 12, 40, "s3")
    assert np.array_equal(pack(codes[::2, 3::3], "s3"), pack(codes[::2, 3::3].copy(), "s3"))
    source = np.array([[1, 2]], np.int8)
    pack(source, "s8")[:] = 0
    assert source.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("dtype", "packed", "cols"),
    [("s4", [0x00, 0x10], 3), ("s3", [0x10, 0x00], 2), ("s3", [0x00, 0x04], 2), ("u3", [0, 0x80], 4)],
)
def test_padding_bits_must_be_zero(dtype: str, packed: list[int], cols: int) -> None:
    with pytest.raises(ValueError, match="padding"):
        unpack(np.array([packed], np.uint8), cols, dtype)


@pytest.mark.parametrize(
    ("codes", "dtype", "match"),
    [
        (np.zeros((1, 4), np.uint8), "s4", "int8"),
        (np.zeros(4, np.int8), "s4", "rows, cols"),
        (np.full((1, 2), 4, np.int8), "s3", r"\[-4, 3\]"),
        (np.full((1, 2), -9, np.int8), "s4", r"\[-8, 7\]"),
        (np.zeros((1, 2), np.float32), "f32", "code type"),
        (np.zeros((1, 2), np.int8), "s5", "code type"),
    ],
)
def test_pack_refuses(codes: np.ndarray, dtype: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pack(codes, dtype)


def test_unpack_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="uint8"):
        unpack(np.zeros((2, 3), np.uint8), 4, "s4")
    with pytest.raises(ValueError, match="uint8"):
        unpack(np.zeros((2, 2), np.int8), 4, "s4")
