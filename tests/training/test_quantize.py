"""The layout's decisions, calibration, training and checkpoints of a QuantModule, by every method."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hce_engine.errors import GraphError, InputError, UnsupportedError
from hce_engine.graph import Graph, Node, merge
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.quantize import METHODS, QuantModule, calibrate, layout
from hce_engine.training.quantize.layout import Codes, Step

from .float_graphs import GRAPHS, Builder, concatenated, mobile, pictures, plain, preactivated, residual


def images(count: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(count, seed=seed))


def calibrated(graph: Graph, bits: int = 4, method: str = "lsq") -> QuantModule:
    module = QuantModule(graph, bits, bits, method=method)
    calibrate(module, images())
    return module


def edited(graph: Graph, name: str, **params: Callable[[np.ndarray], np.ndarray]) -> Graph:
    """The graph with some parameters of one node replaced."""
    node = graph[name]
    changed = {k: change(node.params[k].copy()).astype(np.float32) for k, change in params.items()}
    return graph.map(lambda n: replace(n, params={**n.params, **changed}) if n is node else n)


# ---- layout


def codes_of(graph: Graph, bits: int = 4) -> dict[str, Codes | None]:
    return {s.name: s.codes for s in layout(graph, bits, bits).steps}


def test_layout_of_a_residual_network() -> None:
    steps = {s.name: s for s in layout(residual(), 4, 4).steps}
    assert steps["stem.conv"].bits == (8, 8)
    assert steps["fc"].bits == (8, 8)
    assert steps["l1.0.1.conv"].bits == (4, 4)
    assert steps["l1.0.1.conv"].inputs == ("stem.conv.recode",)
    assert steps["stem.conv"].codes == Codes((8, 12, 12), 8, 0, 0, None)
    assert steps["l1.0.1.conv"].codes == Codes((8, 12, 12), 4, 0, 0, None)  # only a convolution reads it
    assert steps["l1.0.2.conv"].residual
    assert steps["l1.0.2.conv"].inputs == ("l1.0.1.conv", "stem.conv")
    # The projection is the last-computed operand, so the sum and its relu are its own.
    assert steps["l3.0.short.conv"].inputs == ("l2.0.2.conv", "l3.0.2.conv")
    assert steps["l3.0.2.conv"].codes == Codes((16, 3, 3), 8, 128)
    assert steps["l2.0.2.conv"].codes == Codes((12, 6, 6), 4, 0, 0, None)  # two convolutions read it, and nothing else
    assert not any(s.kind == "add" for s in steps.values())


def test_edges_have_a_width_of_their_own() -> None:
    steps = {s.name: s for s in layout(residual(), 4, 4, edge_bits=3).steps}
    assert steps["stem.conv"].bits == (3, 8)  # the pixels are 8-bit codes, whatever the weights are
    assert steps["fc"].bits == (3, 3)
    assert steps["pool"].codes == Codes((16, 1, 1), 3, 0)  # nothing but the head reads it
    assert steps["l1.0.1.conv"].bits == (4, 4)
    assert steps["stem.conv"].codes == Codes((8, 12, 12), 8, 0, 0, None)  # the residual stream
    float_images = {s.name: s for s in layout(residual(kind="float32_nchw"), 4, 4, edge_bits=3).steps}
    assert float_images["norm"].bits == (8, 8)
    assert float_images["stem.conv"].bits == (3, 8)
    assert float_images["norm"].codes == Codes((3, 12, 12), 8, 128)


def test_a_tensor_that_the_head_and_convolutions_read() -> None:
    b = Builder()
    x = b.conv_bn("last", b.conv_bn("stem", "norm", 4), 4)
    y = b.conv_bn("more", x, 4, relu=False)
    heads = [b.linear(name, b.node("flatten", f"{name}.flat", (source,)), 5) for name, source in (("fc1", x), ("fc2", y))]
    graph = b.graph(b.node("mean", "both", tuple(heads)))
    steps = {s.name: s for s in layout(graph, 3, 3, edge_bits=4).steps}
    assert steps["last.conv"].codes == Codes((4, 12, 12), 8, 0, 0, None)
    assert steps["more.conv"].inputs == ("last.conv.recode",)
    assert steps["last.conv.recode"].codes == Codes((4, 12, 12), 3, 0)
    assert [steps[i].codes for i in steps["fc1"].inputs] == [Codes((576,), 4, 0)]
    assert [steps[i].codes for i in steps["fc2"].inputs] == [Codes((576,), 4, 8)]  # signed: around the middle code
    same = {s.name: s for s in layout(graph, 4, 4, edge_bits=4).steps}
    assert same["last.conv"].codes == Codes((4, 12, 12), 4, 0, 0, None)  # both want 4 bits
    assert same["fc1"].inputs == ("last.conv.flat",)


def test_eight_bits_need_no_recode() -> None:
    assert not any(s.kind == "recode" for s in layout(residual(), 8, 8).steps)
    assert codes_of(mobile(), 6)["b1.expand.conv"] == Codes((16, 12, 12), 6, 0, 0, 6)


def test_layout_of_other_networks() -> None:
    codes = codes_of(plain())
    assert codes["c1.conv"] == Codes((8, 12, 12), 4, 0, 0, None)  # through a max pool to one convolution
    assert codes["p1"] == Codes((8, 6, 6), 4, 0)
    assert codes["p2"] == Codes((12, 3, 3), 4, 0)
    assert codes["fc1"] == Codes((16, 1, 1), 8, 0, 0, None)  # a hidden linear is a convolution; the head reads u8
    codes = codes_of(mobile())
    assert codes["b1.project.conv"] == Codes((8, 12, 12), 8, 128)
    assert codes["b1.project.conv.recode"] == Codes((8, 12, 12), 4, 8)
    codes = codes_of(concatenated())
    assert codes["cat"] == Codes((20, 6, 6), 8, 128)
    assert codes["cat.relu"] == Codes((20, 6, 6), 4, 0, 0, None)
    steps = {s.name: s for s in layout(preactivated(), 4, 4).steps}
    assert steps["b1.bn1"].constant
    assert steps["b1.c2"].residual
    assert steps["b2.bn1"].codes == Codes((8, 12, 12), 4, 0, 0, None)


def test_logits_without_a_linear_and_logits_of_several() -> None:
    b = Builder()
    pool = b.node("global_avg_pool", "pool", (b.conv_bn("c", "norm", 5),))
    flat = b.node("flatten", "flat", (pool,))
    module = calibrated(b.graph(flat), 8).eval()
    reference = GraphModule(b.graph(flat)).eval()
    torch.testing.assert_close(module(images()), reference(images()), atol=0.03, rtol=0.03)
    heads = b.node("mean", "both", (b.linear("fc1", flat, 5), b.linear("fc2", flat, 5)))
    graph = b.graph(heads)
    torch.testing.assert_close(
        calibrated(graph, 8).eval()(images()), GraphModule(graph).eval()(images()), atol=0.05, rtol=0.05
    )


def test_refusals_name_the_node() -> None:
    graph = residual()
    for bits in ((1, 4), (4, 9)):
        with pytest.raises(InputError, match="2 to 8"):
            QuantModule(graph, *bits)
    with pytest.raises(InputError, match="2 to 8 edge bits"):
        QuantModule(graph, 4, 4, edge_bits=9)
    with pytest.raises(InputError, match="lsq, pact, dorefa"):
        QuantModule(graph, 4, 4, method="apot")
    with pytest.raises(GraphError, match="2 members"):
        QuantModule(merge({"a": graph, "b": graph}), 4, 4)
    shifted = edited(graph, "norm", offset=lambda v: v + 9)
    with pytest.raises(UnsupportedError, match=r"%norm.*padding is a code"):
        QuantModule(shifted, 4, 4)
    b = Builder()
    with pytest.raises(UnsupportedError, match=r"%high.*range holds 0"):
        QuantModule(b.head(b.clamp("high", b.conv("c", "norm", 4), 1, 2)), 4, 4)
    b = Builder()
    x = b.conv("c", "norm", 4)
    attrs = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "count_include_pad": 0}
    with pytest.raises(UnsupportedError, match=r"%edge.*count_include_pad"):
        QuantModule(b.head(b.node("avg_pool2d", "edge", (x,), attrs)), 4, 4)


# ---- calibration and training


def distance(graph: Graph, module: QuantModule) -> float:
    """Root mean square of the error of logits, over the standard deviation of the float network's."""
    test = images(64, seed=3)
    want = GraphModule(graph).eval()(test)
    return ((module.eval()(test) - want).square().mean().sqrt() / want.std()).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_eight_bits_are_close_to_float(name: str, method: str) -> None:
    graph = GRAPHS[name]()
    assert distance(graph, calibrated(graph, 8, method)) < 0.04


