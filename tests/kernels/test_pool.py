"""Max pool and average pool equal the reference on every width of storage, inside and across the edges of a map."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine import numerics
from hce_engine.kernels import pool
from hce_engine.kernels.description import Codes, Geometry, Pair
from hce_engine.kernels.device import DeviceMap, empty_map, map_of_codes
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.launch import Launch

HALO = (1, 2, 0, 3)


def geometry(height: int, width: int, kernel: Pair, stride: Pair, padding: Pair) -> Geometry:
    sizes = zip((height, width), kernel, stride, padding, strict=True)
    rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return Geometry(kernel, stride, padding, (1, 1), (rows, columns))


def windows(x: np.ndarray, g: Geometry, pad: int) -> np.ndarray:
    return numerics.patches(x, g.kernel, g.stride, g.padding, g.dilation, pad)


def outside(value: DeviceMap) -> list[np.ndarray]:
    """Bytes of the halo and of the slack, per plane."""
    form, found = value.form, []
    for plane, size, pixel in zip(value.planes, form.image_bytes, form.pixel_bytes, strict=True):
        data = plane.cpu().numpy()
        images = data[: value.batch * size].reshape(value.batch, form.rows, form.columns, pixel).copy()
        top, left = form.halo[:2]
        images[:, top : top + form.height, left : left + form.width] = 0
        found += [images, data[value.batch * size :].copy()]
    return found


def check_run(launch: Launch, y: DeviceMap, expected: np.ndarray) -> None:
    before = outside(y)
    launch()
    np.testing.assert_array_equal(y.codes(), expected)
    for was, now in zip(before, outside(y), strict=True):
        np.testing.assert_array_equal(now, was)


CASES = [
    # channels, height, width, kernel, stride, padding, batch
    (1, 5, 4, (2, 2), (2, 2), (0, 0), 3),
    (9, 7, 6, (3, 3), (2, 2), (1, 1), 2),
    (17, 5, 9, (3, 2), (1, 2), (1, 0), 3),
    (33, 4, 3, (4, 3), (1, 1), (0, 0), 5),
    (130, 3, 2, (2, 2), (1, 1), (1, 1), 1),
]
WIDTHS = [(8, 8), (8, 4), (8, 3), (4, 8), (4, 4), (4, 3), (3, 8), (3, 4), (3, 3)]


@pytest.mark.parametrize(("x_bits", "y_bits"), WIDTHS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"c{c[0]}-{c[1]}x{c[2]}-k{c[3][0]}x{c[3][1]}")
def test_max_pool(case, x_bits: int, y_bits: int, device: str) -> None:
    c, h, w, kernel, stride, padding, batch = case
    x = np.random.default_rng(c).integers(0, 1 << min(x_bits, y_bits), (batch, c, h, w), dtype=np.uint8)
    x[0] = (1 << min(x_bits, y_bits)) - 1
    x[-1, :, 0] = 0
    g = geometry(h, w, kernel, stride, padding)
    # The halo of x holds a code that a pool must not see.
    source = map_of_codes(x, MapFormat(c, h, w, x_bits, HALO), device, pad_code=(1 << x_bits) - 1)
    y = empty_map(MapFormat(c, *g.out, y_bits, (2, 1, 1, 0)), batch, device, pad_code=5, fill=0x5A)
    check_run(pool.max_pool("t", source, y, g), y, windows(x, g, 0).max(axis=(-2, -1)))


@pytest.mark.parametrize(("x_bits", "y_bits"), WIDTHS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"c{c[0]}-{c[1]}x{c[2]}-k{c[3][0]}x{c[3][1]}")
def test_average_pool(case, x_bits: int, y_bits: int, device: str) -> None:
    c, h, w, kernel, stride, padding, batch = case
    qmax, qmax_in = (1 << y_bits) - 1, (1 << x_bits) - 1
    zero_in = min(c % 5, qmax_in)
    x = np.random.default_rng(c).integers(0, qmax_in + 1, (batch, c, h, w), dtype=np.uint8)
    x[0] = qmax_in
    x[-1, :, 0] = 0
    g = geometry(h, w, kernel, stride, padding)
    codes = Codes(qmax // 3, 1, qmax - 1)
    multiplier = float(np.float32(1.7 * qmax / (kernel[0] * kernel[1] * qmax_in)))
    source = map_of_codes(x, MapFormat(c, h, w, x_bits, HALO), device, pad_code=qmax_in)
    y = empty_map(MapFormat(c, *g.out, y_bits, (0, 1, 0, 2)), batch, device, pad_code=2, fill=0x5A)
    launch = pool.average_pool("t", source, y, g, zero_point_in=zero_in, multiplier=multiplier, codes=codes)
    expected = numerics.requantize(
        numerics.pool_sum(windows(x, g, zero_in), zero_in), multiplier, zero_point=codes.zero_point, qmin=codes.qmin,
        qmax=codes.qmax,
    )
    check_run(launch, y, expected)


def test_every_tie_of_an_average_is_rounded_to_even(device: str) -> None:
    x = np.arange(256, dtype=np.uint8).reshape(1, 64, 1, 4)
    g = geometry(1, 4, (1, 2), (1, 1), (0, 0))
    y = empty_map(MapFormat(64, 1, 3, 8), 1, device, fill=0x5A)
    source = map_of_codes(x, MapFormat(64, 1, 4, 8), device)
    pool.average_pool("t", source, y, g, zero_point_in=0, multiplier=0.25, codes=Codes())()
    sums = windows(x.astype(np.int64), g, 0).sum(axis=(-2, -1))
    np.testing.assert_array_equal(y.codes(), np.rint(sums / 4).astype(np.uint8))


@pytest.mark.parametrize("case", [(64, 8, 3, 8), (70, 7, 2, 4), (5, 1, 7, 3), (3, 17, 1, 8)], ids=str)
def test_global_pool(case: tuple[int, int, int, int], device: str) -> None:
    channels, size, batch, bits = case
    qmax = (1 << bits) - 1
    x = np.random.default_rng(bits).integers(0, qmax + 1, (batch, channels, size, size), dtype=np.uint8)
    x[-1] = qmax
    g = geometry(size, size, (size, size), (1, 1), (0, 0))
    multiplier = float(np.float32(255 / qmax) / np.float32(size * size))
    y = empty_map(MapFormat(channels, 1, 1, 8), batch, device, fill=0x5A)
    source = map_of_codes(x, MapFormat(channels, size, size, bits), device)
    launch = pool.average_pool("t", source, y, g, zero_point_in=1, multiplier=multiplier, codes=Codes(3))
    sums = numerics.pool_sum(x[:, :, None, None], 1)
    expected = numerics.requantize(sums, multiplier, zero_point=3, qmin=0, qmax=255)
    check_run(launch, y, expected)


def test_windows_with_a_dilation(device: str) -> None:
    x = np.random.default_rng(2).integers(0, 16, (2, 9, 6, 5), dtype=np.uint8)
    g = Geometry((2, 3), (2, 1), (1, 1), (3, 2), (3, 3))
    y = empty_map(MapFormat(9, 3, 3, 4), 2, device, fill=0x5A)
    source = map_of_codes(x, MapFormat(9, 6, 5, 4), device)
    check_run(pool.max_pool("t", source, y, g), y, windows(x, g, 0).max(axis=(-2, -1)))


def test_a_large_zero_point_and_rails(device: str) -> None:
    x = np.zeros((2, 4, 2, 3), np.uint8)
    x[1] = 255
    g = geometry(2, 3, (3, 3), (1, 1), (1, 1))
    for multiplier in (float(np.float32(1e30)), float(np.float32(1e-30)), float(np.float32(1 / 9))):
        y = empty_map(MapFormat(4, 2, 3, 8), 2, device, fill=0x5A)
        source = map_of_codes(x, MapFormat(4, 2, 3, 8), device)
        pool.average_pool("t", source, y, g, zero_point_in=128, multiplier=multiplier, codes=Codes(128))()
        sums = numerics.pool_sum(windows(x, g, 128), 128)
        expected = numerics.requantize(sums, multiplier, zero_point=128, qmin=0, qmax=255)
        np.testing.assert_array_equal(y.codes(), expected)


def test_operands_that_do_not_fit_are_refused(device: str) -> None:
    x = empty_map(MapFormat(4, 6, 6, 8), 2, device)
    g = geometry(6, 6, (2, 2), (2, 2), (0, 0))
    with pytest.raises(ValueError, match=r"expected an output of .*\(4, 3, 3, 2\), got \(4, 3, 2, 2\)"):
        pool.max_pool("t", x, empty_map(MapFormat(4, 3, 2, 8), 2, device), g)
    y = empty_map(MapFormat(4, 3, 3, 4), 2, device)
    with pytest.raises(ValueError, match="expected codes of 4 bits, got 255"):
        pool.average_pool("t", x, y, g, zero_point_in=0, multiplier=0.25, codes=Codes())


def test_cost_counts_each_byte_once() -> None:
    x, y = empty_map(MapFormat(9, 6, 6, 4), 2, "cpu"), empty_map(MapFormat(9, 3, 3, 3), 2, "cpu")
    cost = pool.max_pool("t", x, y, geometry(6, 6, (2, 2), (2, 2), (0, 0))).cost
    assert (cost.read, cost.written) == (2 * 36 * 8, 2 * 9 * (4 + 2))
