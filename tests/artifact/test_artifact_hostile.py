"""Hostile files: every rule of docs/ARTIFACT.md broken on purpose, one at a time, digests redone where one would."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine.artifact import Artifact, digest, load, save
from hce_engine.artifact.container import FILE_LIMIT, HEADER_LIMIT
from hce_engine.errors import ArtifactError

from .forge import Forged, dumps


@pytest.fixture
def good(artifact: Artifact, tmp_path: Path) -> Path:
    save(tmp_path / "good.hce", artifact)
    return tmp_path / "good.hce"


def refused(tmp_path: Path, data: bytes, match: str | None = None) -> None:
    path = tmp_path / "bad.hce"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=match):
        load(path)


def test_forging_without_a_change_loads(good: Path, tmp_path: Path) -> None:
    assert Forged(good).seal() == good.read_bytes()


def test_every_truncation_is_refused(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    for size in [*range(40), *range(40, len(raw), 97), len(raw) - 1]:
        refused(tmp_path, raw[:size])


def test_appended_bytes_are_refused(good: Path, tmp_path: Path) -> None:
    for tail in (b"\0", b" ", b"x" * 4096):
        refused(tmp_path, good.read_bytes() + tail, "bytes")


def test_a_thousand_flipped_bits_are_all_found(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    for bit in np.random.default_rng(0).choice(8 * len(raw), 1000, replace=False).tolist():
        raw[bit // 8] ^= 1 << bit % 8
        refused(tmp_path, bytes(raw))
        raw[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [0, 1, HEADER_LIMIT + 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_header_length(good: Path, tmp_path: Path, length: int) -> None:
    refused(tmp_path, struct.pack("<Q", length) + good.read_bytes()[8:])


def test_sparse_files_are_refused_before_they_are_read(good: Path, tmp_path: Path) -> None:
    for size in (3 << 30, FILE_LIMIT + 1):
        path = tmp_path / "sparse.hce"
        path.write_bytes(good.read_bytes())
        os.truncate(path, size)
        with pytest.raises(ArtifactError, match="bytes"):
            load(path)
        path.unlink()


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    for name in ("missing", "fifo", "loop", ".", "nul\0name"):
        for call in (load, digest):
            with pytest.raises(ArtifactError):
                call(f"{tmp_path}/{name}")
    with pytest.raises(ArtifactError, match="regular file"):
        load("/dev/zero")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "null", "[]", "7", '"x"', "", "{", "\ufeff{}", '{"é":1}'])
def test_header_text(good: Path, tmp_path: Path, text: str) -> None:
    refused(tmp_path, Forged(good).seal(text))


def test_pickles_and_other_formats(tmp_path: Path) -> None:
    for head in (b"\x80\x04\x95", b"PK\x03\x04", b"\x93NUMPY", b"GGUF"):
        refused(tmp_path, head + bytes(200))


def test_a_plain_safetensors_file_is_no_artifact(tmp_path: Path) -> None:
    from safetensors.numpy import save as plain

    refused(tmp_path, plain({"a": np.zeros(3, np.float32)}), "no .hce file")


def test_document_digest(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.digest = "0" * 64
    refused(tmp_path, forged.seal(), "SHA-256")
    forged.digest, forged.document["accuracy"]["q"] = None, 0.99
    (tmp_path / "bad.hce").write_bytes(forged.seal())
    assert digest(tmp_path / "bad.hce") != digest(good)  # an honest edit is another artifact


def test_tensor_digest(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    data = bytearray(forged.tensors["s.conv/weight"][2])
    data[0] ^= 1
    forged.tensors["s.conv/weight"][2] = bytes(data)
    refused(tmp_path, forged.seal(), "s.conv/weight.*SHA-256")


@pytest.mark.parametrize(
    "respell",
    [
        lambda t: t.replace('"classes":', '"classes": ', 1),
        lambda t: t.replace('"zero_point":0', '"zero_point":-0', 1),
        lambda t: t.replace("0.5", "5e-1", 1),
        lambda t: t.replace('"low":0.0', '"low":0.0,"low":0.0', 1),
        lambda t: t.replace('"low":0.0', '"low":NaN', 1),
        lambda t: t.replace('"high":1.0', '"high":Infinity', 1),
        lambda t: t.replace('"high":1.0', '"high":1e999', 1),
        lambda t: t.replace('"high":1.0', '"high":' + "9" * 5000, 1),
        lambda t: t.replace('"high":1.0', '"high":9007199254740993', 1),
        lambda t: t.replace('"ledger":{', '"ledger":{"a":' + "[" * 2000 + "]" * 2000 + ",", 1),
        lambda t: t + " ",
        lambda t: t.replace("caf\\u00e9", "café", 1),
        lambda t: t.replace("caf\\u00e9", "caf\\ud800", 1),
    ],
)
def test_spelling_of_the_document(good: Path, tmp_path: Path, respell: Callable[[str], str]) -> None:
    forged = Forged(good)
    forged.text = respell(dumps(forged.document))
    assert forged.text != dumps(forged.document)
    refused(tmp_path, forged.seal())


def test_schema_version(good: Path, tmp_path: Path) -> None:
    for version in (0, 2, 10**9):
        forged = Forged(good)
        forged.document = {"schema_version": version, "anything": []}
        refused(tmp_path, forged.seal(), "schema version 1")


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Path of every object in a document."""
    found = [path] if isinstance(value, dict) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [p for key, item in items for p in places(item, (*path, key))]


