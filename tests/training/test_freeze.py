"""Freezing changes nothing: codes and logits of the integer graph are those of the fake-quantized forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.graph import Graph, Node, passes
from hce_engine.ledger import node_cost, node_macs
from hce_engine.training.freeze import freeze
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.quantize import METHODS, QuantModule, calibrate

from .float_graphs import GRAPHS, Builder, mobile, pictures, residual


def frozen(graph: Graph, bits: int, count: int = 64, **keys: Any) -> tuple[QuantModule, Graph]:
    images = pictures(count, seed=5)
    if graph.input.spec.dtype == "f32":
        images = images.astype(np.float32) / 255
    module = QuantModule(graph, bits, bits, **keys)
    calibrate(module, torch.from_numpy(images))
    return module.eval(), freeze(module)


def agreement(module: QuantModule, graph: Graph, images: np.ndarray) -> dict[str, float]:
    """Share of equal codes per tensor."""
    values, mine = reference.evaluate(graph, images), module.codes(torch.from_numpy(images))
    return {name: float((mine[name] == values[name]).mean()) for name in mine}


@pytest.mark.parametrize(("method", "bits"), [*(("lsq", b) for b in range(2, 9)), *((m, b) for m in ("pact", "dorefa") for b in (2, 4, 7))])
@pytest.mark.parametrize("name", GRAPHS)
def test_codes_agree(name: str, method: str, bits: int) -> None:
    module, graph = frozen(GRAPHS[name](), bits, method=method)
    images = pictures(32, seed=9)
    shares = agreement(module, graph, images)
    assert min(shares.values()) >= 0.99, shares
    logits = module(torch.from_numpy(images)).detach().numpy()
    exact = reference.run(graph, images)["o"]
    assert (logits.argmax(1) == exact.argmax(1)).mean() >= 0.99
    assert exact.std(axis=0).min() > 0


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_codes_agree_under_autocast(name: str) -> None:
    """Q as a teacher, and with frozen norms, runs under bfloat16 where the rest of the step does."""
    module, graph = frozen(GRAPHS[name](), 4)
    with torch.autocast("cpu", torch.bfloat16):
        shares = agreement(module, graph, pictures(32, seed=9))
    assert min(shares.values()) >= 0.99, shares


def test_float_images_get_a_grid() -> None:
    module, graph = frozen(residual(kind="float32_nchw"), 4)
    images = pictures(32, seed=9).astype(np.float32) / 255
    assert graph["image.codes"].op == "quantize_input"
    assert min(agreement(module, graph, images).values()) >= 0.99
    assert graph["stem.conv"].attrs["bits"] == [8, 8]
    assert graph["stem.conv"].attrs["pad_code"] == [128] * 3
    module, graph = frozen(residual(kind="float32_nchw"), 8)
    want = GraphModule(residual(kind="float32_nchw")).eval()(torch.from_numpy(images)).detach().numpy()
    assert np.sqrt(((reference.run(graph, images)["o"] - want) ** 2).mean()) < 0.06 * want.std()


def with_gamma(graph: Graph, change: Callable[[np.ndarray], np.ndarray]) -> Graph:
    def edit(node: Node) -> Node:
        if node.op != "batch_norm":
            return node
        return replace(node, params={**node.params, "gamma": change(node.params["gamma"].copy()).astype(np.float32)})

    return graph.map(edit)


def scattered(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(gamma: np.ndarray) -> np.ndarray:
        gamma[::2] = value
        return gamma

    return change


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12, -1e-9, 1e-5, -0.8])
@pytest.mark.parametrize("name", ["residual", "preactivated", "mobile"])
def test_batch_norms_with_gamma_of_nearly_nothing(name: str, value: float) -> None:
    graph = with_gamma(GRAPHS[name](), scattered(value))
    module, integer = frozen(graph, 8)
    images = pictures(32, seed=9)
    assert min(agreement(module, integer, images).values()) >= 0.99
    want = GraphModule(graph).eval()(torch.from_numpy(images)).detach().numpy()
    got = reference.run(integer, images)["o"]
    assert np.sqrt(((got - want) ** 2).mean()) < 0.08 * want.std()
    for node in integer.nodes:
        assert all(np.isfinite(v).all() and (v > 0).all() for k, v in node.params.items() if k == "multiplier")


def test_dead_tensors() -> None:
    def kill(node: Node) -> Node:
        if node.name != "l1.0.1.bn":
            return node
        return replace(node, params={**node.params, "beta": node.params["beta"] * 0 - 100})

    module, graph = frozen(residual().map(kill), 4)
    images = pictures(8)
    assert not module.codes(torch.from_numpy(images))["l1.0.1.conv"].any()
    assert min(agreement(module, graph, images).values()) >= 0.99


@pytest.mark.parametrize("name", GRAPHS)
def test_lowered_graphs_freeze_too(name: str) -> None:
    module, graph = frozen(passes.lower(GRAPHS[name]()), 4)
    assert min(agreement(module, graph, pictures(16)).values()) >= 0.99


@pytest.mark.parametrize(("method", "bits"), [(m, b) for m in METHODS for b in (2, 3, 8)])
def test_after_training_codes_still_agree(method: str, bits: int) -> None:
    module, _ = frozen(residual(), bits, method=method)
    x, labels = torch.from_numpy(pictures(32)), torch.arange(32) % 5
    optimizer = torch.optim.SGD(module.train().parameters(), 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    module.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph = freeze(module)
    assert min(agreement(module, graph, pictures(32)).values()) >= 0.99
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.training


def test_widths_and_storage_in_the_integer_graph() -> None:
    _, graph = frozen(mobile(), 3)
    assert graph["stem.conv"].attrs["weight_dtype"] == "s8"
    assert graph["b2.expand.conv"].attrs["weight_dtype"] == "s3"
    assert graph["b2.expand.conv"].attrs["bits"] == [3, 3]
    assert graph["b2.expand.conv"].spec.dtype == "u3"
    assert graph["b1.project.conv"].spec.zero_point == 128
    assert graph["fc"].attrs["bits"] == [8, 8]
    pads = graph["stem.conv"].attrs["pad_code"]
    assert pads == [round(255 * m) for m in (0.485, 0.456, 0.406)]
    assert graph["b2.expand.conv"].attrs["qmax"] <= 7
    assert graph["b1.project.conv.recode"].spec.zero_point == 4


def signed_head() -> Graph:
    """A head behind a map without relu: its narrow input is recoded from a signed stream."""
    b = Builder(seed=6)
    return b.head(b.conv_bn("b", b.conv_bn("a", "norm", 8), 8, relu=False))


@pytest.mark.parametrize("edge", [2, 3, 4, 6])
@pytest.mark.parametrize("graph", [residual, signed_head], ids=["residual", "signed-head"])
def test_narrow_edges_agree_run_and_are_counted(graph: Callable[[], Graph], edge: int) -> None:
    module, integer = frozen(graph(), 4, edge_bits=edge)
    images = pictures(16, seed=9)
    assert min(agreement(module, integer, images).values()) >= 0.99
    stored = {2: "s3", 3: "s3", 4: "s4", 6: "s8"}[edge]
    first = next(n for n in integer.nodes if n.op == "qconv2d")
    head = integer["fc"]
    assert (first.attrs["weight_dtype"], head.attrs["weight_dtype"]) == (stored, stored)
    assert integer[head.inputs[0]].spec.dtype == stored.replace("s", "u")
    # The ledger counts what was trained: 8-bit pixels in the first layer, 2 bits where 3 are stored.
    assert first.attrs["bits"] == [edge, 8]
    assert head.attrs["bits"] == [edge, edge]
    assert node_cost(head).b23 == pytest.approx(node_macs(head) * edge / 23)
    want = reference.run(integer, images)["o"]
    got = CpuBackend(integer, threads=1).run(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))["o"]
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_two_bits_are_stored_in_three(method: str) -> None:
    _, graph = frozen(residual(), 2, method=method)
    conv = graph["l1.0.2.conv"]
    assert conv.attrs["bits"] == [2, 2]
    assert conv.attrs["weight_dtype"] == "s3"
    assert graph["l1.0.1.conv"].spec.dtype == "u3"
    assert graph["l1.0.1.conv"].attrs["qmax"] == 3
    codes = set(np.unique(conv.params["weight"]))
    assert codes == ({-2, -1, 0, 1} if method == "lsq" else {-1, 0, 1})
