"""Random windows, their pixels, and decoding by worker processes that changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hce_engine.errors import DataError
from hce_engine.images.files import read_image
from hce_engine.preprocess import InputSpec
from hce_engine.training.image_files import Decoder, ResizedCrop, decoded


def windows(width: int, height: int, count: int, min_area: float = 0.08) -> np.ndarray:
    crop = ResizedCrop(min_area)
    return np.array([crop.window(width, height, np.random.default_rng(i)) for i in range(count)])


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 2**62), area=st.floats(0.01, 1))
def test_windows_lie_inside_the_image(width: int, height: int, seed: int, area: float) -> None:
    left, top, right, bottom = ResizedCrop(area).window(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_area_aspect_and_place_have_the_stated_distributions() -> None:
    left, top, right, bottom = windows(1000, 1000, 4000, 0.25).T
    w, h = right - left, bottom - top
    area, aspect = w * h / 1e6, np.log(w / h)
    assert area.min() > 0.245
    assert abs(np.quantile(area, 0.25) - (0.25 + 0.75 / 4)) < 0.03  # uniform, but for those that stick out
    assert np.abs(aspect).max() < math.log(4 / 3) + 0.01
    assert abs(np.quantile(aspect, 0.25) + math.log(4 / 3) / 2) < 0.03
    assert abs((left[w < 1000] / (1000 - w[w < 1000])).mean() - 0.5) < 0.03


def test_an_image_too_long_for_any_window_gives_its_middle() -> None:
    assert ResizedCrop(0.9).window(300, 30, np.random.default_rng(0)) == (130, 0, 170, 30)
    assert ResizedCrop(0.9).window(30, 300, np.random.default_rng(0)) == (0, 130, 30, 170)


def test_pixels_are_those_of_the_window_alone(rng: np.random.Generator) -> None:
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8))
    left, top, right, bottom = ResizedCrop().window(60, 40, np.random.default_rng(3))
    want = np.asarray(image.crop((left, top, right, bottom)).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(ResizedCrop(flip=False).apply(image, 16, np.random.default_rng(3)), want)
    mirrored = [np.array_equal(ResizedCrop().apply(image, 16, np.random.default_rng(i)),
                               ResizedCrop(flip=False).apply(image, 16, np.random.default_rng(i))[:, ::-1]) for i in range(60)]
    assert 15 < sum(mirrored) < 45


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    for i, size in enumerate([(30, 40, 3), (50, 20, 3), (16, 16, 3), (33, 35), (64, 64, 3)]):
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(tmp_path / f"{i}.jpeg")
    return tmp_path


def test_the_same_pixels_with_any_number_of_workers(folder: Path) -> None:
    decoder = Decoder(folder, 16, ResizedCrop())
    requests = [[("0.jpeg", 71), ("1.jpeg", 5)], [("2.jpeg", 2**61)], [("3.jpeg", 0), ("0.jpeg", 71)]]
    before = torch.random.get_rng_state()
    here = list(decoded(decoder, requests, 0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [images.shape for images in here] == [(2, 16, 16, 3), (1, 16, 16, 3), (2, 16, 16, 3)]
    assert torch.equal(here[0][0], here[2][1])
    assert (here[2][0] == here[2][0][..., :1]).all(), "a grey file is grey in RGB"
    for there, images in zip(decoded(decoder, requests, 2), here, strict=True):
        assert torch.equal(there, images)


def test_without_a_crop_images_are_those_of_evaluation(folder: Path) -> None:
    spec = InputSpec("uint8_nhwc", (3, 16, 16), (0.0,) * 3, (1.0,) * 3, resize="imagenet-center-crop")
    (images,) = decoded(Decoder(folder, 16), [[("1.jpeg", 3), ("4.jpeg", 0)]], 0)
    want = [read_image(folder / name, 3, spec) for name in ("1.jpeg", "4.jpeg")]
    assert np.array_equal(images.numpy(), np.stack(want))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named_by_a_typed_error(folder: Path, workers: int) -> None:
    (folder / "bad.jpeg").write_bytes(b"no image")
    images = decoded(Decoder(folder, 16, ResizedCrop()), [[("0.jpeg", 1)], [("bad.jpeg", 1)]], workers)
    assert next(images).shape == (1, 16, 16, 3)
    with pytest.raises(DataError, match=r"bad\.jpeg.*a readable 8-bit image"):
        next(images)
