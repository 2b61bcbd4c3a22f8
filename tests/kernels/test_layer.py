"""The constants of a layer: scaled sums change no bit, what could overflow is refused, the magic bias is set where proven."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hce_engine.kernels.formats import WEIGHT_SCALE, MapFormat
from hce_engine.kernels.layer import (
    INT32_LIMIT,
    MAGIC_BITS,
    MAGIC_LIMIT,
    SMALLEST_NORMAL,
    largest_sum,
    layer_arrays,
    narrowest_storage,
)

X8, X4 = MapFormat(4, 8, 8, 8, (1, 1, 1, 1)), MapFormat(4, 8, 8, 4, (1, 1, 1, 1))
ONES = np.ones(2, np.float32)
NO_BIAS = np.zeros(2, np.int32)


def bits_of(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.int32)


@pytest.mark.parametrize("bits", [4, 3])
def test_scaled_sums_give_the_same_floats(bits: int) -> None:
    """f32(S acc) * (m / S) == f32(acc) * m: random values, ties of the conversion, ends of the ranges."""
    scale, rng = WEIGHT_SCALE[bits], np.random.default_rng(0)
    limit = INT32_LIMIT // scale
    ties = np.array([(2**24 + 1) * s for s in (1, -1)] + [2**24 + 3, 2**25 + 2, 2**25 + 6, 2**25 - 1])
    acc = np.concatenate([rng.integers(-limit, limit + 1, 200_000), rng.integers(-5000, 5000, 100_000),
                          ties, np.array([0, 1, -1, limit, -limit])])
    multiplier = np.exp2(rng.uniform(-120, 20, acc.size)).astype(np.float32) * rng.choice([-1, 1], acc.size).astype(np.float32)
    multiplier[:6] = [SMALLEST_NORMAL * scale, 1.0, np.float32(1) - np.float32(2**-24), 0.0, 3e8, -SMALLEST_NORMAL * scale]
    acc, multiplier = acc.astype(np.int32), multiplier.astype(np.float32)
    scaled = (acc * np.int32(scale)).astype(np.float32) * (multiplier / np.float32(scale))
    np.testing.assert_array_equal(bits_of(scaled), bits_of(acc.astype(np.float32) * multiplier))


@given(
    channels=st.integers(1, 20), oc=st.integers(1, 20), bits=st.sampled_from([8, 4, 3]), x_bits=st.sampled_from([8, 4, 3]),
    bias=st.sampled_from([0, 100, 1_000_000]), seed=st.integers(0, 2**31),
)
def test_constants_stand_for_the_layer(channels: int, oc: int, bits: int, x_bits: int, bias: int, seed: int) -> None:
    """What a kernel computes from them, in plain integers, is f32(acc) * m."""
    rng = np.random.default_rng(seed)
    x, limit = MapFormat(channels, 8, 8, x_bits), 1 << (bits - 1)
    weight = rng.integers(-limit, limit, (oc, channels, 1, 1)).astype(np.int8)
    biases = rng.integers(-bias, bias + 1, oc).astype(np.int32)
    multiplier = rng.random(oc).astype(np.float32)
    offset = rng.standard_normal(oc).astype(np.float32)
    arrays = layer_arrays(weight, biases, multiplier, offset, x, (1 << x_bits) - 1, bits, 32, 16)
    codes = rng.integers(0, 1 << x_bits, channels)
    exact = (weight[:, :, 0, 0].astype(np.int64) @ codes + biases).astype(np.int32)
    centred = codes - 128 if x_bits == 8 else codes
    sums = WEIGHT_SCALE[bits] * (weight[:, :, 0, 0].astype(np.int64) @ centred) + arrays.bias[:oc]
    if arrays.magic:
        floats = sums.astype(np.int32).view(np.float32) - np.float32(12582912)
    else:
        floats = sums.astype(np.float32)
    values = floats * arrays.multiplier[:oc]
    expected = exact.astype(np.float32) * multiplier
    np.testing.assert_array_equal(values, expected)
    assert np.abs(expected).max() <= arrays.largest_value
    np.testing.assert_array_equal(arrays.offset[:oc], offset)
    assert not arrays.multiplier[oc:].any() and not arrays.offset[oc:].any()
    assert (arrays.bias[oc:] == (MAGIC_BITS if arrays.magic else 0)).all()
    assert arrays.bias.shape == (arrays.form.blocks * 16,)
    assert arrays.macs_per_pixel == weight.size


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_magic_is_set_up_to_its_limit(bits: int) -> None:
    scale = WEIGHT_SCALE[bits]
    weight = np.ones((2, 4, 1, 1), np.int8)
    least = 15 * 4  # of the products
    below = (MAGIC_LIMIT - 1) // scale - least
    for bias, magic in ((below, True), (below + 1, False), (-below, True), (-below - 1, False)):
        biases = np.array([0, bias], np.int32)
        arrays = layer_arrays(weight, biases, ONES, None, X4, 15, bits, 32, 16)
        assert arrays.magic is magic
        np.testing.assert_array_equal(arrays.bias[:2], biases * scale + (MAGIC_BITS if magic else 0))


@pytest.mark.parametrize("bits", [4, 3])
def test_sums_that_could_overflow_are_refused(bits: int) -> None:
    scale = WEIGHT_SCALE[bits]
    weight = np.full((2, 4, 1, 1), -(1 << (bits - 1)), np.int8)
    largest = INT32_LIMIT // scale - 15 * 4 * (1 << (bits - 1))
    for bias, fits in ((largest, True), (largest + 1, False), (-largest, True), (-largest - 1, False)):
        biases = np.array([bias, 0], np.int32)
        assert narrowest_storage(weight, biases, ONES, X4, 15, bits) == (bits if fits else 8)
        if fits:
            layer_arrays(weight, biases, ONES, None, X4, 15, bits, 32, 16)
        else:
            with pytest.raises(ValueError, match="store 8 bits"):
                layer_arrays(weight, biases, ONES, None, X4, 15, bits, 32, 16)


@pytest.mark.parametrize("bits", [4, 3])
def test_multipliers_that_would_lose_bits_are_refused(bits: int) -> None:
    weight = np.ones((2, 4, 1, 1), np.int8)
    smallest = np.float32(SMALLEST_NORMAL * WEIGHT_SCALE[bits])
    for value, fits in ((smallest, True), (np.nextafter(smallest, np.float32(0)), False), (np.float32(0), True)):
        multiplier = np.array([1, value], np.float32)
        assert narrowest_storage(weight, NO_BIAS, multiplier, X4, 15, bits) == (bits if fits else 8)


@pytest.mark.parametrize("x", [X8, X4], ids=["8", "4"])
def test_largest_sum_is_reached_or_bounds(x: MapFormat) -> None:
    """Against every extreme input of a small layer, partial sums included."""
    rng = np.random.default_rng(3)
    weight = rng.integers(-128, 128, (2, 4, 1, 1)).astype(np.int8)
    bias = np.array([-700, 900], np.int32)
    qmax, centre = (255, 128) if x.bits == 8 else (15, 0)
    bound = largest_sum(weight, bias, x, qmax)
    worst = 0
    for pattern in range(16):
        codes = np.array([qmax if pattern >> c & 1 else 0 for c in range(4)])
        for o in range(2):
            w = weight[o, :, 0, 0].astype(int)
            partial = np.cumsum(np.concatenate([[bias[o] + centre * w.sum()], w * (codes - centre)]))
            worst = max(worst, int(np.abs(partial).max()))
    assert worst <= bound <= 2 * worst + 1


def test_a_layer_without_products() -> None:
    weight = np.zeros((2, 4, 1, 1), np.int8)
    arrays = layer_arrays(weight, NO_BIAS, np.zeros(2, np.float32), None, X8, 255, 3, 32, 16)
    assert arrays.magic and arrays.largest_value == 0 and not arrays.weight.any()
