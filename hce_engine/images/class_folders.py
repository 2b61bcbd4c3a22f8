"""A folder of labelled image files, one sub-folder per class: ImageNet's layout, and that of most data sets of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import DataError
from ..preprocess import InputSpec
from .files import image_files, read_image, sub_folders
from .source import Skipped

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}  # the first one that is there
_NO_CLASSES = {"train", "training", "test", "testing", "val", "valid", "validation"}


@dataclass(frozen=True)
class ClassFolders:
    """Where the images of a split are; nothing is decoded. names: paths below ``root``, sorted; labels: int64 ``(N,)``."""

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]


def find_class_folders(path: Path, split: str) -> ClassFolders:
    """The images of ``split`` (``train`` or ``test``): below ``train/``, and below ``test/`` or else ``val/``.

    Without any folder of these names that holds folders, the classes stand directly in ``path``, and serve for either
    split. Classes are the sub-folders that hold images, in sorted order. Raises DataError for a folder without images, with
    some outside of any class, with the other split alone, or whose classes have the names of splits and no others.
    """
    root = _root(path, split)
    names = image_files(root)
    loose = [name for name in names if "/" not in name]
    if loose or not names:
        raise DataError(f"data {root}", expected="one sub-folder of images per class",
                        got=f"{loose[0]} outside of any" if loose else "no image files",
                        fix="put the images of each class into a folder named after it")
    classes = [name.split("/", 1)[0] for name in names]
    class_names = tuple(sorted(set(classes)))
    if _NO_CLASSES.issuperset(map(str.lower, class_names)):
        raise DataError(f"data {root}", expected="sub-folders named after classes", got=f"only {', '.join(class_names)}",
                        fix="name the splits train and test (or val), with one sub-folder of images per class in each")
    index = {name: i for i, name in enumerate(class_names)}
    return ClassFolders(root, tuple(names), np.array([index[name] for name in classes], np.int64), class_names)


def _root(path: Path, split: str) -> Path:
    """The folder that holds the classes of ``split``. A class may be called train: only a folder of folders is a split."""
    folders = sub_folders(path)
    splits = [name for names in _SPLIT_FOLDERS.values() for name in names if name in folders and sub_folders(path / name)]
    found = [name for name in _SPLIT_FOLDERS[split] if name in splits]
    if splits and not found:
        raise DataError(f"data {path}", expected=f"one sub-folder per class in {' or '.join(_SPLIT_FOLDERS[split])}, for the {split} split",
                        got=f"classes in {' and '.join(splits)} only", fix="ask for the other split, or add the folder")
    return path / found[0] if found else path


@dataclass
class LabelledFiles:
    """A stream of decoded images: see :class:`hce_engine.images.LabelledSource`.

    Images must have one size unless ``spec`` brings them to its own. skip_bad: leave unreadable ones out, into ``skipped``.
    """

    folders: ClassFolders
    spec: InputSpec | None
    skip_bad: bool
    skipped: list[Skipped] = field(default_factory=list)
    numbered: ClassVar[bool] = False  # folders have names alone

    @property
    def labels(self) -> np.ndarray:
        return self.folders.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.folders.class_names

    @property
    def source(self) -> str:
        return f"{len(self.labels)} image files in {self.folders.root}"

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.skipped.clear()
        images: list[np.ndarray] = []
        labels: list[int] = []
        shape: tuple[int, ...] | None = None
        for name, label in zip(self.folders.names, self.labels.tolist(), strict=True):
            try:
                image = self._read(name)
            except DataError as error:
                if not self.skip_bad:
                    raise
                self.skipped.append(Skipped(name, f"{error.got}, not {error.expected}"))
                continue
            self._same_shape(name, image, shape)
            shape = image.shape
            images.append(image)
            labels.append(label)
            if len(images) == size:
                yield np.stack(images), np.array(labels, np.int64)
                images, labels = [], []
        if shape is None:
            raise DataError(f"data {self.folders.root}", expected="at least one readable image",
                            got=f"{len(self.skipped)} unreadable ones", fix="check the files")
        if images:
            yield np.stack(images), np.array(labels, np.int64)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of these numbers, uint8 ``(n, H, W, C)``; raises DataError for one that is unreadable."""
        chosen = [self.folders.names[i] for i in indices]
        images = [self._read(name) for name in chosen]
        for name, image in zip(chosen, images, strict=True):
            self._same_shape(name, image, images[0].shape)
        return np.stack(images)

    def _read(self, name: str) -> np.ndarray:
        return read_image(self.folders.root / name, self.spec.shape[0] if self.spec else 3, self.spec)

    def _same_shape(self, name: str, image: np.ndarray, shape: tuple[int, ...] | None) -> None:
        if shape is not None and image.shape != shape:
            raise DataError(f"image {self.folders.root / name}", expected=f"{shape[:2]} pixels as in the other images",
                            got=str(image.shape[:2]), fix="bring the images to one size, or use a model with a resize rule")
