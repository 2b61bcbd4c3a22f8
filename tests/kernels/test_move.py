"""Moved codes are where an index expression says, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hce_engine.kernels import move
from hce_engine.kernels.device import empty_map, map_of_codes
from hce_engine.kernels.formats import MapFormat

POISON = 85


def expected_codes(
    x: np.ndarray, channels: int, size: tuple[int, int], first: int, rows: tuple[int, int], columns: tuple[int, int], fill: int
) -> np.ndarray:
    y = np.full((len(x), channels, *size), fill, np.uint8)
    for c in range(channels):
        if 0 <= c - first < x.shape[1]:
            picked = x[:, c - first, rows[0] :: rows[1], columns[0] :: columns[1]]
            y[:, c] = picked[:, : size[0], : size[1]]
    return y


def check(
    device: str, x_bits: int, y_bits: int, x_channels: int, y_channels: int, *, first: int = 0,
    rows: tuple[int, int] = (0, 1), columns: tuple[int, int] = (0, 1), fill: int = 0, size: tuple[int, int] = (6, 7),
    out: tuple[int, int] | None = None, batch: int = 2,
) -> None:
    x = np.random.default_rng(x_channels).integers(0, 1 << min(x_bits, y_bits), (batch, x_channels, *size)).astype(np.uint8)
    if out is None:
        out = (-(-(size[0] - rows[0]) // rows[1]), -(-(size[1] - columns[0]) // columns[1]))
    y = empty_map(MapFormat(y_channels, *out, y_bits, (1, 0, 1, 2)), batch, device, 2, POISON)
    halo = empty_map(y.form, batch, device, 2, 0)
    move.gather(
        "test", map_of_codes(x, MapFormat(x_channels, *size, x_bits, (1, 1, 0, 2)), device), y, first_channel=first,
        rows=rows, columns=columns, fill_code=fill,
    )()
    np.testing.assert_array_equal(y.codes(), expected_codes(x, y_channels, out, first, rows, columns, fill))
    for plane, kept, bytes_, pixel in zip(y.planes, halo.planes, y.form.image_bytes, y.form.pixel_bytes, strict=True):
        images = plane[: batch * bytes_].cpu().numpy().reshape(batch, y.form.rows, y.form.columns, pixel).copy()
        images[:, 1 : 1 + out[0], : out[1]] = 0
        np.testing.assert_array_equal(images.ravel(), kept[: batch * bytes_].cpu().numpy())


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize(("x_channels", "y_channels"), [(16, 32), (9, 17), (1, 3), (33, 66)])
def test_option_a_shortcut(device: str, bits: int, x_channels: int, y_channels: int) -> None:
    """Every second row and column, with new channels on both sides."""
    first = (y_channels - x_channels) // 2
    check(device, bits, bits, x_channels, y_channels, first=first, rows=(0, 2), columns=(0, 2), fill=5)


@pytest.mark.parametrize(("x_bits", "y_bits"), [(8, 4), (8, 3), (4, 8), (3, 8), (3, 4), (4, 3)])
def test_between_widths(device: str, x_bits: int, y_bits: int) -> None:
    check(device, x_bits, y_bits, 19, 19)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize(("first", "y_channels"), [(-3, 20), (-16, 17), (-32, 1), (5, 20), (-40, 3), (30, 7)])
def test_channel_slices(device: str, bits: int, first: int, y_channels: int) -> None:
    check(device, bits, bits, 33, y_channels, first=first, fill=7)


@pytest.mark.parametrize(
    ("rows", "columns", "out"), [((1, 2), (2, 3), None), ((5, 1), (6, 1), None), ((0, 3), (1, 1), (1, 4)), ((2, 7), (0, 1), (1, 7))]
)
def test_slices_of_rows_and_columns(
    device: str, rows: tuple[int, int], columns: tuple[int, int], out: tuple[int, int] | None
) -> None:
    check(device, 4, 4, 10, 10, rows=rows, columns=columns, out=out)


def test_more_pixels_and_channels_than_a_block(device: str) -> None:
    check(device, 8, 4, 130, 150, first=11, batch=3)


@settings(max_examples=5)
@given(
    x_bits=st.sampled_from([8, 4, 3]), y_bits=st.sampled_from([8, 4, 3]), x_channels=st.integers(1, 40),
    y_channels=st.integers(1, 40), first=st.integers(-45, 45), row=st.tuples(st.integers(0, 4), st.integers(1, 3)),
    column=st.tuples(st.integers(0, 4), st.integers(1, 3)), fill=st.integers(0, 7),
)
def test_any_gather(
    device: str, x_bits: int, y_bits: int, x_channels: int, y_channels: int, first: int, row: tuple[int, int],
    column: tuple[int, int], fill: int,
) -> None:
    check(device, x_bits, y_bits, x_channels, y_channels, first=first, rows=row, columns=column, fill=fill)


@pytest.mark.parametrize("channels", [(3, 17, 1), (16, 16), (1, 140)])
def test_concatenation(device: str, channels: tuple[int, ...]) -> None:
    """One launch per operand; operands may be stored in fewer bits."""
    rng = np.random.default_rng(0)
    y = empty_map(MapFormat(sum(channels), 4, 5, 8, (1, 1, 1, 1)), 2, device, 2, POISON)
    first, parts = 0, []
    for index, count in enumerate(channels):
        bits = (8, 4, 3)[index]
        parts.append(rng.integers(0, 1 << bits, (2, count, 4, 5)).astype(np.uint8))
        x = map_of_codes(parts[-1], MapFormat(count, 4, 5, bits, (0, 1, 2, 0)), device)
        move.gather("test", x, y, first_channel=first, whole=False)()
        first += count
        written = y.codes()
        np.testing.assert_array_equal(written[:, :first], np.concatenate(parts, axis=1))
        assert (written[:, first:] == POISON ^ 128).all()


def test_launcher_refuses_what_does_not_fit(device: str) -> None:
    x = empty_map(MapFormat(4, 6, 6, 8), 2, device)
    with pytest.raises(ValueError, match=r"expected rows of x below 6, got \(0, 2, 6\)"):
        move.gather("a", x, empty_map(MapFormat(4, 4, 3, 8), 2, device), rows=(0, 2), columns=(0, 2))
    with pytest.raises(ValueError, match="expected 2 images, got 3"):
        move.gather("a", x, empty_map(MapFormat(4, 6, 6, 8), 3, device))
    with pytest.raises(ValueError, match="expected a fill code of 4 bits, got 16"):
        move.gather("a", x, empty_map(MapFormat(4, 6, 6, 4), 2, device), fill_code=16)
    for y, first in ((MapFormat(9, 6, 6, 4), 0), (MapFormat(9, 6, 6, 8), 6), (MapFormat(9, 6, 6, 8), -1)):
        with pytest.raises(ValueError, match="expected a map of 8 bits with room for 4 channels from"):
            move.gather("a", x, empty_map(y, 2, device), first_channel=first, whole=False)
