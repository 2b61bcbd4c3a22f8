"""Sums and recodings of maps equal the exact reference bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine import numerics
from hce_engine.kernels import elementwise
from hce_engine.kernels.description import Codes
from hce_engine.kernels.device import DeviceMap, empty_map, map_of_codes
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.launch import Recoded

POISON = 85


def random_map(
    device: str, channels: int, bits: int, seed: int, size: tuple[int, int] = (5, 4), batch: int = 2
) -> tuple[np.ndarray, DeviceMap]:
    """Codes with both ends of the range among them, in a map whose halo is lopsided."""
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (batch, channels, *size)).astype(np.uint8)
    codes.reshape(-1)[:2] = 0, (1 << bits) - 1
    return codes, map_of_codes(codes, MapFormat(channels, *size, bits, (1, 2, 0, 1)), device)


def output(device: str, like: np.ndarray, bits: int) -> tuple[DeviceMap, np.ndarray]:
    """A poisoned map, and its halo as it must stay: the bytes of plane 0 above the first inner pixel."""
    batch, channels, height, width = like.shape
    map_ = empty_map(MapFormat(channels, height, width, bits, (1, 1, 2, 1)), batch, device, 3, POISON)
    return map_, halo(map_)


def halo(map_: DeviceMap) -> np.ndarray:
    form, size = map_.form, map_.form.image_bytes[0]
    images = map_.plane0[: map_.batch * size].cpu().numpy().reshape(map_.batch, form.rows, form.columns, -1).copy()
    images[:, form.halo[0] : form.halo[0] + form.height, form.halo[1] : form.halo[1] + form.width] = 0
    return images


def check_add(
    device: str, channels: int, a_bits: int, b_bits: int, y_bits: int | None, z_bits: int | None, *,
    zero_points: tuple[int, int], multipliers: tuple[float, float], codes: Codes, batch: int = 2,
) -> None:
    a, a_map = random_map(device, channels, a_bits, 1, batch=batch)
    b, b_map = random_map(device, channels, b_bits, 2, batch=batch)
    rounded = (float(np.float32(multipliers[0])), float(np.float32(multipliers[1])))
    y, y_halo = output(device, a, y_bits) if y_bits else (None, None)
    recoded, z_halo = None, None
    if z_bits:
        z, z_halo = output(device, a, z_bits)
        recoded = Recoded(z, Codes(1, 1, (1 << z_bits) - 1), 7000)
    elementwise.add(
        "test", a_map, b_map, y, zero_points=zero_points, multipliers=rounded, codes=codes, recoded=recoded
    )()
    grid = {"zero_point": codes.zero_point, "qmin": codes.qmin, "qmax": codes.qmax}
    expected = numerics.add(a, b, zero_points=zero_points, multipliers=rounded, **grid)
    if y is not None:
        np.testing.assert_array_equal(y.codes(), expected)
        np.testing.assert_array_equal(halo(y), y_halo)
    if recoded is not None:
        derived = numerics.recode(
            expected, 7000, zero_point_in=codes.zero_point, zero_point=1, qmin=1, qmax=recoded.codes.qmax
        )
        np.testing.assert_array_equal(recoded.map.codes(), derived)
        np.testing.assert_array_equal(halo(recoded.map), z_halo)


@pytest.mark.parametrize("channels", [1, 3, 9, 17, 33])
@pytest.mark.parametrize(("y_bits", "z_bits"), [(8, None), (8, 4), (None, 3), (4, None), (3, 8)])
def test_add(device: str, channels: int, y_bits: int | None, z_bits: int | None) -> None:
    codes = Codes(0, 0, (1 << (y_bits or 8)) - 1)
    scale = (codes.qmax + 1) / 256
    check_add(
        device, channels, 8, 8, y_bits, z_bits, zero_points=(0, 128), multipliers=(0.71 * scale, 0.93 * scale), codes=codes
    )


@pytest.mark.parametrize(("a_bits", "b_bits"), [(4, 8), (8, 3), (4, 3), (3, 3)])
def test_add_of_narrow_maps(device: str, a_bits: int, b_bits: int) -> None:
    multipliers = (100 / (1 << a_bits), 100 / (1 << b_bits))
    check_add(device, 19, a_bits, b_bits, 8, 3, zero_points=(0, 1), multipliers=multipliers, codes=Codes(128, 5, 250))


@pytest.mark.parametrize("multipliers", [(1e30, -1e30), (6e35, 5e35), (0.0, 0.0), (-230.0, 210.0)])
def test_add_of_extreme_multipliers(device: str, multipliers: tuple[float, float]) -> None:
    """Codes saturate, whatever the size of the sum."""
    check_add(device, 5, 8, 8, 8, 4, zero_points=(0, 0), multipliers=multipliers, codes=Codes())


def test_add_with_a_tail(device: str) -> None:
    check_add(device, 130, 8, 8, 8, None, zero_points=(3, 4), multipliers=(0.5, 0.5), codes=Codes(), batch=3)


def test_add_rounds_halves_to_even(device: str) -> None:
    """Sums that end in one half, both products and the sum exact."""
    check_add(device, 16, 8, 8, 8, None, zero_points=(0, 0), multipliers=(0.5, 0.25), codes=Codes())


@pytest.mark.parametrize("channels", [1, 9, 33])
@pytest.mark.parametrize(
    ("x_bits", "y_bits", "factor"), [(8, 4, 3800), (8, 3, 1900), (8, 8, 70000), (4, 8, 1_000_000), (3, 4, 131072), (4, 3, 1)]
)
def test_recode(device: str, channels: int, x_bits: int, y_bits: int, factor: int) -> None:
    x, x_map = random_map(device, channels, x_bits, 3)
    for zero_point_in, codes in ((0, Codes(0, 0, (1 << y_bits) - 1)), (1 << (x_bits - 1), Codes(2, 1, (1 << y_bits) - 2))):
        y, y_halo = output(device, x, y_bits)
        elementwise.recode("test", x_map, y, zero_point_in=zero_point_in, codes=codes, factor=factor)()
        expected = numerics.recode(
            x, factor, zero_point_in=zero_point_in, zero_point=codes.zero_point, qmin=codes.qmin, qmax=codes.qmax
        )
        np.testing.assert_array_equal(y.codes(), expected)
        np.testing.assert_array_equal(halo(y), y_halo)


@pytest.mark.parametrize("factor", [1, 255, 32768, 65535, 65536, 2**23 - 1])
@pytest.mark.parametrize("zero_point_in", [0, 128, 255])
def test_recode_of_every_code(device: str, zero_point_in: int, factor: int) -> None:
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x_map = map_of_codes(x, MapFormat(1, 16, 16, 8), device)
    y, _ = output(device, x, 8)
    elementwise.recode("test", x_map, y, zero_point_in=zero_point_in, codes=Codes(100, 0, 255), factor=factor)()
    expected = numerics.recode(x, factor, zero_point_in=zero_point_in, zero_point=100, qmin=0, qmax=255)
    np.testing.assert_array_equal(y.codes(), expected)


def test_launchers_refuse_what_does_not_fit(device: str) -> None:
    _, a = random_map(device, 4, 8, 0)
    _, wide = random_map(device, 5, 8, 0)
    four = empty_map(MapFormat(4, 5, 4, 4), 2, device)
    parts = {"zero_points": (0, 0), "multipliers": (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"expected b of channels, height, width and images \(4, 5, 4, 2\), got \(5, 5, 4, 2\)"):
        elementwise.add("a", a, wide, four, codes=Codes(0, 0, 15), **parts)
    with pytest.raises(ValueError, match="expected an output"):
        elementwise.add("a", a, a, None, codes=Codes(), **parts)
    with pytest.raises(ValueError, match="expected codes of 4 bits in y, got 255"):
        elementwise.add("a", a, a, four, codes=Codes(), **parts)
    with pytest.raises(ValueError, match=r"expected a factor in 1\.\.8388607, got 8388608"):
        elementwise.recode("a", a, four, zero_point_in=0, codes=Codes(0, 0, 15), factor=2**23)
    with pytest.raises(ValueError, match="expected codes of 4 bits, got 16"):
        elementwise.recode("a", a, four, zero_point_in=0, codes=Codes(0, 0, 16), factor=5)
