"""GraphModule computes what its graph says, trains, and gives the graph back."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from hce_engine.backends import reference
from hce_engine.errors import GraphError, UnsupportedError
from hce_engine.graph import Graph, Member, Node, merge
from hce_engine.training.graph_module import GraphModule, last_read

from .float_graphs import GRAPHS, Builder, pictures, residual


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_reference(name: str) -> None:
    graph, images = GRAPHS[name](), pictures(6)
    module = GraphModule(graph).eval()
    want = reference.run(graph, images)["o"]
    for x in (torch.from_numpy(images), torch.from_numpy(images).float()):
        np.testing.assert_allclose(module(x).detach().numpy(), want, rtol=1e-4, atol=1e-4)


def test_float_images_reach_the_same_network() -> None:
    graph, images = residual(kind="float32_nchw"), pictures(4).astype(np.float32) / 255
    got = GraphModule(graph).eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(got, reference.run(graph, images)["o"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_round_trip_is_exact(name: str) -> None:
    graph = GRAPHS[name]()
    again = GraphModule(graph).to_graph()
    for a, b in zip(graph.nodes, again.nodes, strict=True):
        assert (a.name, a.op, a.inputs, a.attrs, a.spec) == (b.name, b.op, b.inputs, b.attrs, b.spec)
        assert all(np.array_equal(a.params[k], b.params[k]) for k in a.params)


def test_training_changes_parameters_and_statistics() -> None:
    module = GraphModule(residual()).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.nn.functional.cross_entropy(module(torch.from_numpy(pictures(8))), torch.arange(8) % 5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    torch.optim.SGD(module.parameters(), 0.1).step()
    graph = module.to_graph()
    assert not np.array_equal(graph["stem.bn"].params["mean"], before["stem.bn.running_mean"].numpy())
    assert np.array_equal(graph["stem.conv"].params["weight"], module.state_dict()["stem.conv.weight"].numpy())


def test_keys_are_node_names_and_useless_biases_are_no_parameters() -> None:
    keys = set(GraphModule(residual()).state_dict())
    assert {"l1.0.1.conv.weight", "l1.0.1.bn.running_var", "fc.bias"} <= keys
    assert "l1.0.1.conv.bias" not in keys
    assert not any("scale" in k for k in keys)


def test_awkward_node_names() -> None:
    b = Builder()
    x = b.conv("type.half", "norm", 4)
    x = b.conv("type", b.bn("type.half.weight", x), 4)
    graph = b.head(b.conv("forward", x, 4, bias=True))
    module = GraphModule(graph).eval()
    images = pictures(2)
    np.testing.assert_allclose(module(torch.from_numpy(images)).detach().numpy(), reference.run(graph, images)["o"], atol=1e-4)
    assert len(module.state_dict()) == len({id(v) for v in module.state_dict(keep_vars=True).values()}) == 12
    for a, b_ in zip(graph.nodes, module.to_graph().nodes, strict=True):
        assert all(np.array_equal(a.params[k], b_.params[k]) for k in a.params)


def test_deep_copies_are_independent() -> None:
    module = GraphModule(residual()).eval()
    twin, x = copy.deepcopy(module), torch.from_numpy(pictures(2))
    want = module(x)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(twin(x), want)
    assert not torch.equal(module(x), want)


def test_refuses_what_it_cannot_train() -> None:
    graph = residual()
    with pytest.raises(GraphError, match="2 members"):
        GraphModule(merge({"a": graph, "b": graph}))
    node = Node("code", "qrecode", ("image",), replace(graph.input.spec), {"qmin": 0, "qmax": 255, "k": 65536})
    with pytest.raises(UnsupportedError, match="qrecode"):
        GraphModule(Graph((graph.input, node), (Member("o", "code"),)))


def test_values_are_dropped_after_their_last_reader() -> None:
    assert last_read([(0,), (1, 0), (1,), (2, 3)], output=4) == ((), (0,), (1,), (2, 3))
    assert last_read([(0,), (1,), (1,)], output=1) == ((0,), (), ())
    module, seen, alive = GraphModule(residual()).eval(), [], []

    def watch(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in seen))

    for node in module.graph.nodes[1:]:
        module.of(node.name).register_forward_hook(watch)
    with torch.no_grad():
        module(torch.from_numpy(pictures(2)))
    assert len(alive) > 20
    assert max(alive) <= 4  # a block's input, its shortcut, an operand and a result