def test_unknown_and_missing_keys_at_every_level(good: Path, tmp_path: Path) -> None:
    document = Forged(good).document
    strict = [p for p in places(document) if not p or p[0] not in ("ledger", "provenance", "accuracy")]
    assert len(strict) > 100
    for path in strict:
        for change in ("extra", "missing"):
            forged = Forged(good)
            target = forged.document
            for step in path:
                target = target[step]
            if change == "extra":
                target["surprise"] = 1
            elif target:
                del target[sorted(target)[0]]
            else:
                continue
            refused(tmp_path, forged.seal())


def edit(path: str, value: object) -> Callable[[Forged], None]:
    """``a.b.2.c`` of the document becomes ``value``."""

    def change(forged: Forged) -> None:
        target, *steps = forged.document, *path.split("/")
        for step in steps[:-1]:
            target = forged.node(step[1:]) if step.startswith("@") else target[int(step) if step.isdigit() else step]
        last = steps[-1]
        target[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ensemble", "max"), ("ensemble", 1), ("classes", []), ("classes", ["a", "b", "c"]), ("classes/0", 7),
        ("classes/0", "\x1b]0;x\x07"), ("members", []), ("members", {}), ("members/0/role", "king"),
        ("members/0/output", "nowhere"), ("members/0/name", "ensemble"), ("members/0/name", "s"), ("members/0/name", None),
        ("input/kind", "uint8_nchw"),
        ("input/shape", [3, 9, 8]), ("input/shape", [3, 9]), ("input/shape", [3, 9, 7.0]), ("input/shape/0", True),
        ("input/mean", [0.5]), ("input/mean/0", "x"), ("input/std/0", 0), ("input/std/0", -1.0), ("input/low", 0.5),
        ("input/low", False), ("input/resize", "stretch"), ("nodes", []), ("nodes", None), ("nodes/0", []),
        ("@q.c1/op", "exec"), ("@q.c1/op", "qlinear"), ("@q.c1/op", ["qconv2d"]), ("@q.c1/name", "q.c2"),
        ("@q.c1/name", "../../etc/passwd"), ("@q.c1/name", 'a"b'), ("@q.c1/inputs", ["q.c2"]), ("@q.c1/inputs", []),
        ("@q.c1/inputs", ["q.c1"]), ("@q.c1/inputs", [[]]), ("@q.c1/attrs/groups", 0), ("@q.c1/attrs/groups", True),
        ("@q.c1/attrs/groups", 2**40), ("@q.c1/attrs/stride", [0, 1]), ("@q.c1/attrs/stride", [1]),
        ("@q.c1/attrs/padding", [-1, 1]), ("@q.c1/attrs/padding", [2**31 - 1, 1]), ("@q.c1/attrs/bits", [3, 8]),
        ("@q.c1/attrs/bits", [1, 3]), ("@q.c1/attrs/qmax", 16), ("@q.c1/attrs/qmin", -1),
        ("@q.c1/attrs/weight_dtype", "s4"), ("@q.c1/attrs/weight_dtype", "u8"), ("@q.c1/attrs/weight_dtype", None),
        ("@q.c1/attrs/pad_code", [8] * 5), ("@q.c1/attrs/pad_code", [0] * 4), ("@q.c1/attrs/pad_code", [[0]] * 5),
        ("@q.c2/attrs/residual_multiplier", 0), ("@q.c2/attrs/residual_multiplier", 1e30),
        ("@q.c2/attrs/residual_multiplier", 0.1), ("@q.low/attrs/k", 0), ("@q.low/attrs/k", 2**23),
        ("@q.pool/attrs/multiplier", 1e300), ("@q.c1/spec/shape", [7, 9, 8]), ("@q.c1/spec/shape", [0, 9, 7]),
        ("@q.c1/spec/shape", [2**20, 2**20, 7]), ("@q.c1/spec/dtype", "u5"), ("@q.c1/spec/dtype", "f32"),
        ("@q.c1/spec/scale", 0), ("@q.c1/spec/scale", -1.0), ("@q.c1/spec/scale", "1"), ("@q.c1/spec/zero_point", 99),
        ("@q.c1/spec/zero_point", 0.0), ("@q.c1/source", 5), ("@q.c1/source", "x" * 1000),
        ("@q.c1/params/weight/dtype", "s8"), ("@q.c1/params/weight/dtype", "f32"),
        ("@q.c1/params/weight/shape", [7, 5, 3]), ("@q.c1/params/weight/shape", [7, 5, 9, 1]),
        ("@q.c1/params/weight/shape", [5, 7, 3, 3]), ("@q.c1/params/weight/shape", [7, 5, 3, 0]),
        ("@q.c1/params/weight/shape", [7, 2**20, 2**20, 2**20]), ("@q.c1/params/weight/shape", [7, 5, 3, 3.0]),
        ("@q.c1/params/weight/shape", [7, 2**63]), ("@q.c1/params/weight/shape", []),
        ("@q.c1/params/weight/sha256", "0" * 64), ("@q.c1/params/weight/sha256", "0" * 63),
        ("@q.c1/params/weight/sha256", None), ("@s.conv/attrs/max", -1),
        ("@s.conv/attrs/folded_norm", 2), ("@image/spec/dtype", "f32"), ("@image/spec/shape", [3, 7, 9]),
        ("ledger", []), ("provenance", None), ("accuracy/q", "\x00"), ("schema_version", True), ("schema_version", "1"),
    ],
)
def test_one_edited_value(good: Path, tmp_path: Path, path: str, value: object) -> None:
    forged = Forged(good)
    edit(path, value)(forged)
    refused(tmp_path, forged.seal())


