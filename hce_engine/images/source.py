"""Streams of images for inference: batch by batch, in a fixed order, never the whole set in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import DataError, InputError
from ..preprocess import InputSpec, check_images
from .arrays import MappedRows, Rows, ZippedRows, npz_names
from .cifar import CifarFolder, find_cifar
from .files import image_files, read_image, to_input

_IMAGE_ARRAYS = ("images", "x_test", "test_images")


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    name: str
    reason: str


class ImageSource(Protocol):
    """Where images come from.

    total: how many there are, skipped ones included.  skipped: what :meth:`batches` has left out so far.
    """

    total: int
    skipped: list[Skipped]

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """``(names, images)``: ``size`` images as the model takes them, the last batch shorter; names are file names
        relative to the folder, or the index as text. Starts over at each call; raises DataError as it goes."""
        ...


def open_images(path: str | Path, spec: InputSpec, *, skip_bad: bool = False) -> ImageSource:
    """A stream of the images at ``path``, as a model with input ``spec`` takes them.

    path: a folder of image files (sub-folders included), a single image file, a CIFAR binary folder (its test split), a
    ``.npy`` array, or a ``.npz`` with one array or one named ``images``, ``x_test`` or ``test_images``. Arrays must already
    have the model's type and layout; image files are resized by the model's rule, and they and CIFAR are scaled to its
    range if it takes float32. skip_bad: leave image files that are unreadable or of the wrong size out, and list them,
    instead of raising.

    Raises DataError for data that is missing or empty, InputError for an array that does not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        cifar = find_cifar(path)
        return _CifarImages(cifar, spec) if cifar else _FileImages(path, image_files(path), spec, skip_bad)
    if not path.is_file():
        raise DataError(f"data {path}", expected="a folder or a file", got="nothing of this name", fix="check the path")
    if path.suffix.lower() == ".npy":
        return _ArrayImages(MappedRows(path), spec, str(path))
    if path.suffix.lower() == ".npz":
        name = _choose(path)
        return _ArrayImages(ZippedRows(path, name), spec, f"{path}[{name}]")
    return _FileImages(path.parent, [path.name], spec, skip_bad)


def _choose(path: Path) -> str:
    names = npz_names(path)
    known = [name for name in _IMAGE_ARRAYS if name in names] or (names if len(names) == 1 else [])
    if not known:
        raise DataError(f"data {path}", expected="one array, or one named " + ", ".join(_IMAGE_ARRAYS),
                        got=", ".join(names)[:200] or "no arrays", fix="name the array of images so")
    return known[0]


@dataclass
class _ArrayImages:
    rows: Rows
    spec: InputSpec
    where: str

    def __post_init__(self) -> None:
        try:  # the type and shape, before any data is read
            check_images(np.empty((0, *self.rows.shape[1:]), self.rows.dtype), self.spec)
        except InputError as error:
            raise InputError(f"images {self.where}", expected=error.expected, got=f"{self.rows.shape} {self.rows.dtype}",
                             fix=error.fix) from None
        self.total, self.skipped = self.rows.shape[0], list[Skipped]()
        _need_some(self.total, self.where)

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        start = 0
        for images in self.rows.batches(size):
            yield [str(i) for i in range(start, start + len(images))], images
            start += len(images)


@dataclass
class _CifarImages:
    cifar: CifarFolder
    spec: InputSpec

    def __post_init__(self) -> None:
        if self.spec.shape != (3, 32, 32):
            raise InputError(f"images {self.cifar.folder}", expected=f"images of the model's {self.spec.shape} (C, H, W)",
                             got="CIFAR's (3, 32, 32)", fix="use a model for CIFAR, or a folder of image files")
        self.total, self.skipped = sum(count for _, count in self.cifar.records("test")), list[Skipped]()

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        for path, count in self.cifar.records("test"):
            for start in range(0, count, size):
                pixels, _ = self.cifar.read(path, start, min(size, count - start))
                yield [str(i) for i in range(start, start + len(pixels))], to_input(pixels, self.spec)


@dataclass
class _FileImages:
    folder: Path
    names: list[str]
    spec: InputSpec
    skip_bad: bool

    def __post_init__(self) -> None:
        self.total, self.skipped = len(self.names), list[Skipped]()
        _need_some(self.total, str(self.folder))

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        self.skipped.clear()
        names: list[str] = []
        images: list[np.ndarray] = []
        for name in self.names:
            try:
                image = read_image(self.folder / name, self.spec.shape[0], self.spec)
            except DataError as error:
                if not self.skip_bad:
                    raise
                self.skipped.append(Skipped(name, f"{error.got}, not {error.expected}"))
                continue
            names.append(name)
            images.append(image)
            if len(images) == size:
                yield names, to_input(np.stack(images), self.spec)
                names, images = [], []
        if images:
            yield names, to_input(np.stack(images), self.spec)


def _need_some(total: int, where: str) -> None:
    if not total:
        raise DataError(f"data {where}", expected="at least one image", got="none", fix="check the path")
