"""Saving and loading: nothing is lost, equal artifacts are equal files, and others can read them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from hce_engine.artifact import Artifact, digest, load, save
from hce_engine.artifact.container import HEADER_LIMIT
from hce_engine.backends import reference
from hce_engine.errors import ArtifactError, GraphError
from hce_engine.graph import Graph, Member, Node, TensorSpec


def test_everything_comes_back(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "m.hce", artifact)
    back = load(tmp_path / "m.hce")
    assert back.graph.members == artifact.graph.members
    assert [dataclasses.replace(n, params={}) for n in back.graph.nodes] == [
        dataclasses.replace(n, params={}) for n in artifact.graph.nodes
    ]
    for ours, theirs in zip(back.graph.nodes, artifact.graph.nodes, strict=True):
        assert ours.params.keys() == theirs.params.keys()
        for key, value in ours.params.items():
            assert value.dtype == theirs.params[key].dtype, (ours.name, key)
            assert np.array_equal(value, theirs.params[key]), (ours.name, key)
    assert dataclasses.replace(back, graph=artifact.graph) == artifact


def test_saving_again_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "a.hce", artifact)
    save(tmp_path / "b.hce", load(tmp_path / "a.hce"))
    assert (tmp_path / "a.hce").read_bytes() == (tmp_path / "b.hce").read_bytes()
    assert digest(tmp_path / "a.hce") == digest(tmp_path / "b.hce")


def test_a_loaded_graph_gives_the_same_logits(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "m.hce", artifact)
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 9, 7)).astype(np.uint8)
    want, got = (reference.run(g, images) for g in (artifact.graph, load(tmp_path / "m.hce").graph))
    assert want.keys() == got.keys()
    for member in want:
        assert np.array_equal(want[member], got[member])


def test_safetensors_reads_it(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "m.hce", artifact)
    tensors = load_file(tmp_path / "m.hce")
    assert np.array_equal(tensors["s.conv/weight"], artifact.graph["s.conv"].params["weight"])
    assert tensors["q.c1/weight"].shape == (7, 12 + 6)  # 45 codes of 3 bits per row
    with safetensors.safe_open(tmp_path / "m.hce", "numpy") as file:
        assert json.loads(file.metadata()["hce"])["classes"][0] == "café"


def test_parameters_may_be_views(artifact: Artifact, tmp_path: Path) -> None:
    def strided(node: Node) -> Node:
        return dataclasses.replace(node, params={k: np.repeat(v, 2, axis=0)[::2] for k, v in node.params.items()})

    save(tmp_path / "a.hce", artifact)
    save(tmp_path / "b.hce", dataclasses.replace(artifact, graph=artifact.graph.map(strided)))
    assert (tmp_path / "a.hce").read_bytes() == (tmp_path / "b.hce").read_bytes()


def test_symbolic_links_are_followed(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "real", artifact)
    os.symlink("real", tmp_path / "link.hce")
    assert digest(tmp_path / "link.hce") == digest(tmp_path / "real")
    assert load(tmp_path / "link.hce").classes == artifact.classes


@pytest.mark.parametrize(
    "change",
    [
        {"ledger": {"ratio": float("nan")}},
        {"ledger": {"flops": 2**60}},
        {"accuracy": {"q": np.float32(0.5)}},
        {"provenance": {1: "a"}},
        {"provenance": {"note": "\x1b[2J"}},
        {"classes": ("a", "b", "c")},
        {"classes": ("a", "b", "c", "d\x07")},
        {"ensemble": "vote"},
        {"ledger": {"a": [[[[[[[[[[[[[[]]]]]]]]]]]]]]}},
        {"provenance": {"recipe": ["x" * 60000] * (HEADER_LIMIT // 60000 + 1)}},
    ],
)
def test_what_the_reader_would_refuse_is_not_written(artifact: Artifact, tmp_path: Path, change: dict) -> None:
    with pytest.raises(ArtifactError):
        save(tmp_path / "m.hce", dataclasses.replace(artifact, **change))
    assert not list(tmp_path.iterdir())


def test_an_illegal_graph_is_not_written(artifact: Artifact, tmp_path: Path) -> None:
    graph = Graph((*artifact.graph.nodes[:-1],), (Member("q", "nowhere"),))
    with pytest.raises(GraphError):
        save(tmp_path / "m.hce", dataclasses.replace(artifact, graph=graph))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_twice_the_file(artifact: Artifact, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats = {"weight": rng.random((1 << 9, 1 << 15), np.float32), "bias": np.zeros(1 << 9, np.float32)}
    nodes = (
        artifact.input.input_node(), artifact.input.normalize_node("norm", "image"), Node("f", "flatten", ("norm",), TensorSpec((189,))),
        Node("a", "linear", ("f",), TensorSpec((1 << 15,)), {"min": None, "max": None},
             {"weight": np.zeros((1 << 15, 189), np.float32), "bias": np.zeros(1 << 15, np.float32)}),
        Node("b", "linear", ("a",), TensorSpec((1 << 9,)), {"min": None, "max": None}, floats),
    )
    path = tmp_path / "m.hce"
    save(path, Artifact(Graph(nodes, (Member("o", "b"),)), artifact.input))
    # VmHWM of a fresh process: importing, then loading.
    code = (
        "import sys; from hce_engine.artifact import load\n"
        "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "before = peak(); load(sys.argv[1]); print(peak() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout)
    assert grown < 2.2 * path.stat().st_size
