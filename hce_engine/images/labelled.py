"""Labelled images from any of the three kinds of data: batch by batch, or all of them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DataError
from ..preprocess import InputSpec
from .arrays import ZippedRows, npz_names, whole
from .cifar import find_cifar
from .class_folders import LabelledFiles, find_class_folders
from .source import Skipped

SPLITS = ("train", "test")
_CLASS_LIMIT = 1 << 20
_AT_ONCE = 1024  # images that are joined at a time


class LabelledSource(Protocol):
    """Labelled images that are decoded as they are asked for.

    labels: int64 ``(N,)``, indices into ``class_names``, of all images.  numbered: whether the data themselves number their
    classes; where not, only the names mean the same classes elsewhere.  source: what is read, in words.  skipped: image files
    that :meth:`batches` has left out so far, on request.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def numbered(self) -> bool: ...

    @property
    def source(self) -> str: ...

    @property
    def skipped(self) -> Sequence[Skipped]: ...

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images uint8 ``(n, H, W, C)`` and labels int64 ``(n,)``, ``size`` at a time, the last batch shorter."""
        ...

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of these numbers, uint8 ``(n, H, W, C)``."""
        ...


@dataclass(frozen=True)
class Labelled:
    """A :class:`LabelledSource` in memory. images: uint8 ``(N, H, W, C)``, contiguous."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    numbered: bool
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.images[np.asarray(indices)]


def open_labelled(
    path: str | Path, split: str = "test", *, spec: InputSpec | None = None, skip_bad: bool = False
) -> LabelledSource:
    """The labelled images of one split (``train`` or ``test``) of a data set on disk; folders of files are not read yet.

    path is one of
    - a CIFAR-10 or CIFAR-100 binary folder, or the folder that holds it;
    - a folder with one sub-folder of images per class, directly, or below ``train/`` and ``test/`` (or ``val/``), of
      which only the split that is asked for must be there. Classes are the sub-folders in sorted order; without such
      folders the same images serve for either split. Images must have one size unless ``spec`` brings them to its own by
      its resize rule;
    - a ``.npz`` with ``x_train, y_train, x_test, y_test``, or ``train_images, train_labels, ...``, or ``images, labels``
      (which serve for either split). Images uint8 ``(N, H, W, C)`` or ``(N, H, W)``, labels integers ``(N,)`` or
      ``(N, 1)`` from 0; ``class_names``, an array of text, is optional.

    skip_bad: leave image files that are unreadable or of the wrong size for ``spec`` out and list them in ``skipped``.
    Raises DataError that names the file and what is wrong with it, for image files as they are read.
    """
    path = Path(path)
    if split not in SPLITS:
        raise DataError(f"data {path}", expected="split train or test", got=repr(split), fix="name one of these")
    if path.is_file():
        return _from_npz(path, split)
    if not path.is_dir():
        raise DataError(f"data {path}", expected="a folder or a .npz file", got="nothing of this name", fix="check the path")
    cifar = find_cifar(path)
    if cifar is not None:
        images, labels = cifar.load(split)
        return Labelled(images, labels, cifar.class_names(), f"CIFAR-{cifar.classes} {split} in {cifar.folder}", numbered=True)
    return LabelledFiles(find_class_folders(path, split), spec, skip_bad)


def load_labelled(
    path: str | Path, split: str = "test", *, spec: InputSpec | None = None, skip_bad: bool = False
) -> Labelled:
    """What :func:`open_labelled` finds, all of it in memory."""
    source = open_labelled(path, split, spec=spec, skip_bad=skip_bad)
    if isinstance(source, Labelled):
        return source
    images, labels = zip(*source.batches(_AT_ONCE), strict=True)
    return Labelled(np.concatenate(images), np.concatenate(labels), source.class_names, source.source, source.numbered,
                    tuple(source.skipped))


def _from_npz(path: Path, split: str) -> Labelled:
    if path.suffix.lower() != ".npz":
        raise DataError(f"data {path}", expected="a folder or a .npz file", got=path.name, fix="save images and labels with np.savez")
    names = npz_names(path)
    pairs = ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"), ("images", "labels"))
    found = next((pair for pair in pairs if set(pair) <= set(names)), None)
    if found is None:
        raise DataError(f"data {path}", expected=" or ".join(f"{x}, {y}" for x, y in pairs), got=", ".join(names)[:200] or "no arrays",
                        fix="name the arrays so")
    images, labels = (whole(ZippedRows(path, name)) for name in found)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(f"data {path}[{found[0]}]", expected="uint8 images (N, H, W, C) or (N, H, W), at least one",
                        got=f"{images.dtype} {images.shape}", fix="save pixels, not normalised values")
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.dtype.kind not in "ui" or labels.shape != (len(images),):
        raise DataError(f"data {path}[{found[1]}]", expected=f"{len(images)} integer labels", got=f"{labels.dtype} {labels.shape}",
                        fix="save one class number per image")
    class_names = _names(path, names)
    low, high = int(labels.min()), int(labels.max())
    limit = len(class_names) if class_names else _CLASS_LIMIT
    if low < 0 or high >= limit:
        raise DataError(f"data {path}[{found[1]}]", expected=f"labels from 0 to {limit - 1}", got=f"{low} to {high}",
                        fix="number the classes from 0, or complete class_names")
    class_names = class_names or tuple(map(str, range(high + 1)))
    return Labelled(images, labels.astype(np.int64), class_names, f"{found[0]} in {path}", numbered=True)


def _names(path: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    if "class_names" not in names:
        return None
    listed = whole(ZippedRows(path, "class_names"))
    if listed.ndim != 1 or listed.dtype.kind != "U" or not listed.size or not all(str(n).isprintable() for n in listed):
        raise DataError(f"data {path}[class_names]", expected="a list of printable text", got=f"{listed.dtype} {listed.shape}",
                        fix="save np.array([...], dtype=str)")
    return tuple(str(n) for n in listed)
