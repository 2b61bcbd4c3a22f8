"""Predictions on their way into a file: one row per image, ``.csv`` as they come, ``.npz`` at the end."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.lib import format as npy

from ..atomic import atomic_write
from ..errors import InputError

NO_CLASS = -1  # of an image with NaN or Inf, in an .npz; the .csv field is empty


class Writer(Protocol):
    """Takes predictions batch by batch."""

    def add(self, names: Sequence[str], logits: np.ndarray) -> None: ...


def top_class(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(class int64 ``(N,)``, its softmax probability float32 ``(N,)``); :data:`NO_CLASS` and NaN where logits hold NaN."""
    z = logits.astype(np.float64)
    bad = ~np.isfinite(z).all(axis=1)
    z[bad] = 0.0
    chosen = z.argmax(axis=1)
    probability = 1.0 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return np.where(bad, NO_CLASS, chosen), np.where(bad, np.nan, probability).astype(np.float32)


class _CsvWriter:
    def __init__(self, file: BinaryIO, key: str, classes: tuple[str, ...] | None) -> None:
        self._file, self._classes = file, classes
        self._rows([(key, "class", "probability")])

    def _rows(self, rows: Sequence[Sequence[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode("utf-8", "surrogateescape"))  # a file name may be any bytes

    def add(self, names: Sequence[str], logits: np.ndarray) -> None:
        rows = []
        for name, label, probability in zip(names, *top_class(logits), strict=True):
            shown = "" if label == NO_CLASS else self._classes[label] if self._classes else str(label)
            rows.append((name, shown, f"{probability:.6f}"))
        self._rows(rows)


class _NpzWriter:
    def __init__(self, key: str, classes: tuple[str, ...] | None) -> None:
        self._key, self._classes = key, classes
        self._names: list[str] = []
        self._labels: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def add(self, names: Sequence[str], logits: np.ndarray) -> None:
        labels, probabilities = top_class(logits)
        self._names.extend(names)
        self._labels.append(labels)
        self._probabilities.append(probabilities)

    def finish(self, file: BinaryIO) -> None:
        names = np.array([int(n) for n in self._names]) if self._key == "index" else np.array(self._names, dtype=np.str_)
        arrays: dict[str, Any] = {
            self._key: names,
            "class": np.concatenate([np.empty(0, np.int64), *self._labels]),
            "probability": np.concatenate([np.empty(0, np.float32), *self._probabilities]),
            "class_names": np.array(self._classes or (), dtype=np.str_),
        }
        # Not np.savez: one of the arrays has the name of its own first parameter, ``file``.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    npy.write_array(stream, array, allow_pickle=False)


@contextmanager
def open_predictions(path: Path, key: str, classes: tuple[str, ...] | None) -> Iterator[Writer]:
    """A writer whose file appears, whole, when the block ends without an exception.

    key: name of the first column, ``index`` or ``file``.  classes: names to write instead of numbers (``.csv``) or beside
    them (``.npz``: arrays ``index`` or ``file``, ``class``, ``probability``, ``class_names``).
    Raises InputError for a suffix other than .csv and .npz, WriteError when the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".npz"):
        raise InputError("--out", expected="a file that ends with .csv or .npz", got=repr(path.name), fix="rename it")
    with atomic_write(path) as file:
        if suffix == ".csv":
            yield _CsvWriter(file, key, classes)
        else:
            writer = _NpzWriter(key, classes)
            yield writer
            writer.finish(file)
