"""Saving and loading artifacts. Loading answers with a verified artifact or an ArtifactError, whatever the file holds.

Order of a load: size of the file, length of the header, header JSON, digest and canonical form of the document, its
schema, the header that it implies, the exact size of the file; only then are tensors read, once, and checked against
their digests, unpacked, and the graph verified. Peak memory: twice the file while the safetensors library copies it out,
then one file plus the unpacked codes (one byte each) of quantized members.
"""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np

from .. import bitpack
from ..atomic import atomic_write
from ..dtypes import DTYPES
from ..errors import ArtifactError, GraphError
from ..graph import verify
from . import container, document, strict_json
from .document import Artifact, Stored, tensor_name

_LITTLE_ENDIAN = {"f32": np.dtype("<f4"), "s32": np.dtype("<i4")}


def save(path: str | Path, artifact: Artifact) -> None:
    """Writes ``artifact`` to ``path``, whole or not at all. Equal artifacts give equal bytes.

    Raises GraphError for an illegal graph, ArtifactError for values that the format cannot hold (NaN in the ledger,
    control characters in a name, one class name too many), WriteError for a full disk.
    """
    who = f"artifact {path}"
    verify(artifact.graph)
    entries: dict[str, container.Entry] = {}
    data: dict[str, memoryview] = {}
    for node in artifact.graph.nodes:
        for key, value in node.params.items():
            name, dtype = tensor_name(node.name, key), document.param_dtype(node.op, key, node.attrs)
            entries[name] = document.stored_entry(dtype, value.shape)
            data[name] = _raw_bytes(value, dtype)
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in data.items()}
    text = strict_json.canonical(document.encode(artifact, digests), who)
    # The reader's own rules, so that nothing is written that it would refuse.
    _check_whole(document.decode(strict_json.parse(text.encode("ascii"), who), who).artifact, who)
    length = len(container.header(text, entries))
    if length > container.HEADER_LIMIT or length + sum(map(len, data.values())) > container.FILE_LIMIT:
        raise ArtifactError(who, expected=f"a header of {container.HEADER_LIMIT >> 20} MiB in {container.FILE_LIMIT >> 30} GiB",
                            got=f"{length} bytes of header", fix="store fewer members or a shorter provenance")
    with atomic_write(path) as file:
        container.write(file, text, entries, data)


def load(path: str | Path) -> Artifact:
    """The artifact in ``path``; raises ArtifactError for a file that is not exactly what :func:`save` writes."""
    with container.Reader(path) as reader:
        text = reader.document()
        outline = document.decode(strict_json.parse(text, reader.who), reader.who)
        _check_whole(outline.artifact, reader.who)
        entries = {name: stored.entry for name, stored in outline.stored.items()}
        raw = reader.tensors(text.decode("ascii"), entries)
    # Popped one by one, so that packed codes are freed as they are unpacked.
    arrays = {name: _array(raw.pop(name), stored, f"{reader.who}: tensor {name}") for name, stored in outline.stored.items()}
    artifact = document.fill(outline, arrays)
    try:
        verify(artifact.graph)
    except GraphError as error:
        raise ArtifactError(f"{reader.who}: {error.who}", expected=error.expected, got=error.got, fix=error.fix) from None
    return artifact


def digest(path: str | Path) -> str:
    """Identity of the artifact in ``path``: SHA-256 of its document, which holds the SHA-256 of every tensor.

    Reads the header only; :func:`load` is what checks tensors against it. Raises ArtifactError.
    """
    with container.Reader(path) as reader:
        return hashlib.sha256(reader.document()).hexdigest()


def _raw_bytes(value: np.ndarray, dtype: str) -> memoryview:
    if DTYPES[dtype].is_weight_code:
        value = bitpack.pack(value.reshape(value.shape[0], -1), dtype)
    else:
        value = np.ascontiguousarray(value, _LITTLE_ENDIAN[dtype])
    return value.reshape(-1).view(np.uint8).data


def _array(raw: bytearray, stored: Stored, who: str) -> np.ndarray:
    if hashlib.sha256(raw).hexdigest() != stored.sha256:
        raise ArtifactError(who, expected=f"SHA-256 {stored.sha256}", got="another digest",
                            fix="the file is damaged; copy or build it again")
    if stored.dtype in _LITTLE_ENDIAN:
        kind = _LITTLE_ENDIAN[stored.dtype]
        return np.frombuffer(raw, kind).astype(kind.newbyteorder("="), copy=False).reshape(stored.shape)
    rows = stored.shape[0]
    packed = np.frombuffer(raw, np.uint8).reshape(stored.entry.shape)
    try:
        return bitpack.unpack(packed, prod(stored.shape[1:]), stored.dtype).reshape(stored.shape)
    except ValueError as error:
        raise ArtifactError(who, expected=f"{rows} rows of packed {stored.dtype}", got=str(error), fix="build it again") from None


def _check_whole(artifact: Artifact, who: str) -> None:
    """What binds the parts of an artifact together and needs no arrays."""
    graph, image = artifact.graph, artifact.input
    first = graph.nodes[0] if graph.nodes else None
    want = image.input_node().spec
    if first is None or first.op != "input" or (first.spec.shape, first.spec.dtype) != (want.shape, want.dtype):
        raise ArtifactError(who, expected=f"an input node of {want}, as the input specification says",
                            got=str(first.spec) if first else "no nodes", fix="build it again")
    logits = {graph[m.output].spec.shape for m in graph.members if m.output in graph}
    if artifact.classes is not None and logits != {(len(artifact.classes),)}:
        raise ArtifactError(who, expected="one class name per logit", got=f"{len(artifact.classes)} names, logits {logits}",
                            fix="pass as many names as the members have outputs")