@pytest.mark.parametrize("name", ["residual", "plain"])
def test_post_training_error_falls_with_every_two_bits(name: str) -> None:
    graph, errors = GRAPHS[name](), {}
    for search in ("mse", "min-max"):
        for bits in range(2, 9):
            module = QuantModule(graph, bits, bits)
            calibrate(module, images(), method=search)
            errors[search, bits] = distance(graph, module)
        assert all(errors[search, bits + 2] < 0.75 * errors[search, bits] for bits in range(2, 7)), errors
    assert all(errors["mse", bits] < 0.95 * errors["min-max", bits] for bits in (2, 3, 4)), errors


def test_statistics_are_matched_to_the_float_network() -> None:
    graph, errors = residual(), []
    for reestimate in (True, False):
        module = QuantModule(graph, 3, 3)
        calibrate(module, images(64), reestimate=reestimate)
        errors.append(distance(graph, module))
    assert errors[0] < 0.7 * errors[1]


def test_calibrate_refuses_and_leaves_the_mode() -> None:
    module = QuantModule(residual(), 4, 4)
    with pytest.raises(InputError, match="at least 2 images"):
        calibrate(module, images(1))
    with pytest.raises(InputError, match="a method of mse"):
        calibrate(module, images(), method="kl")
    calibrate(module, images(), method="min-max")
    assert module.training
    calibrate(module.eval(), images(), method="lsq", reestimate=False)
    assert not module.training


