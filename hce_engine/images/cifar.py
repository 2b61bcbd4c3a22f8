"""The official binary files of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html).

CIFAR-10 record: 1 byte label, then 3072 bytes of pixels ``[3, 32, 32]``; files ``data_batch_1.bin`` .. ``data_batch_5.bin``
and ``test_batch.bin``. CIFAR-100 record: coarse label, fine label (the one that is used), pixels; ``train.bin``, ``test.bin``.
The official files hold 10,000 (CIFAR-100 train: 50,000) records; any whole number is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFolder:
    """A folder that holds CIFAR binary files. ``record`` is the bytes of one image, labels included."""

    folder: Path
    classes: int
    files: dict[str, tuple[str, ...]]  # split -> file names
    names_file: str

    @property
    def record(self) -> int:
        return _PIXELS + (1 if self.classes == 10 else 2)

    def class_names(self) -> tuple[str, ...]:
        """From the names file beside the data; "0", "1", ... if there is none."""
        path = self.folder / self.names_file
        if not path.is_file():
            return tuple(map(str, range(self.classes)))
        try:
            names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data {path}", expected="a text file", got=str(error), fix="download CIFAR again") from None
        if len(names) != self.classes or not all(map(str.isprintable, names)):
            raise DataError(f"data {path}", expected=f"{self.classes} printable class names", got=f"{len(names)} lines",
                            fix="download CIFAR again, or delete the file")
        return names

    def records(self, split: str) -> list[tuple[Path, int]]:
        """Files of a split and how many records each holds; raises DataError for a missing or cut file."""
        found = []
        for name in self.files[split]:
            path = self.folder / name
            try:
                size = path.stat().st_size
            except OSError:
                raise DataError(f"data {self.folder}", expected=f"the file {name}", got="none of this name",
                                fix="download the whole archive again") from None
            if size == 0 or size % self.record:
                raise DataError(f"data {path}", expected=f"a whole number of records of {self.record} bytes",
                                got=f"{size} bytes", fix="the download was cut short; fetch it again")
            found.append((path, size // self.record))
        return found

    def read(self, path: Path, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 ``(n, 32, 32, 3)`` and labels int64 ``(n,)`` of ``count`` records of a file, from ``first``."""
        try:
            raw = np.fromfile(path, np.uint8, count * self.record, offset=first * self.record)
        except OSError as error:
            raise DataError(f"data {path}", expected="a readable file", got=str(error), fix="check the disk") from None
        if raw.size != count * self.record:
            raise DataError(f"data {path}", expected=f"{count} records from {first}", got=f"{raw.size} bytes",
                            fix="the file changed while being read")
        rows = raw.reshape(count, self.record)
        labels = rows[:, -_PIXELS - 1].astype(np.int64)
        if labels.size and labels.max() >= self.classes:
            raise DataError(f"data {path}", expected=f"labels from 0 to {self.classes - 1}", got=str(labels.max()),
                            fix="this is no CIFAR binary file, or it is damaged; fetch it again")
        images = rows[:, -_PIXELS:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), labels

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels of a split, files in order."""
        parts = [self.read(path, 0, count) for path, count in self.records(split)]
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def find_cifar(path: Path) -> CifarFolder | None:
    """The CIFAR folder at ``path`` or in its usual sub-folder; None where no file has a CIFAR name.

    Raises DataError for the Python version of the archive, which is made of pickles.
    """
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-100-binary"):
        ten = CifarFolder(
            folder, 10, {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
            "batches.meta.txt",
        )
        hundred = CifarFolder(folder, 100, {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt")
        for candidate in (ten, hundred):
            if any((folder / name).is_file() for names in candidate.files.values() for name in names):
                return candidate
    for name in ("data_batch_1", "cifar-10-batches-py/data_batch_1", "cifar-100-python/train"):
        if (path / name).is_file():
            raise DataError(f"data {path}", expected="the binary version of CIFAR", got=f"the Python version ({name})",
                            fix="download cifar-10-binary.tar.gz or cifar-100-binary.tar.gz: pickles are not read")
    return None
