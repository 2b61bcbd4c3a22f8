"""Structure-aware mutation: whatever is done to a file, loading ends in an ArtifactError or in a valid artifact.

Two mutators. One edits the parsed document (values, keys, lists, with tensor bytes if they are chosen) and redoes every
digest, so that mutations reach the semantic checks; the other edits bytes, as damage does. A load that succeeds must
verify, must save to the very bytes that were loaded, and must run.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hce_engine.artifact import Artifact, load, save
from hce_engine.backends import reference
from hce_engine.errors import ArtifactError
from hce_engine.graph import verify

from .forge import Forged

RUN = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))

SPITEFUL = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 2, 7, 8, 255, 256, 2**20, 2**20 + 1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63, 10**30,
        0.0, -0.0, 0.5, 1e-45, 3.5e38, 1e308, "", "q", "s8", "f32", "input", "../x", "a/b", "\x00", "\ud800", "é" * 400, [], {},
        [0], [0, 0], [-1, 1], [2**31, 2**31], [[]], {"a": 1}, ["q.c1"], ["image"],
    ]),
    st.integers(-(2**64), 2**64), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.lists(st.integers(-3, 2**33), max_size=5),
)


def spots(value: Any, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in [(*path, key), *spots(item, (*path, key))]]


def mutate(data: st.DataObject, document: Any) -> None:
    *steps, last = data.draw(st.sampled_from(spots(document)))
    target = document
    for step in steps:
        target = target[step]
    kind = data.draw(st.sampled_from(["replace", "replace", "delete", "add", "copy", "swap", "nudge"]))
    if kind == "delete":
        del target[last]
    elif kind == "add" and isinstance(target, dict):
        target[data.draw(st.text(max_size=6))] = data.draw(SPITEFUL)
    elif kind == "add":
        target.insert(last, data.draw(SPITEFUL))
    elif kind == "copy":
        elsewhere = document
        for step in data.draw(st.sampled_from(spots(document))):
            elsewhere = elsewhere[step]
        target[last] = copy.deepcopy(elsewhere)
    elif kind == "swap" and isinstance(target, list):
        other = data.draw(st.integers(0, len(target) - 1))
        target[last], target[other] = target[other], target[last]
    elif kind == "nudge" and type(target[last]) in (int, float):
        target[last] += data.draw(st.sampled_from([-1, 1, 2, -3]))
    else:
        target[last] = data.draw(SPITEFUL)


def judge(path: Path, data: bytes) -> bool:
    """Loads; True if the file was accepted, after checking that it deserved it."""
    path.write_bytes(data)
    try:
        artifact = load(path)
    except ArtifactError:
        return False
    verify(artifact.graph)
    again = path.with_suffix(".again")
    save(again, artifact)
    assert again.read_bytes() == data
    if max(n.spec.elements for n in artifact.graph.nodes) < 1 << 16:
        with np.errstate(all="ignore"):  # absurd but finite parameters may overflow to infinity, as floats do
            logits = reference.run(artifact.graph, np.zeros((1, *artifact.input.shape), np.uint8))
        assert set(logits) == {m.name for m in artifact.graph.members}
    return True


@pytest.fixture(scope="module")
def seed(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mutation") / "seed.hce"
    save(path, artifact)
    return path


@given(data=st.data())
@RUN
def test_edited_documents(seed: Path, data: st.DataObject) -> None:
    forged = Forged(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data, forged.document)
    judge(seed.with_name("edited.hce"), forged.seal())


@given(data=st.data())
@RUN
def test_edited_tensors(seed: Path, data: st.DataObject) -> None:
    forged = Forged(seed)
    name = data.draw(st.sampled_from(sorted(forged.tensors)))
    raw = bytearray(forged.tensors[name][2])
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    forged.set_bytes(name, bytes(raw))
    judge(seed.with_name("tensors.hce"), forged.seal())


@given(data=st.data())
@RUN
def test_edited_headers(seed: Path, data: st.DataObject) -> None:
    forged = Forged(seed)
    header = forged.header()
    mutate(data, header)
    try:
        raw = forged.seal(header)
    except TypeError:  # the mutation made a key that JSON has no spelling for
        return
    assert not judge(seed.with_name("header.hce"), raw) or raw == seed.read_bytes()


@given(data=st.data())
@RUN
def test_damaged_bytes(seed: Path, data: st.DataObject) -> None:
    raw = bytearray(seed.read_bytes())
    size = len(raw)
    start = data.draw(st.one_of(st.integers(0, 64), st.integers(0, size - 1)))
    length = data.draw(st.integers(0, 64))
    kind = data.draw(st.sampled_from(["overwrite", "insert", "delete", "truncate", "duplicate"]))
    piece = data.draw(st.binary(min_size=length, max_size=length))
    if kind == "overwrite":
        raw[start : start + length] = piece
    elif kind == "insert":
        raw[start:start] = piece
    elif kind == "delete":
        del raw[start : start + length]
    elif kind == "truncate":
        del raw[start:]
    else:
        raw[start:start] = raw[start : start + length]
    assert not judge(seed.with_name("damaged.hce"), bytes(raw)) or raw == seed.read_bytes()
