"""Freezing changes nothing: codes and logits of the integer graph are those of the fake-quantized forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hce_engine.backends import reference
from hce_engine.graph import Graph
from hce_engine.training.freeze import freeze
from hce_engine.training.quantize import QuantModule, calibrate

from .float_graphs import GRAPHS, pictures


def frozen(graph: Graph, bits: int, count: int = 64) -> tuple[QuantModule, Graph]:
    images = pictures(count, seed=5)
    if graph.input.spec.dtype == "f32":
        images = images.astype(np.float32) / 255
    module = QuantModule(graph, bits, bits)
    calibrate(module, torch.from_numpy(images))
    return module.eval(), freeze(module)


def agreement(module: QuantModule, graph: Graph, images: np.ndarray) -> dict[str, float]:
    """Share of equal codes per tensor."""
    values, mine = reference.evaluate(graph, images), module.codes(torch.from_numpy(images))
    return {name: float((mine[name] == values[name]).mean()) for name in mine}


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("name", GRAPHS)
def test_codes_agree(name: str, bits: int) -> None:
    module, graph = frozen(GRAPHS[name](), bits)
    images = pictures(32, seed=9)
    shares = agreement(module, graph, images)
    assert min(shares.values()) >= 0.99, shares
    logits = module(torch.from_numpy(images)).detach().numpy()
    exact = reference.run(graph, images)["o"]
    assert (logits.argmax(1) == exact.argmax(1)).mean() >= 0.99
    assert exact.std(axis=0).min() > 0