@pytest.mark.parametrize(("name", "method"), [*((n, "lsq") for n in GRAPHS), *(("residual", m) for m in METHODS if m != "lsq"),
                                              ("mobile", "pact"), ("concatenated", "dorefa")])
def test_everything_learns(name: str, method: str) -> None:
    module, brightness = calibrated(GRAPHS[name](), method=method).train(), images().float().mean((1, 2, 3))
    labels = brightness.argsort().argsort() // 7
    optimizer, losses = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9), []
    for step in range(30):
        if step == 24:
            module.freeze_bn()
        loss = cross_entropy(module(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            missing = [k for k, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert not missing
            assert sum(bool(p.grad.any()) for p in module.parameters()) > 0.9 * len(list(module.parameters()))
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[:24]) < 0.9 * losses[0]
    assert np.isfinite(losses).all()


def test_frozen_norms_train_what_evaluation_sees() -> None:
    module = calibrated(residual()).train()
    statistics = {k: v.clone() for k, v in module.state_dict().items() if "running" in k}
    module.freeze_bn()
    trained = module(images())
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in statistics.items())
    assert torch.equal(trained, module.train().eval()(images()))
    module.freeze_bn(False)
    module.train()(images())
    assert not all(torch.equal(v, module.state_dict()[k]) for k, v in statistics.items())


def test_values_are_dropped_after_their_last_reader() -> None:
    module, seen, alive = calibrated(residual()).eval(), [], []

    def after(step: Step, value: tuple[torch.Tensor, torch.Tensor] | torch.Tensor) -> None:
        if step.codes is not None:
            seen.append(weakref.ref(value[0]))
            alive.append(sum(ref() is not None for ref in seen))

    with torch.no_grad():
        module.walk(images(), after=after)
    assert len(alive) == len([s for s in module.layout.steps if s.codes is not None])
    assert max(alive) <= 5  # a block's input and its recode, the shortcut, an operand and a result


def test_state_dict_is_a_checkpoint() -> None:
    module = calibrated(residual()).eval()
    keys = set(module.state_dict())
    assert {"l1.0.1.conv.weight", "l1.0.1.conv.weight_step", "l1.0.1.conv.norm.running_var", "stem.conv.recode.quantizer.step"} <= keys
    again = QuantModule(residual(seed=8), 4, 4).eval()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(images()), module(images()))


@pytest.mark.parametrize(("name", "method"), [("residual", "lsq"), ("concatenated", "pact")])
def test_compiles_without_graph_breaks(name: str, method: str) -> None:
    module = calibrated(GRAPHS[name](), method=method).train()
    module.freeze_bn()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), module(images()))


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_steps_may_cross_zero(method: str) -> None:
    module = calibrated(mobile(), 8, method).eval()
    for q in module.quantizers().values():
        for parameter in q.parameters():
            parameter.data.mul_(-0.1)  # a large learning rate can do this; the grid is its absolute value
    assert all(float(q.scale().detach()) > 0 for q in module.quantizers().values())
    assert module(images()).isfinite().all()


def test_a_node_that_quantization_does_not_know() -> None:
    graph = residual()
    odd = Node("odd", "normalize", ("stem.relu",), graph["stem.relu"].spec, {}, {
        "scale": np.ones(8, np.float32), "offset": np.zeros(8, np.float32),
    })
    with pytest.raises((UnsupportedError, GraphError)):
        QuantModule(replace(graph, nodes=(*graph.nodes[:5], odd, *graph.nodes[5:])).map(
            lambda n: replace(n, inputs=("odd",)) if n.name == "l1.0.1.conv" else n
        ), 4, 4)
