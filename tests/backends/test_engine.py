"""What the engine refuses, and that both devices agree on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hce_engine import Engine
from hce_engine.artifact import Artifact
from hce_engine.errors import GraphError, InputError
from hce_engine.preprocess import InputSpec
from tests.backends.graphs import GraphBuilder, pixels

SHAPE = (3, 4, 5)


def _artifact(kind: str = "uint8_nhwc") -> Artifact:
    b = GraphBuilder(SHAPE, seed=1)
    graph = b.finish(b.qconv("image", 4, weight_dtype="s8"), b.qconv("image", 4, weight_dtype="s4"))
    return Artifact(graph, InputSpec(kind, SHAPE, (0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_an_empty_batch_gives_no_rows(device: str) -> None:
    logits = Engine(_artifact(), device=device, threads=1).members(np.zeros((0, 4, 5, 3), np.uint8))
    assert {name: z.shape for name, z in logits.items()} == dict.fromkeys(("m0", "m1", "ensemble"), (0, 80))


def test_only_runs_the_named_members() -> None:
    engine, images = Engine(_artifact(), threads=1), pixels(SHAPE, 5)
    whole = engine.members(images)
    assert engine.only("m1")(images).tobytes() == whole["m1"].tobytes()
    assert set(engine.only("m1", "m1").members(images)) == {"m1", "ensemble"}
    with pytest.raises(InputError, match="m0, m1"):
        engine.only()
    with pytest.raises(GraphError, match="m0, m1"):
        engine.only("m2")


def test_tensors_that_numpy_cannot_hold_are_refused() -> None:
    engine = Engine(_artifact(), threads=1)
    for tensor in (torch.zeros((1, 4, 5, 3), dtype=torch.bfloat16), torch.zeros((1, 4, 5, 3), dtype=torch.uint8).to_sparse()):
        with pytest.raises(InputError, match="uint8"):
            engine(tensor)
    images = pixels(SHAPE, 3)
    assert engine(torch.from_numpy(images)).numpy().tobytes() == engine(images).tobytes()


def test_a_graph_without_an_input_is_refused() -> None:
    artifact = _artifact()
    graph = replace(artifact.graph, nodes=artifact.graph.nodes[1:])
    with pytest.raises(GraphError, match="input node"):
        Engine(replace(artifact, graph=graph), threads=1)


def test_a_graph_for_other_images_is_refused() -> None:
    with pytest.raises(InputError, match="f32"):
        Engine(_artifact("float32_nchw"), threads=1)
