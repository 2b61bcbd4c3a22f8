"""Labelled images in memory, from any of the three kinds of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..preprocess import InputSpec
from .arrays import ZippedRows, npz_names, whole
from .cifar import find_cifar
from .files import image_files, read_image

SPLITS = ("train", "test")
_CLASS_LIMIT = 1 << 20


@dataclass(frozen=True)
class Labelled:
    """images: uint8 ``(N, H, W, C)``, contiguous; labels: int64 ``(N,)``, indices into ``class_names``.

    source: what was read, in words. skipped: ``(file, reason)`` of images left out on request.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def load_labelled(
    path: str | Path, split: str = "test", *, spec: InputSpec | None = None, skip_bad: bool = False
) -> Labelled:
    """The labelled images of one split (``train`` or ``test``) of a data set on disk.

    path is one of
    - a CIFAR-10 or CIFAR-100 binary folder, or the folder that holds it;
    - a folder with one sub-folder of images per class, directly or below ``train/`` and ``test/``. Classes are the
      sub-folders in sorted order; without ``train/`` and ``test/`` the same images serve for either split. Images must
      have one size unless ``spec`` brings them to its own by its resize rule;
    - a ``.npz`` with ``x_train, y_train, x_test, y_test``, or ``train_images, train_labels, ...``, or ``images, labels``
      (which serve for either split). Images uint8 ``(N, H, W, C)`` or ``(N, H, W)``, labels integers ``(N,)`` or
      ``(N, 1)`` from 0; ``class_names``, an array of text, is optional.

    skip_bad: leave image files that are unreadable or of the wrong size for ``spec`` out and list them in ``skipped``.
    Raises DataError that names the file and what is wrong with it.
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
        return Labelled(images, labels, cifar.class_names(), f"CIFAR-{cifar.classes} {split} in {cifar.folder}")
    return _from_folder(path, split, spec, skip_bad)


def _from_folder(path: Path, split: str, spec: InputSpec | None, skip_bad: bool) -> Labelled:
    split_up = all((path / name).is_dir() for name in SPLITS)
    root = path / split if split_up else path
    files = image_files(root)
    loose = [name for name in files if "/" not in name]
    if loose or not files:
        raise DataError(f"data {root}", expected="one sub-folder of images per class",
                        got=f"{loose[0]} outside of any" if loose else "no image files",
                        fix="put the images of each class into a folder named after it")
    class_names = tuple(sorted({name.split("/", 1)[0] for name in files}))
    index = {name: i for i, name in enumerate(class_names)}
    channels = spec.shape[0] if spec else 3
    images: list[np.ndarray] = []
    labels: list[int] = []
    skipped: list[tuple[str, str]] = []
    for name in files:
        try:
            image = read_image(root / name, channels, spec)
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append((name, f"{error.got}, not {error.expected}"))
            continue
        if images and image.shape != images[0].shape:
            raise DataError(f"image {root / name}", expected=f"{images[0].shape[:2]} pixels as in the first image",
                            got=str(image.shape[:2]), fix="bring the images to one size, or use a model with a resize rule")
        images.append(image)
        labels.append(index[name.split("/", 1)[0]])
    if not images:
        raise DataError(f"data {root}", expected="at least one readable image", got=f"{len(skipped)} unreadable ones",
                        fix="check the files")
    return Labelled(np.stack(images), np.array(labels, np.int64), class_names, f"{len(images)} images in {root}", tuple(skipped))


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
    return Labelled(images, labels.astype(np.int64), class_names, f"{found[0]} in {path}")


def _names(path: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    if "class_names" not in names:
        return None
    listed = whole(ZippedRows(path, "class_names"))
    if listed.ndim != 1 or listed.dtype.kind != "U" or not listed.size or not all(str(n).isprintable() for n in listed):
        raise DataError(f"data {path}[class_names]", expected="a list of printable text", got=f"{listed.dtype} {listed.shape}",
                        fix="save np.array([...], dtype=str)")
    return tuple(str(n) for n in listed)