def test_somebody_must_vote(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    for member in forged.document["members"]:
        member["role"] = "reference"
    refused(tmp_path, forged.seal(), "votes")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(good: Path, tmp_path: Path, bad: float) -> None:
    for name in ("s.conv/weight", "q.c1/multiplier", "o.norm/scale"):
        forged = Forged(good)
        values = np.frombuffer(forged.tensors[name][2], "<f4").copy()
        values[-1] = bad
        forged.set_bytes(name, values.tobytes())
        refused(tmp_path, forged.seal(), "finite")


def test_a_bias_that_overflows_the_accumulator(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.set_bytes("q.c1/bias", np.full(7, 2**31 - 1, "<i4").tobytes())
    refused(tmp_path, forged.seal(), "2\\^31")


def test_padding_bits_in_packed_weights(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    data = bytearray(forged.tensors["q.c1/weight"][2])
    data[17] |= 0x80  # 45 columns: the last byte of a row's high plane holds 5 bits
    forged.set_bytes("q.c1/weight", bytes(data))
    refused(tmp_path, forged.seal(), "padding")


def test_header_entries_must_be_those_of_the_document(good: Path, tmp_path: Path) -> None:
    def change(name: str, **fields: object) -> str:
        header = Forged(good).header()
        header[name] = {**header[name], **fields}
        return json.dumps(header, separators=(",", ":"))

    forged = Forged(good)
    for text in (
        change("o.fc/bias", shape=[2, 2]), change("o.fc/bias", dtype="I32"), change("o.fc/bias", shape=[2**62, 4]),
        change("o.fc/bias", data_offsets=[0, 16]), change("o.fc/bias", data_offsets=[-16, 0]),
        change("o.fc/bias", data_offsets=[2**63, 2**63 + 16]), change("o.fc/bias", extra=1),
    ):
        refused(tmp_path, forged.seal(text))
    extra = Forged(good)
    extra.tensors["z"] = ["U8", [4], b"abcd"]
    refused(tmp_path, extra.seal(), "extra 'z'")
    missing = Forged(good)
    del missing.tensors["o.fc/bias"]
    refused(tmp_path, missing.seal(), "missing 'o.fc/bias'")
    metadata = Forged(good)
    metadata.metadata["path"] = "/etc/passwd"
    refused(tmp_path, metadata.seal())


def test_many_tensors_and_nodes(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.tensors |= {f"t{i}": ["U8", [1], b"x"] for i in range(9000)}
    refused(tmp_path, forged.seal(), "tensors")
    forged = Forged(good)
    forged.document["nodes"] += [forged.node("o.flat")] * 9000
    refused(tmp_path, forged.seal())


def test_the_message_says_what_to_do(good: Path, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.document["input"]["colour"] = "bgr"
    refused(tmp_path, forged.seal(), r"artifact .*bad\.hce: input: expected exactly the keys .*, got .*colour.*; .*build it again")


def test_digest_is_that_of_the_document(good: Path) -> None:
    assert digest(good) == hashlib.sha256(dumps(Forged(good).document).encode()).hexdigest()
