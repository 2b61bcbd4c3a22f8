"""Depthwise convolutions equal the exact reference bit for bit, whatever the widths, window and cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hce_engine import numerics
from hce_engine.kernels import depthwise_conv2d
from hce_engine.kernels.configurations import DepthwiseConfig, default_depthwise_config, depthwise_candidates
from hce_engine.kernels.depthwise_layer import depthwise_arrays
from hce_engine.kernels.description import Codes, Geometry
from hce_engine.kernels.device import DeviceMap, empty_map, map_of_codes
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.launch import Recoded, Residual

SMALL = DepthwiseConfig(32, 32, 4, 2, True)
LOOP = DepthwiseConfig(32, 32, 4, 2, False)
POISON = 85


def halo_bytes(map_: DeviceMap) -> list[np.ndarray]:
    """The bytes of each plane with the inner pixels blanked: halos and slack."""
    form, kept = map_.form, []
    for plane, size, pixel in zip(map_.planes, form.image_bytes, form.pixel_bytes, strict=True):
        values = plane.cpu().numpy().copy()
        images = values[: map_.batch * size].reshape(map_.batch, form.rows, form.columns, pixel)
        top, left = form.halo[:2]
        images[:, top : top + form.height, left : left + form.width] = 0
        kept.append(values)
    return kept


def check(
    device: str, *, channels: int = 17, size: tuple[int, int] = (5, 4), x_bits: int = 8, y_bits: int | None = 8,
    z_bits: int | None = None, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), residual: bool = False, batch: int = 2,
    config: DepthwiseConfig = SMALL, extreme: bool = False, bias_size: int = 1000, seed: int = 0,
) -> None:
    rng = np.random.default_rng(seed)
    qmax = (1 << x_bits) - 1
    if extreme:
        x = rng.choice(np.array([0, qmax], np.uint8), (batch, channels, *size))
        weight = rng.choice(np.array([-128, 127], np.int8), (channels, 1, *kernel))
        x[:, 0], weight[0] = qmax, -128
    else:
        x = rng.integers(0, qmax + 1, (batch, channels, *size)).astype(np.uint8)
        weight = rng.integers(-128, 128, (channels, 1, *kernel)).astype(np.int8)
    bias = rng.integers(-bias_size, bias_size + 1, channels).astype(np.int32)
    multiplier = (rng.random(channels) * 4 / (128 * np.sqrt(kernel[0] * kernel[1]))).astype(np.float32)
    pad_code = rng.integers(0, qmax + 1, channels).astype(np.uint8)
    out = tuple(
        (size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    )
    geometry = Geometry(kernel, stride, padding, dilation, (out[0], out[1]))
    form = MapFormat(channels, *size, x_bits, geometry.halo(*size))
    layer = depthwise_conv2d.depthwise_layer_on(depthwise_arrays(weight, bias, multiplier, form, qmax), device)
    codes = Codes(128, 3, 255) if residual else Codes(0, 0, (1 << (y_bits or 8)) - 1)
    extra, added = {}, None
    if residual:
        r = rng.integers(0, 256, (batch, channels, *out)).astype(np.uint8)
        added = Residual(map_of_codes(r, MapFormat(channels, *out, 8, (0, 1, 1, 0)), device), 7, 0.13)
        extra = {"residual": r, "residual_zero_point": 7, "residual_multiplier": 0.13}
    y = empty_map(MapFormat(channels, *out, y_bits, (1, 0, 2, 1)), batch, device, 1, POISON) if y_bits else None
    recoded = None
    if z_bits:
        z = empty_map(MapFormat(channels, *out, z_bits, (1, 1, 1, 1)), batch, device, 2, POISON)
        recoded = Recoded(z, Codes(1, 0, (1 << z_bits) - 1), 9000)
    written = [m for m in (y, recoded.map if recoded else None) if m is not None]
    before = [halo_bytes(m) for m in written]
    depthwise_conv2d.launch(
        "test", map_of_codes(x, form, device, pad_code), layer, geometry, config, y=y, codes=codes, residual=added,
        recoded=recoded,
    )()
    acc = numerics.conv2d_accumulate(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=channels, pad_code=pad_code
    )
    grid = {"zero_point": codes.zero_point, "qmin": codes.qmin, "qmax": codes.qmax}
    expected = numerics.requantize(acc, multiplier, **grid, **extra)
    if y is not None:
        np.testing.assert_array_equal(y.codes(), expected)
    if recoded is not None:
        expected = numerics.recode(
            expected, 9000, zero_point_in=codes.zero_point, zero_point=1, qmin=0, qmax=recoded.codes.qmax
        )
        np.testing.assert_array_equal(recoded.map.codes(), expected)
    for kept, map_ in zip(before, written, strict=True):
        for plane, now in zip(kept, halo_bytes(map_), strict=True):
            np.testing.assert_array_equal(plane, now)


@pytest.mark.parametrize("y_bits", [8, 4, 3])
@pytest.mark.parametrize("x_bits", [8, 4, 3])
def test_every_width(device: str, x_bits: int, y_bits: int) -> None:
    check(device, x_bits=x_bits, y_bits=y_bits)


@pytest.mark.parametrize("channels", [1, 3, 9, 16, 33, 65])
@pytest.mark.parametrize("x_bits", [8, 4, 3])
def test_odd_channels(device: str, x_bits: int, channels: int) -> None:
    check(device, channels=channels, x_bits=x_bits, y_bits=4, config=DepthwiseConfig(64, 32, 4))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), (1, 1), (0, 0), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((3, 2), (1, 2), (2, 0), (1, 1)),
        ((5, 5), (2, 1), (2, 2), (1, 1)), ((3, 3), (1, 1), (2, 2), (2, 2)), ((2, 3), (2, 2), (1, 3), (1, 3)),
        ((7, 7), (2, 2), (3, 3), (1, 1)), ((6, 5), (1, 1), (0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("config", [SMALL, LOOP], ids=["unrolled", "loop"])
def test_every_window(
    device: str, config: DepthwiseConfig, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    check(
        device, size=(7, 6), x_bits=3 if kernel[0] == 2 else 4, y_bits=4, kernel=kernel, stride=stride, padding=padding,
        dilation=dilation, config=config,
    )


@pytest.mark.parametrize("z_bits", [None, 8, 4, 3])
@pytest.mark.parametrize("y_bits", [None, 8])
@pytest.mark.parametrize("x_bits", [8, 3])
def test_residual_and_recode(device: str, x_bits: int, y_bits: int | None, z_bits: int | None) -> None:
    if y_bits or z_bits:
        check(device, x_bits=x_bits, y_bits=y_bits, z_bits=z_bits, residual=True, channels=19)


@pytest.mark.parametrize("x_bits", [8, 4, 3])
@pytest.mark.parametrize("bias_size", [0, 2**31 - 1 - 255 * 128 * 9])
def test_full_rail(device: str, x_bits: int, bias_size: int) -> None:
    """Extreme codes and weights; the large bias leaves the range of int32 when it is centred, and comes back."""
    check(device, x_bits=x_bits, extreme=True, bias_size=bias_size)


def test_more_pixels_than_a_block(device: str) -> None:
    check(device, size=(9, 7), batch=3, config=DepthwiseConfig(32, 16, 4))


@settings(max_examples=6)
@given(
    channels=st.integers(1, 40), height=st.integers(1, 7), width=st.integers(1, 7), x_bits=st.sampled_from([8, 4, 3]),
    y_bits=st.sampled_from([8, 4, 3]), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), unroll=st.booleans(), seed=st.integers(0, 2**31),
)
def test_any_layer(
    device: str, channels: int, height: int, width: int, x_bits: int, y_bits: int, kernel: tuple[int, int],
    stride: tuple[int, int], unroll: bool, seed: int,
) -> None:
    check(
        device, channels=channels, size=(height, width), x_bits=x_bits, y_bits=y_bits, kernel=kernel, stride=stride,
        padding=(1, 1), config=SMALL if unroll else LOOP, seed=seed,
    )


def test_weights_follow_the_sub_tiles() -> None:
    form = MapFormat(7, 4, 4, 3, (1, 1, 1, 1))
    weight = np.arange(7 * 6, dtype=np.int8).reshape(7, 1, 2, 3)
    arrays = depthwise_arrays(weight, np.zeros(7, np.int32), np.ones(7, np.float32), form, 7)
    assert arrays.weight.shape == (6, 4, form.padded // 4)
    for channel in range(form.padded):
        for tap in range(6):
            expected = weight[channel, 0, tap // 3, tap % 3] if channel < 7 else 0
            assert arrays.weight[tap, channel % 4, channel // 4] == expected


def test_layer_refuses_what_could_overflow() -> None:
    form = MapFormat(2, 4, 4, 8, (1, 1, 1, 1))
    weight, ones = np.full((2, 1, 3, 3), -128, np.int8), np.ones(2, np.float32)
    largest = 2**31 - 1 - 255 * 128 * 9
    assert not depthwise_arrays(weight, np.array([0, -largest], np.int32), ones, form, 255).magic
    with pytest.raises(ValueError, match="sums up to 2147483647, got 2147483648"):
        depthwise_arrays(weight, np.array([0, largest + 1], np.int32), ones, form, 255)
    with pytest.raises(ValueError, match=r"expected weights \(2, 1, KH, KW\)"):
        depthwise_arrays(weight[:1], np.zeros(1, np.int32), ones[:1], form, 255)


def test_launcher_refuses_what_does_not_fit(device: str) -> None:
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), (4, 4))
    form = MapFormat(5, 4, 4, 8, (1, 1, 1, 1))
    arrays = depthwise_arrays(np.ones((5, 1, 3, 3), np.int8), np.zeros(5, np.int32), np.ones(5, np.float32), form, 255)
    layer = depthwise_conv2d.depthwise_layer_on(arrays, device)
    x, y = empty_map(form, 2, device), empty_map(MapFormat(5, 4, 4, 4), 2, device)
    four = Codes(0, 0, 15)
    with pytest.raises(ValueError, match=r"expected a halo of \(1, 1, 1, 1\), got \(0, 0, 0, 0\)"):
        depthwise_conv2d.launch("a", empty_map(form.with_halo((0, 0, 0, 0)), 2, device), layer, geometry, SMALL, y=y, codes=four)
    with pytest.raises(ValueError, match="expected an output"):
        depthwise_conv2d.launch("a", x, layer, geometry, SMALL)
    with pytest.raises(ValueError, match="expected codes of 4 bits in y, got 255"):
        depthwise_conv2d.launch("a", x, layer, geometry, SMALL, y=y)
    with pytest.raises(ValueError, match=r"expected y of 4 x 4 x 2 images"):
        depthwise_conv2d.launch("a", x, layer, geometry, SMALL, y=empty_map(MapFormat(5, 4, 4, 4), 3, device), codes=four)
    with pytest.raises(ValueError, match=r"expected channels and bits of x \(5, 8\), got \(5, 4\)"):
        depthwise_conv2d.launch("a", empty_map(MapFormat(5, 4, 4, 4, form.halo), 2, device), layer, geometry, SMALL, y=y, codes=four)


@pytest.mark.parametrize("pixels", [1, 64, 4096, 100_000])
@pytest.mark.parametrize("channels", [3, 32, 144, 960])
def test_configurations_are_launchable(channels: int, pixels: int) -> None:
    form = MapFormat(channels, 14, 14, 4, (1, 1, 1, 1))
    default = default_depthwise_config((3, 3), form, pixels)
    candidates = depthwise_candidates((3, 3), form, pixels)
    assert candidates[0] == default and len(set(candidates)) == len(candidates)
    for config in candidates:
        assert config.block_m >= 16 and config.block_c >= 16 and config.block_m * config.block_c <= 64 * 32 * config.num_warps
    assert not default_depthwise_config((7, 7), form, pixels).unroll
