"""Writes ``.hce`` files that :func:`hce_engine.artifact.save` would not: any document, any header, any bytes.

Independent of the package: json, hashlib and struct only, so that a fault in the writer cannot hide one in the reader.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

SIZES = {"F32": 4, "I32": 4, "U8": 1}


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Forged:
    """An artifact taken apart: ``document``, and ``tensors`` as {name: [type, shape, bytes]}; write() seals it again."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        self.document: Any = json.loads(header.pop("__metadata__")["hce"])
        self.text: str | None = None  # overrides the canonical text of the document
        self.digest: str | None = None
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, list[Any]] = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            self.tensors[name] = [entry["dtype"], entry["shape"], raw[8 + length + start : 8 + length + end]]

    def node(self, name: str) -> dict[str, Any]:
        return next(n for n in self.document["nodes"] if n["name"] == name)

    def set_bytes(self, name: str, data: bytes) -> None:
        """Replaces a tensor's bytes and its digest, as one would who edits with care."""
        self.tensors[name][2] = data
        node, param = name.split("/")
        self.node(node)["params"][param]["sha256"] = hashlib.sha256(data).hexdigest()

    def header(self) -> dict[str, Any]:
        text = dumps(self.document) if self.text is None else self.text
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() if self.digest is None else self.digest
        header: dict[str, Any] = {"__metadata__": {"hce": text, "hce_sha256": digest, **self.metadata}}
        offset = 0
        for name in sorted(self.tensors, key=lambda n: (-SIZES.get(self.tensors[n][0], 1), n)):
            dtype, shape, data = self.tensors[name]
            header[name] = {"data_offsets": [offset, offset + len(data)], "dtype": dtype, "shape": shape}
            offset += len(data)
        return header

    def seal(self, header: dict[str, Any] | str | None = None) -> bytes:
        """The bytes of the file; ``header`` overrides what the parts imply."""
        fields = self.header() if header is None else header
        text = fields if isinstance(fields, str) else json.dumps(fields, separators=(",", ":"))
        raw = text.encode("utf-8", "surrogatepass")
        raw += b" " * (-len(raw) % 8)
        order = sorted(self.tensors, key=lambda n: (-SIZES.get(self.tensors[n][0], 1), n))
        return struct.pack("<Q", len(raw)) + raw + b"".join(self.tensors[n][2] for n in order)
