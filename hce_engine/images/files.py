"""Image files: which files of a folder count, in what order, and how one becomes pixels.

Decoded with Pillow, restricted to raster formats (its EPS reader, for one, starts another program). Files are found by
suffix, in sub-folders too, links to folders not followed; the order is that of their paths as text, which is the same on
every machine. Other files are ignored.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, InputError
from ..preprocess import IMAGENET, InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_PIXEL_LIMIT = 1 << 26  # 64 million; a compressed file of a few bytes can claim any size
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def image_files(folder: Path) -> list[str]:
    """Paths of the image files under ``folder``, relative to it, with ``/``, sorted."""
    return sorted(
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder, onerror=_unreadable)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders that stand directly in ``folder``, sorted."""
    return sorted(next(os.walk(folder, onerror=_unreadable))[1])


def _unreadable(error: OSError) -> None:
    raise DataError(f"data {error.filename}", expected="a readable folder", got=error.strerror or str(error),
                    fix="check the path and its permissions") from None


def open_image(path: Path, channels: int) -> Image.Image:
    """The decoded image, RGB for 3 channels, grey for 1; transparency is dropped, of several frames the first counts.

    Raises DataError for a file that is unreadable or has more than 8 bits per channel, InputError for other channel
    counts.
    """
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"image {path}", expected="a model of 1 or 3 channels for image files", got=str(channels),
                         fix="pass a .npy or .npz array")
    try:
        if not path.is_file():
            raise ValueError("no regular file")  # opening a pipe would wait for ever
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _PIXEL_LIMIT:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {_PIXEL_LIMIT >> 20} million")
            if image.mode in _WIDE_MODES:
                raise ValueError(f"mode {image.mode}, which has more than 8 bits per channel")
            return image.convert(mode)
    except Exception as error:  # decoders raise whatever their damaged input leads them to
        raise DataError(f"image {path}", expected="a readable 8-bit image", got=str(error)[:200] or type(error).__name__,
                        fix="remove or replace the file, or skip such files with --skip-bad") from None


def read_image(path: Path, channels: int, spec: InputSpec | None = None) -> np.ndarray:
    """Pixels uint8 ``(H, W, channels)``, as :func:`open_image` decodes them.

    spec: bring the image to its (H, W) by its resize rule (preprocess.RESIZES; bilinear, antialiased). Raises DataError
    also for an image of another size where the rule is ``none``.
    """
    pixels = open_image(path, channels)
    if spec is not None:
        pixels = _fit(pixels, spec, path)
    return np.asarray(pixels, np.uint8).reshape(pixels.height, pixels.width, channels)


def _fit(image: Image.Image, spec: InputSpec, path: Path) -> Image.Image:
    _, h, w = spec.shape
    if spec.resize == IMAGENET:
        return _centre(_cover(image, round(w * 256 / 224), round(h * 256 / 224)), w, h)
    if image.size == (w, h):
        return image
    if spec.resize == "none":
        raise DataError(f"image {path}", expected=f"{w} x {h} pixels", got=f"{image.width} x {image.height}",
                        fix="resize the images, or build the model with a resize rule")
    if spec.resize == "squash":
        return image.resize((w, h), Image.Resampling.BILINEAR)
    return _centre(_cover(image, w, h), w, h)


def _cover(image: Image.Image, w: int, h: int) -> Image.Image:
    """Scaled until it just covers w x h; the side that is longer than that is rounded down, as torchvision does."""
    if w * image.height >= h * image.width:
        size = (w, w * image.height // image.width)
    else:
        size = (h * image.width // image.height, h)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _centre(image: Image.Image, w: int, h: int) -> Image.Image:
    """The middle w x h pixels; half pixels of the margins are rounded to even, as torchvision does."""
    left, top = round((image.width - w) / 2), round((image.height - h) / 2)
    return image.crop((left, top, left + w, top + h))


def to_input(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """A batch of pixels uint8 ``(N, H, W, C)`` as the model takes it: itself, or float32 ``(N, C, H, W)`` in [low, high]."""
    if spec.numpy_dtype == np.uint8:
        return pixels
    unit = np.float32((spec.high - spec.low) / 255.0)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) * unit + np.float32(spec.low)
