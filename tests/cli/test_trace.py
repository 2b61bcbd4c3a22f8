"""``hce run`` and ``hce eval`` on a GPU: ``--trace``, and how the batches ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine import artifact
from hce_engine.artifact import Artifact
from hce_engine.graph import merge
from hce_engine.preprocess import InputSpec
from tests.backends.graphs import GraphBuilder

SHAPE = (3, 4, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two quantized members, and images beside it."""
    graphs = {}
    for name in ("a", "b"):
        g = GraphBuilder(SHAPE, seed=ord(name))
        graphs[name] = g.finish(g.qconv("image", 2, stride=(2, 2)))
    artifact.save(tmp_path / "model.hce", Artifact(merge(graphs), InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)))
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(5) % 8)
    return tmp_path / "model.hce"


def spans(path: Path) -> list[str]:
    return [e["name"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]


def test_a_trace_of_the_first_batch(run_hce: Callable, model: Path, as_if_on_a_gpu: None) -> None:
    folder = model.parent
    for name, arguments, logits in (("run", (folder / "images.npy", "-o", folder / "p.csv"), 1), ("eval", ("--data", folder / "data.npz"), 3)):
        result = run_hce(name, model, *arguments, "--device", "cuda", "--batch", 4, "--trace", folder / f"{name}.trace",
                         "--json", folder / f"{name}.json")
        assert result.code == 0, result.err
        found = spans(folder / f"{name}.trace")
        assert found.count("images upload") == 1
        assert len([s for s in found if s.endswith(" download")]) == logits
        buckets = json.loads((folder / f"{name}.json").read_text())["concurrency"]
        assert [(b["members"], b["images"], b["mode"]) for b in buckets] == [(["a", "b"], 4, "sequential"), (["a", "b"], 1, "sequential")]


def test_a_trace_is_of_a_gpu(run_hce: Callable, model: Path) -> None:
    folder = model.parent
    for name, arguments in (("run", (folder / "images.npy", "-o", folder / "p.csv")), ("eval", ("--data", folder / "data.npz"))):
        result = run_hce(name, model, *arguments, "--device", "cpu", "--trace", folder / "trace.json", "--json", folder / "out.json")
        assert result.code == 3
        assert "trace: expected device cuda, got device cpu" in result.err
        assert not {"p.csv", "trace.json", "out.json"} & {p.name for p in folder.iterdir()}
        assert run_hce(name, model, *arguments, "--device", "cpu", "--json", folder / "out.json").code == 0
        assert json.loads((folder / "out.json").read_text())["concurrency"] is None
        (folder / "out.json").unlink()
        (folder / "p.csv").unlink(missing_ok=True)
        assert run_hce(name, model, *arguments, "--device", "cpu", "--trace", model).code == 2
