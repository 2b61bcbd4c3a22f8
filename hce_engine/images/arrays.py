"""``.npy`` and ``.npz`` arrays read row by row: a ``.npy`` is mapped, a ``.npz`` is decompressed as it is consumed.

So a file larger than memory streams, and a header that promises more than its file holds is found before anything of that
size is allocated. Arrays of Python objects, which numpy stores as pickles, are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError

# What zipfile raises for damage, encryption, and compression methods that this Python lacks.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, ValueError)


class Rows(Protocol):
    """An array on disk that is read along its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Contiguous arrays of ``size`` rows, the last one shorter."""
        ...


class MappedRows:
    """A ``.npy`` file, memory-mapped read-only."""

    def __init__(self, path: Path) -> None:
        try:
            self._array = npy.open_memmap(path, mode="r")
        except Exception as error:  # numpy's header parser fails in many ways on hostile text
            raise _bad(path, str(error)) from None
        self.shape, self.dtype = self._array.shape, self._array.dtype
        if not self.shape:
            raise _bad(path, "a single number")

    def batches(self, size: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[0], size):
            yield np.array(self._array[start : start + size], order="C")


class ZippedRows:
    """One array of a ``.npz`` archive."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, f"{name}.npy"
        with self._open() as (stream, size):
            try:
                version = npy.read_magic(stream)
                read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
                self.shape, fortran, self.dtype = read_header(stream)
                header = stream.tell()
            except Exception as error:  # as above
                raise self._bad(str(error)) from None
        if self.dtype.hasobject or self.dtype.kind not in "buifU":
            raise self._bad(f"elements of type {self.dtype}")
        if not self.shape or (fortran and len(self.shape) > 1):
            raise self._bad("a single number" if not self.shape else "column-major order")
        if size != header + prod(self.shape) * self.dtype.itemsize:
            raise self._bad(f"shape {self.shape} {self.dtype} in {size} bytes")
        self._header = header

    def _bad(self, got: str) -> DataError:
        return _bad(f"{self._path}[{self._name}]", got)

    def _open(self) -> _Member:
        return _Member(self._path, self._name)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        with self._open() as (stream, _):
            self._read(stream, self._header)
            row = prod(self.shape[1:]) * self.dtype.itemsize
            for start in range(0, self.shape[0], size):
                count = min(size, self.shape[0] - start)
                yield np.frombuffer(self._read(stream, count * row), self.dtype).reshape(count, *self.shape[1:])

    def _read(self, stream: IO[bytes], count: int) -> bytearray:
        data = bytearray()
        try:
            while len(data) < count:
                piece = stream.read(count - len(data))
                if not piece:
                    raise EOFError("the archive ends early")
                data += piece
        except _ZIP_ERRORS as error:
            raise self._bad(str(error)) from None
        return data


class _Member:
    """An open member of an archive and its size: closes both, whatever happens in between."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise _bad(path, str(error)) from None
        try:
            self._stream = self._archive.open(name)
        except (KeyError, *_ZIP_ERRORS) as error:
            self._archive.close()
            raise _bad(f"{path}[{name}]", str(error)) from None
        self._size = self._archive.getinfo(name).file_size

    def __enter__(self) -> tuple[IO[bytes], int]:
        return self._stream, self._size

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an archive, in its order; raises DataError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except _ZIP_ERRORS as error:
        raise _bad(path, str(error)) from None


def whole(rows: Rows) -> np.ndarray:
    """The whole array in memory."""
    parts = list(rows.batches(max(1, (1 << 24) // max(1, prod(rows.shape[1:]) * rows.dtype.itemsize))))
    return np.concatenate(parts) if parts else np.empty(rows.shape, rows.dtype)


def _bad(path: str | Path, got: str) -> DataError:
    return DataError(f"data {path}", expected="a numpy array of numbers, row-major", got=got[:200],
                     fix="write it with np.save or np.savez from a plain array")
