"""Files of a run: graphs come back bit for bit, and nothing but tensors and plain values is ever loaded."""

from __future__ import annotations

import pickle  # noqa: TID251 - the payload that must be refused
from pathlib import Path

import numpy as np
import pytest
import torch

from hce_engine.errors import CheckpointError, WriteError
from hce_engine.training import checkpoint

from .float_graphs import GRAPHS


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    graph = GRAPHS[name]()
    checkpoint.save_graph(tmp_path / "g.pt", graph)
    back = checkpoint.load_graph(tmp_path / "g.pt")
    assert back.members == graph.members and str(back) == str(graph)
    for a, b in zip(graph.nodes, back.nodes, strict=True):
        assert (a.name, a.op, a.inputs, a.spec, dict(a.attrs), a.source) == (b.name, b.op, b.inputs, b.spec, dict(b.attrs), b.source)
        assert set(a.params) == set(b.params)
        assert all(np.array_equal(a.params[k], b.params[k]) and a.params[k].dtype == b.params[k].dtype for k in a.params)


class Payload:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_a_pickle_payload_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Payload()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_typed_errors(tmp_path: Path) -> None:
    checkpoint.save_graph(tmp_path / "g.pt", GRAPHS["residual"]())
    whole = (tmp_path / "g.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1], tmp_path / "list.pt")
    checkpoint.save(tmp_path / "other.pt", {"format": 99})
    for name in ("cut.pt", "empty.pt", "list.pt", "other.pt", "missing.pt"):
        with pytest.raises(CheckpointError):
            checkpoint.load_graph(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.pt", {"a": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        checkpoint.save(tmp_path / "file" / "x.pt", {"a": 2})
    assert checkpoint.load(tmp_path / "x.pt") == {"a": 1} and not list(tmp_path.glob("*.tmp"))
