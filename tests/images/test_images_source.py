"""Streams: every image once, in one order, whatever the batch size; bad files named; bad arrays refused up front."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hce_engine.errors import DataError, HceError, InputError
from hce_engine.images import ImageSource, load_labelled, open_images
from hce_engine.preprocess import InputSpec

PIXELS = InputSpec("uint8_nhwc", (3, 4, 6), (0.0,) * 3, (1.0,) * 3)
FLOATS = InputSpec("float32_nchw", (3, 4, 6), (0.0,) * 3, (1.0,) * 3, low=-1.0, high=1.0)


def drain(source: ImageSource, size: int) -> tuple[list[str], np.ndarray]:
    parts = list(source.batches(size))
    assert all(len(names) == len(images) == size for names, images in parts[:-1])
    assert all(images.flags.c_contiguous for _, images in parts)
    return [n for names, _ in parts for n in names], np.concatenate([images for _, images in parts])


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_folder(photos: Path, size: int) -> None:
    source = open_images(photos, PIXELS)
    names, images = drain(source, size)
    assert source.total == 8
    assert names == [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)]
    assert np.array_equal(images[5], np.asarray(Image.open(photos / "dog" / "1.png")))
    again, _ = drain(source, size)
    assert again == names


def test_folder_for_a_float_model(photos: Path) -> None:
    _, images = drain(open_images(photos, FLOATS), 8)
    assert images.dtype == np.float32
    assert images.shape == (8, 3, 4, 6)
    pixels = np.asarray(Image.open(photos / "cat" / "0.png")).transpose(2, 0, 1).astype(np.float64)
    assert np.allclose(images[0], pixels / 255 * 2 - 1, atol=1e-6)


def test_bad_files_are_named_or_skipped_and_listed(photos: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (7, 7)).save(photos / "dog" / "0.png")
    with pytest.raises(DataError, match=r"cat/1\.png"):
        drain(open_images(photos, PIXELS), 3)
    source = open_images(photos, PIXELS, skip_bad=True)
    for _ in range(2):
        names, _ = drain(source, 4)
        assert len(names) == 6
        assert [s.name for s in source.skipped] == ["cat/1.png", "dog/0.png"]
        assert source.skipped[1].reason == "7 x 7, not 6 x 4 pixels"


def test_links_to_folders_are_not_followed(photos: Path) -> None:
    os.symlink(photos, photos / "cat" / "again")
    assert open_images(photos, PIXELS).total == 8


def test_resize_rules(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "w.png")
    def shown(resize: str) -> np.ndarray:
        return drain(open_images(tmp_path, InputSpec("uint8_nhwc", (3, 5, 5), (0.0,) * 3, (1.0,) * 3, resize=resize)), 1)[1][0]

    assert (shown("shorter-side-center-crop")[:, 1:4] > 180).all()
    assert (shown("squash")[:, 0] < 20).all()
    with pytest.raises(DataError, match="5 x 5"):
        shown("none")


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (224, 224), (40, 31)])
def test_imagenet_rule_is_that_of_published_accuracies(tmp_path: Path, rng: np.random.Generator, width: int, height: int) -> None:
    """The shorter side becomes 256, the longer one int(256 * longer / shorter); 224 from round(margin / 2) on."""
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    image.save(tmp_path / "i.png")
    shorter = min(width, height)
    scaled = image.resize((256 * width // shorter, 256 * height // shorter), Image.Resampling.BILINEAR)
    top, left = round((scaled.height - 224) / 2), round((scaled.width - 224) / 2)
    spec = InputSpec("uint8_nhwc", (3, 224, 224), (0.0,) * 3, (1.0,) * 3, resize="imagenet-center-crop")
    shown = drain(open_images(tmp_path, spec), 1)[1][0]
    assert np.array_equal(shown, np.asarray(scaled)[top : top + 224, left : left + 224])


def test_a_single_image(photos: Path) -> None:
    names, images = drain(open_images(photos / "cat" / "3.png", PIXELS), 4)
    assert names == ["3.png"]
    assert images.shape == (1, 4, 6, 3)


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "compressed"])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_arrays(tmp_path: Path, rng: np.random.Generator, kind: str, size: int) -> None:
    array = rng.integers(0, 256, (11, 4, 6, 3)).astype(np.uint8)
    path = tmp_path / ("a.npy" if kind in ("npy", "fortran") else "a.npz")
    if path.suffix == ".npy":
        np.save(path, np.asfortranarray(array) if kind == "fortran" else array)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, pictures=array)
    source = open_images(path, PIXELS)
    names, images = drain(source, size)
    assert source.total == 11
    assert names == [str(i) for i in range(11)]
    assert np.array_equal(images, array)


def test_npz_with_several_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y_test=np.zeros(2), x_test=np.zeros((2, 4, 6, 3), np.uint8))
    assert open_images(tmp_path / "a.npz", PIXELS).total == 2
    np.savez(tmp_path / "b.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(DataError, match="one array, or one named"):
        open_images(tmp_path / "b.npz", PIXELS)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((2, 3, 4, 6), np.uint8), InputError), (np.zeros((2, 4, 6, 3), np.float32), InputError),
        (np.zeros((4, 6, 3), np.uint8), InputError), (np.zeros((0, 4, 6, 3), np.uint8), DataError),
        (np.uint8(3), DataError), (np.zeros((2, 4, 6, 3), object), DataError),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_refused(tmp_path: Path, array: np.ndarray, error: type[HceError], suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez(path, array)
    with pytest.raises(error):
        open_images(path, PIXELS)


def test_headers_that_promise_too_much(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 6, 3), np.uint8))
    raw = (tmp_path / "a.npy").read_bytes()
    for shape in (b"(9, 4, 6, 3)", b"(99999999999999, 4, 6, 3)", b"(-2, 4, 6, 3)", b"__import__('os')"):
        text = raw.replace(b"(2, 4, 6, 3)", shape).replace(b" " * (len(shape) - 12), b"", 1)
        (tmp_path / "b.npy").write_bytes(text)
        with pytest.raises(HceError):
            drain(open_images(tmp_path / "b.npy", PIXELS), 2)


def test_nan_passes_to_the_engine(tmp_path: Path) -> None:
    array = np.full((2, 3, 4, 6), np.nan, np.float32)
    np.save(tmp_path / "a.npy", array)
    assert np.isnan(drain(open_images(tmp_path / "a.npy", FLOATS), 2)[1]).all()


def test_cifar_folder_is_its_test_split(cifar10: Path) -> None:
    spec = InputSpec("uint8_nhwc", (3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    names, images = drain(open_images(cifar10, spec), 3)
    assert names == [str(i) for i in range(7)]
    assert np.array_equal(images, load_labelled(cifar10).images)
    with pytest.raises(InputError, match="CIFAR's"):
        open_images(cifar10, PIXELS)


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.npy"):
        with pytest.raises(DataError):
            open_images(path, PIXELS)


@pytest.mark.parametrize("suffix", [".NPY", ".NpZ"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    images = np.zeros((3, *PIXELS.array_shape), np.uint8)
    path = tmp_path / "a.bin"
    with open(path, "wb") as file:
        np.save(file, images) if suffix == ".NPY" else np.savez(file, images)
    path.rename(path.with_suffix(suffix))
    assert open_images(path.with_suffix(suffix), PIXELS).total == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_among_images_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no regular file"):
        drain(open_images(tmp_path, PIXELS), 1)
