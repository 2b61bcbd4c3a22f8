"""The layouts of maps and weights: round trips, sizes, and the equations of the docstring against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hce_engine.kernels.formats import (
    MapFormat,
    WeightFormat,
    element_order,
    pack_map,
    pack_weights,
    padded_channels,
    step_tiles,
    unpack_map,
    weight_format,
)

BITS = st.sampled_from([8, 4, 3])
PLANES = {8: (1,), 4: (2,), 3: (4, 8)}  # codes per byte of each plane


@given(
    channels=st.integers(1, 70), height=st.integers(1, 5), width=st.integers(1, 5), bits=BITS, batch=st.integers(1, 3),
    halo=st.tuples(*[st.integers(0, 3)] * 4), seed=st.integers(0, 2**31),
)
def test_maps_round_trip(
    channels: int, height: int, width: int, bits: int, batch: int, halo: tuple[int, int, int, int], seed: int
) -> None:
    form = MapFormat(channels, height, width, bits, halo)
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (batch, channels, height, width)).astype(np.uint8)
    planes = pack_map(codes, form, pad_code=1)
    assert tuple(p.dtype for p in planes) == (np.uint8,) * len(planes)
    assert tuple(p[0].size for p in planes) == form.image_bytes
    np.testing.assert_array_equal(unpack_map(planes, form), codes)
    flat = [p.reshape(-1).view(np.int8) for p in planes]
    np.testing.assert_array_equal(unpack_map(flat, form), codes)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_map_bytes_are_those_of_the_equations(bits: int) -> None:
    """Each byte by a loop over its codes; the halo holds the code of its channel."""
    form = MapFormat(19, 3, 2, bits, (1, 2, 0, 1))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (2, 19, 3, 2)).astype(np.uint8)
    pad_code = rng.integers(0, 1 << bits, 19).astype(np.uint8)
    planes = pack_map(codes, form, pad_code)

    def code(n: int, row: int, column: int, c: int) -> int:
        if c >= 19:
            return 0
        i, j = row - 1, column - 2
        return int(codes[n, c, i, j]) if 0 <= i < 3 and 0 <= j < 2 else int(pad_code[c])

    for n in range(2):
        for row in range(form.rows):
            for column in range(form.columns):
                for b in range(form.pixel_bytes[0]):
                    if bits == 8:
                        expected = (code(n, row, column, b) - 128) & 255
                    elif bits == 4:
                        expected = code(n, row, column, 2 * b) | code(n, row, column, 2 * b + 1) << 4
                    else:
                        expected = sum((code(n, row, column, 4 * b + i) & 3) << 2 * i for i in range(4))
                    assert planes[0][n, row, column, b] == expected
                for b in range(form.pixel_bytes[1] if bits == 3 else 0):
                    expected = sum((code(n, row, column, 8 * b + i) >> 2) << i for i in range(8))
                    assert planes[1][n, row, column, b] == expected


@given(channels=st.integers(1, 3000), bits=BITS)
def test_padded_channels(channels: int, bits: int) -> None:
    padded = padded_channels(channels, bits)
    size = padded * {8: 8, 4: 4, 3: 2}[bits] // 8
    assert padded >= channels
    assert size in (4, 8) or size % 16 == 0
    assert padded_channels(padded, bits) == padded
    for fewer in range(channels, padded):  # no smaller admissible size has room
        size = fewer * {8: 8, 4: 4, 3: 2}[bits] // 8
        whole = fewer % PLANES[bits][0] == 0
        assert not (whole and (size in (4, 8) or (size > 0 and size % 16 == 0)))


def test_padded_channels_of_common_widths() -> None:
    assert [padded_channels(c, 8) for c in (1, 3, 4, 5, 8, 9, 16, 17, 64)] == [4, 4, 4, 8, 8, 16, 16, 32, 64]
    assert [padded_channels(c, 4) for c in (1, 8, 9, 16, 17, 32, 33)] == [8, 8, 16, 16, 32, 32, 64]
    assert [padded_channels(c, 3) for c in (1, 16, 17, 32, 33, 64, 65)] == [16, 16, 32, 32, 64, 64, 128]


def test_pack_map_refuses_what_does_not_fit() -> None:
    form = MapFormat(2, 1, 1, 4)
    with pytest.raises(ValueError, match="expected codes below 16, got 16"):
        pack_map(np.full((1, 2, 1, 1), 16, np.uint8), form)
    with pytest.raises(ValueError, match=r"expected codes \(N, 2, 1, 1\)"):
        pack_map(np.zeros((1, 3, 1, 1), np.uint8), form)


FORMS = [
    # x bits, weight bits, channels, window, BLOCK_K, BLOCK_N, dilation of columns
    (8, 8, 3, (3, 3), 32, 16, 1), (8, 4, 20, (3, 2), 32, 16, 1), (8, 3, 33, (1, 1), 32, 32, 1), (4, 8, 9, (3, 3), 32, 16, 2),
    (4, 4, 16, (3, 3), 32, 16, 1), (4, 3, 40, (2, 2), 64, 16, 1), (3, 8, 17, (3, 3), 32, 16, 1), (3, 4, 33, (1, 5), 32, 16, 3),
    (3, 3, 65, (3, 3), 32, 32, 1),
]


@pytest.mark.parametrize(("x_bits", "bits", "channels", "kernel", "block_k", "block_n", "dilation"), FORMS)
def test_element_order_is_the_equation(
    x_bits: int, bits: int, channels: int, kernel: tuple[int, int], block_k: int, block_n: int, dilation: int
) -> None:
    x = MapFormat(channels, 8, 8, x_bits)
    form = weight_format((20, channels, *kernel), x, bits, block_k, block_n, dilation)
    order = element_order(x_bits, form)
    assert order.shape == (form.steps, form.tiles, block_k)
    for k in range(form.steps):
        for t in range(form.tiles):
            for j in range(block_k):
                if x_bits == 8:
                    expected = (k * form.tiles + t) * block_k + j
                elif x_bits == 4:
                    expected = 2 * ((k * (form.tiles // 2) + t // 2) * block_k + j) + t % 2
                else:
                    expected = 4 * ((k * (form.tiles // 4) + t // 4) * block_k + j) + t % 4
                assert order[k, t, j] == expected
    assert sorted(order.ravel()) == list(range(order.size))  # every code once


@pytest.mark.parametrize(("x_bits", "bits", "channels", "kernel", "block_k", "block_n", "dilation"), FORMS)
def test_weights_unpack_to_themselves(
    x_bits: int, bits: int, channels: int, kernel: tuple[int, int], block_k: int, block_n: int, dilation: int
) -> None:
    """A reader that knows only the docstring of formats.py finds each weight, and 0 in every other place."""
    x = MapFormat(channels, 8, 8, x_bits)
    limit, oc = 1 << (bits - 1), 20
    weight = np.random.default_rng(1).integers(-limit, limit, (oc, channels, *kernel)).astype(np.int8)
    form = weight_format(weight.shape, x, bits, block_k, block_n, dilation)
    packed = pack_weights(weight, x, form)
    assert packed.shape == (form.bytes,)
    planes = packed.reshape(form.blocks, form.runs, form.steps, form.planes, block_n, block_k)
    if bits == 8:
        codes = planes.view(np.int8).astype(np.int64)
    elif bits == 4:
        codes = np.stack([planes & 15, planes >> 4], axis=4).reshape(*planes.shape[:3], form.tiles, block_n, block_k)
        codes = (codes.astype(np.int64) ^ 8) - 8
    else:
        a, b, c = (planes[:, :, :, p] for p in range(3))
        last = [a % 4 * 2 + c // 2 % 2, b % 4 * 2 + c % 2]
        codes = np.stack([a // 32, a // 4 % 8, b // 32, b // 4 % 8, c // 32, c // 4 % 8, *last], axis=3)
        codes = (codes.astype(np.int64) ^ 4) - 4
    order = element_order(x_bits, form)
    found = np.zeros_like(weight)
    per_run = kernel[1] if dilation == 1 else 1
    total = 0
    for run in range(form.runs):
        row, first = (run, 0) if dilation == 1 else divmod(run, kernel[1])
        for place in np.ndindex(*order.shape):
            e = int(order[place])
            b, c = divmod(e, x.padded)
            values = codes[:, run, place[0], place[1], :, place[2]].reshape(-1)
            if b < per_run and c < channels:
                found[:, c, row, first + b] = values[:oc]
                total += 1
            else:
                assert not values.any()
            assert not values[oc:].any()
    np.testing.assert_array_equal(found, weight)
    assert total == channels * kernel[0] * kernel[1]


def test_storage_is_as_dense_as_its_name() -> None:
    """3 bits take exactly 3 bits per code, in maps and in weights, where no padding is needed."""
    for bits in (8, 4, 3):
        x = MapFormat(256, 5, 7, bits)
        assert 8 * sum(x.image_bytes) == bits * 256 * 5 * 7
        form = weight_format((64, 256, 3, 3), x, bits, 32, 16)
        assert 8 * form.bytes == bits * 64 * 256 * 3 * 3
        assert form.inner == 256 * 3 * 3


def test_padding_is_what_inner_says() -> None:
    form = weight_format((16, 3, 3, 3), MapFormat(3, 32, 32, 8), 8, 32, 16)
    assert form == WeightFormat(8, 32, 16, 1, 3, 1, 1, 12)
    assert form.inner == 96  # 27 real codes


def test_step_tiles() -> None:
    table = {(x, w): step_tiles(x, w) for x in (8, 4, 3) for w in (8, 4, 3)}
    assert table == {(8, 8): 1, (8, 4): 2, (8, 3): 8, (4, 8): 2, (4, 4): 2, (4, 3): 8, (3, 8): 4, (3, 4): 4, (3, 3): 8}


@pytest.mark.parametrize("bits", [4, 3])
def test_pack_weights_refuses_codes_that_do_not_fit(bits: int) -> None:
    x = MapFormat(4, 4, 4, 8)
    limit = 1 << (bits - 1)
    for code in (limit, -limit - 1):
        weight = np.full((1, 4, 1, 1), code, np.int8)
        with pytest.raises(ValueError, match=rf"expected codes in \[{-limit}, {limit}\)"):
            pack_weights(weight, x, weight_format(weight.shape, x, bits, 32, 16))
