"""A folder of labelled image files, one sub-folder per class: ImageNet's layout, and that of most data sets of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..preprocess import InputSpec
from .files import image_files, read_image
from .source import Skipped


@dataclass(frozen=True)
class ClassFolders:
    """Where the images of a split are; nothing is decoded. names: paths below ``root``, sorted; labels: int64 ``(N,)``."""

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]


def find_class_folders(path: Path, split: str) -> ClassFolders:
    """The images of ``split`` (``train`` or ``test``): below ``train/``, and below ``test/`` or else ``val/``.

    Without such a pair of folders the classes stand directly in ``path``, and serve for either split. Classes are the
    sub-folders that hold images, in sorted order. Raises DataError for a folder without images, or with some outside of
    any class.
    """
    tests = [path / name for name in ("test", "val") if (path / name).is_dir()]
    root = path
    if (path / "train").is_dir() and tests:
        root = path / "train" if split == "train" else tests[0]
    names = image_files(root)
    loose = [name for name in names if "/" not in name]
    if loose or not names:
        raise DataError(f"data {root}", expected="one sub-folder of images per class",
                        got=f"{loose[0]} outside of any" if loose else "no image files",
                        fix="put the images of each class into a folder named after it")
    classes = [name.split("/", 1)[0] for name in names]
    class_names = tuple(sorted(set(classes)))
    index = {name: i for i, name in enumerate(class_names)}
    return ClassFolders(root, tuple(names), np.array([index[name] for name in classes], np.int64), class_names)


@dataclass
class LabelledFiles:
    """A stream of decoded images: see :class:`hce_engine.images.LabelledSource`.

    Images must have one size unless ``spec`` brings them to its own. skip_bad: leave unreadable ones out, into ``skipped``.
    """

    folders: ClassFolders
    spec: InputSpec | None
    skip_bad: bool
    skipped: list[Skipped] = field(default_factory=list)

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
