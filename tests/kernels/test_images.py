"""Images become the codes of the reference; NaN and Inf mark their own image and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hce_engine import numerics
from hce_engine.kernels import images
from hce_engine.kernels.device import DeviceMap, empty_map
from hce_engine.kernels.formats import MapFormat

SIZES = [(1, 1, 1, 1), (3, 7, 5, 4), (4, 3, 2, 3), (17, 5, 6, 2), (70, 3, 3, 2), (3, 32, 32, 2)]


def frame(value: DeviceMap) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the halo and of the slack of an 8-bit map."""
    form = value.form
    data = value.plane0.cpu().numpy()
    used = value.batch * form.image_bytes[0]
    inner = data[:used].reshape(value.batch, form.rows, form.columns, form.padded).copy()
    inner[:, form.halo[0] : form.halo[0] + form.height, form.halo[1] : form.halo[1] + form.width] = 0
    return inner, data[used:].copy()


def check_frame(before: tuple[np.ndarray, np.ndarray], value: DeviceMap) -> None:
    for was, now in zip(before, frame(value), strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_move_as_they_are(size: tuple[int, int, int, int], device: str) -> None:
    c, h, w, n = size
    pixels = np.random.default_rng(c).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    pixels[0, 0, 0] = 0
    pixels[-1, -1, -1] = 255
    y = empty_map(MapFormat(c, h, w, 8, (1, 2, 0, 1)), n, device, pad_code=9, fill=0x5A)
    before = frame(y)
    images.load_pixels("t", torch.from_numpy(pixels).to(device), y)()
    np.testing.assert_array_equal(y.codes(), pixels.transpose(0, 3, 1, 2))
    check_frame(before, y)


def quantized(x: np.ndarray, low: float, multiplier: float, device: str) -> tuple[np.ndarray, np.ndarray]:
    n, c, h, w = x.shape
    y = empty_map(MapFormat(c, h, w, 8, (1, 0, 2, 1)), n, device, pad_code=7, fill=0x5A)
    flags = torch.full((n,), 77.0, device=device)
    before = frame(y)
    with np.errstate(all="ignore"):
        images.quantize_floats("t", torch.from_numpy(x).to(device), y, low, multiplier, flags)()
    check_frame(before, y)
    return y.codes(), flags.cpu().numpy()


def reference(x: np.ndarray, low: float, multiplier: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return numerics.quantize_input(x, low, multiplier)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("grid", [(0.0, 255.0), (-2.1179, 54.3)])
def test_floats_are_quantized_as_the_reference_does(
    size: tuple[int, int, int, int], grid: tuple[float, float], device: str
) -> None:
    c, h, w, n = size
    low, multiplier = (float(np.float32(v)) for v in grid)
    unit = np.random.default_rng(c).random((n, c, h, w), np.float32) * np.float32(1.2) - np.float32(0.1)
    x = unit * np.float32(255 / multiplier) + np.float32(low)
    codes, flags = quantized(x, low, multiplier, device)
    np.testing.assert_array_equal(codes, reference(x, low, multiplier))
    np.testing.assert_array_equal(flags, 0)


def test_ties_rails_and_extremes(device: str) -> None:
    tie = (np.arange(-4, 520, dtype=np.float32) / 2)[: 3 * 172].reshape(1, 3, 4, 43)
    np.testing.assert_array_equal(quantized(tie, 0.0, 1.0, device)[0], reference(tie, 0.0, 1.0))
    big = np.float32(3e38)
    values = [0.0, -0.0, 1e-45, -1e-45, 1e-38, big, -big, 255.5, 254.5, -0.5, 0.5, 1.5]
    extremes = np.array(values, np.float32).reshape(1, 1, 3, 4)
    for low, multiplier in ((0.0, 1.0), (-1.0, 1e30), (float(big), 1e-38), (0.0, float(np.float32(1e38)))):
        codes, flags = quantized(extremes, low, multiplier, device)
        np.testing.assert_array_equal(codes, reference(extremes, low, multiplier))
        np.testing.assert_array_equal(flags, 0)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 6, 4), (1, 3, 2)])
def test_a_bad_value_marks_its_image_and_no_other(value: float, place: tuple[int, int, int], device: str) -> None:
    x = np.random.default_rng(1).random((3, 3, 7, 5), np.float32)
    clean, _ = quantized(x, 0.0, 255.0, device)
    x[(1, *place)] = value
    codes, flags = quantized(x, 0.0, 255.0, device)
    np.testing.assert_array_equal(np.isnan(flags), [False, True, False])
    np.testing.assert_array_equal(flags[[0, 2]], 0)
    np.testing.assert_array_equal(codes[[0, 2]], clean[[0, 2]])
    np.testing.assert_array_equal(codes, reference(x, 0.0, 255.0))


def test_infinities_of_both_signs_do_not_cancel(device: str) -> None:
    x = np.zeros((2, 1, 2, 40), np.float32)
    x[0, 0, 0, :2] = np.inf, -np.inf
    assert np.isnan(quantized(x, 0.0, 255.0, device)[1]).tolist() == [True, False]


@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_marked_rows_become_nan_and_others_keep_their_bits(classes: int, device: str) -> None:
    bits = np.random.default_rng(3).integers(-(2**31), 2**31, (5, classes)).astype(np.int32)
    logits = torch.from_numpy(bits.view(np.float32).copy()).to(device)
    flags = torch.tensor([0.0, np.nan, 0.0, np.nan, 0.0], device=device)
    images.mark("t", logits, flags)()
    after = logits.cpu().numpy()
    assert np.isnan(after[[1, 3]]).all()
    np.testing.assert_array_equal(after.view(np.int32)[[0, 2, 4]], bits[[0, 2, 4]])


def test_operands_that_do_not_fit_are_refused(device: str) -> None:
    y = empty_map(MapFormat(3, 4, 4, 8), 2, device)
    pixels = torch.zeros((2, 4, 4, 3), dtype=torch.uint8, device=device)
    floats = torch.zeros((2, 3, 4, 4), device=device)
    with pytest.raises(ValueError, match=r"expected images \(2, 4, 4, 3\), got \(2, 3, 4, 4\)"):
        images.load_pixels("t", floats.to(torch.uint8), y)
    with pytest.raises(ValueError, match="expected a map of 8 bits"):
        images.load_pixels("t", pixels, empty_map(MapFormat(3, 4, 4, 4), 2, device))
    with pytest.raises(ValueError, match=r"expected contiguous float32 flags \(2,\)"):
        images.quantize_floats("t", floats, y, 0.0, 1.0, torch.zeros(3, device=device))
