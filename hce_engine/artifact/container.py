"""The bytes of a safetensors file, within caps and in one order only.

    8 bytes   N, the length of the header, unsigned little-endian
    N bytes   header: JSON, padded with spaces to a multiple of 8
    the rest  tensor data, in header order, without gaps

safetensors leaves the order of header entries open and its writer shuffles metadata. Here the header is a function of
its content (metadata first, tensors by falling element size and then name, canonical JSON), so that equal artifacts
are equal files and the reader can demand the one header that its document implies.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import safetensors

from ..errors import ArtifactError
from . import strict_json

HEADER_LIMIT = 4 << 20  # bytes; three float ResNet-110 members take 270 kB
FILE_LIMIT = 4 << 30  # bytes
TENSOR_LIMIT = 8192
DOCUMENT_KEY, DIGEST_KEY = "hce", "hce_sha256"
ELEMENT_BYTES = {"F32": 4, "I32": 4, "U8": 1}
_BUILD_AGAIN = "the file is damaged or was edited; copy or build it again"


@dataclass(frozen=True)
class Entry:
    """A stored tensor: safetensors type (F32, I32 or U8, little-endian) and shape, row-major."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ELEMENT_BYTES[self.dtype]


def in_order(entries: Mapping[str, Entry]) -> list[str]:
    """Names in the order of the file: falling element size, which keeps data aligned, then name."""
    return sorted(entries, key=lambda name: (-ELEMENT_BYTES[entries[name].dtype], name))


def header(document: str, entries: Mapping[str, Entry]) -> bytes:
    """Length field and header of the file that holds ``document`` and tensors of these entries."""
    fields: dict[str, object] = {}
    offset = 0
    for name in in_order(entries):
        end = offset + entries[name].nbytes
        fields[name] = {"dtype": entries[name].dtype, "shape": list(entries[name].shape), "data_offsets": [offset, end]}
        offset = end
    metadata = {DOCUMENT_KEY: document, DIGEST_KEY: hashlib.sha256(document.encode("ascii")).hexdigest()}
    # Two canonical texts joined, because the order of tensors is that of their data and not alphabetical.
    parts = ['"__metadata__":' + strict_json.canonical(metadata, "artifact header")]
    parts += [strict_json.canonical({name: value}, "artifact header")[1:-1] for name, value in fields.items()]
    text = ("{" + ",".join(parts) + "}").encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(file: BinaryIO, document: str, entries: Mapping[str, Entry], data: Mapping[str, memoryview]) -> None:
    """Writes the whole file; ``data`` holds the bytes of each entry."""
    file.write(header(document, entries))
    for name in in_order(entries):
        file.write(data[name])


class Reader:
    """An open artifact, read in two steps: the document within the header cap, then data of a size already proven.

    A symbolic link is followed; anything but a regular file is refused without waiting on it. The file is opened once,
    so that what was checked is what is read. Use as a context manager. Raises ArtifactError.
    """

    def __init__(self, path: str | Path) -> None:
        self.who = f"artifact {path}"
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            raise self._error("a readable file", getattr(error, "strerror", None) or str(error), "check the path") from None
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise self._error("a regular file", "something else", "pass the path of a .hce file")
        self.size = status.st_size
        self._file: BinaryIO = os.fdopen(handle, "rb")
        self._head = b""
        self._fields: dict[str, object] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _error(self, expected: str, got: str, fix: str = _BUILD_AGAIN) -> ArtifactError:
        return ArtifactError(self.who, expected=expected, got=got, fix=fix)

    def _read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``start``. The caller has bounded ``count`` by the file's size."""
        try:
            self._file.seek(start)
            data = self._file.read(count)
        except OSError as error:
            raise self._error("a readable file", error.strerror or str(error), "check the disk") from None
        if len(data) != count:
            raise self._error(f"{count} bytes from offset {start}", f"{len(data)}", "the file changed while being read")
        return data

    def document(self) -> bytes:
        """Text of the document, its digest checked. Nothing in it is trusted otherwise."""
        if not 16 <= self.size <= FILE_LIMIT:
            raise self._error(f"a file of 16 bytes to {FILE_LIMIT >> 30} GiB", f"{self.size} bytes")
        (length,) = struct.unpack("<Q", self._read(0, 8))
        if length > HEADER_LIMIT or length > self.size - 8:
            raise self._error(
                f"a header of at most {min(HEADER_LIMIT, self.size - 8)} bytes", f"{length}",
                "this is no .hce file, or it is truncated",
            )
        self._head = self._read(0, 8 + length)
        fields = strict_json.loads(self._head[8:], self.who)
        if not isinstance(fields, dict):
            raise self._error("a JSON object as header", type(fields).__name__)
        metadata = fields.pop("__metadata__", None)
        if not isinstance(metadata, dict) or set(metadata) != {DOCUMENT_KEY, DIGEST_KEY}:
            raise self._error(f"metadata {DOCUMENT_KEY} and {DIGEST_KEY}", "none or others", "this is no .hce file")
        if not all(isinstance(v, str) for v in metadata.values()):
            raise self._error("metadata of strings", "other types")
        if len(fields) > TENSOR_LIMIT:
            raise self._error(f"at most {TENSOR_LIMIT} tensors", str(len(fields)))
        self._fields = fields
        text = metadata[DOCUMENT_KEY].encode("utf-8", "surrogatepass")
        if hashlib.sha256(text).hexdigest() != metadata[DIGEST_KEY]:
            raise self._error(f"a document of SHA-256 {metadata[DIGEST_KEY][:64]!r}", "another digest")
        return text

    def tensors(self, document: str, entries: Mapping[str, Entry]) -> dict[str, bytearray]:
        """Bytes of each tensor, after :meth:`document`; ``entries`` and the header must agree on what the file holds."""
        missing, extra = entries.keys() - self._fields.keys(), self._fields.keys() - entries.keys()
        if missing or extra:
            raise self._error("the tensors of its document", f"missing {_some(missing)}, extra {_some(extra)}")
        if header(document, entries) != self._head:
            raise self._error("the header that its document implies", "other types, shapes, offsets or spelling")
        payload = sum(e.nbytes for e in entries.values())
        if len(self._head) + payload != self.size:
            raise self._error(f"{len(self._head) + payload} bytes", f"{self.size}")
        blob = self._read(0, self.size)
        if not blob.startswith(self._head):
            raise self._error("an unchanging file", "another header on second reading", "load it when it is written")
        try:
            return {name: tensor["data"] for name, tensor in safetensors.deserialize(blob)}
        except safetensors.SafetensorError as error:
            raise self._error("a valid safetensors file", str(error)) from None


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(repr(n)[:60] for n in listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "none"
