"""Quantizers, the layout's decisions, calibration and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hce_engine.errors import GraphError, InputError, UnsupportedError
from hce_engine.graph import Graph, Node, merge
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.quantize import QuantModule, calibrate, layout, reestimate_bn
from hce_engine.training.quantize.layout import Codes
from hce_engine.training.quantize.quantizer import LearnedStep, floor_half_ste
from hce_engine.training.quantize.scales import lsq_scale, min_max_scale, mse_scale

from .float_graphs import GRAPHS, Builder, concatenated, mobile, pictures, plain, preactivated, residual


def images(count: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(count, seed=seed))


def calibrated(graph: Graph, bits: int = 4) -> QuantModule:
    module = QuantModule(graph, bits, bits)
    calibrate(module, images())
    return module


def edited(graph: Graph, name: str, **params: Callable[[np.ndarray], np.ndarray]) -> Graph:
    """The graph with some parameters of one node replaced."""
    node = graph[name]
    changed = {k: change(node.params[k].copy()).astype(np.float32) for k, change in params.items()}
    return graph.map(lambda n: replace(n, params={**n.params, **changed}) if n is node else n)


# ---- quantizers


def error(values: torch.Tensor, scale: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    s = scale[:, None]
    return (((values / s).round().clamp(lo, hi) * s) - values).square().mean(1)


@pytest.mark.parametrize(("lo", "hi"), [(-2, 1), (-4, 3), (-8, 7), (-128, 127), (0, 15), (0, 255)])
def test_scale_searches(lo: int, hi: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 2000) * torch.tensor([1e-6, 0.01, 1, 1, 30, 1e6])[:, None]
    values = values if lo else values.relu()
    loose, best = min_max_scale(values, lo, hi), mse_scale(values, lo, hi)
    clipped = ((values / loose[:, None]).clamp(lo, hi) * loose[:, None] - values).abs().amax(1)
    assert (clipped <= 1e-5 * values.abs().amax(1)).all()
    top = values.abs().amax(1) / hi
    exhaustive = torch.stack([error(values, top * i / 1000, lo, hi) for i in range(5, 1001)]).amin(0)
    assert (error(values, best, lo, hi) <= 1.03 * exhaustive).all()
    torch.testing.assert_close(lsq_scale(values, lo, hi), 2 * values.abs().mean(1) / hi**0.5)


@pytest.mark.parametrize("search", [min_max_scale, mse_scale, lsq_scale])
def test_scales_of_nothing_are_positive(search: Callable[..., torch.Tensor]) -> None:
    scale = search(torch.zeros(3, 50), -8, 7)
    assert (scale > 0).all()
    assert scale.isfinite().all()


def test_gradients_are_those_of_lsq() -> None:
    quantizer = LearnedStep(Codes((4, 5, 5), 3, 0))
    quantizer.step.data.fill_(0.5)
    v = torch.tensor([-1.0, 0.1, 0.8, 1.9, 3.6, 9.0], requires_grad=True)
    scale = quantizer.scale()
    (quantizer(v / scale, scale) * scale).sum().backward()
    inside = (v >= 0) & (v / 0.5 <= 7)
    torch.testing.assert_close(v.grad, inside.float())
    u = v.detach() / 0.5
    want = torch.where(inside, u.round() - u, torch.where(u < 0, 0.0, 7.0)).sum() / (4 * 5 * 5 * 7) ** 0.5
    torch.testing.assert_close(quantizer.step.grad, want)


def test_a_real_bound_is_a_bound_on_codes() -> None:
    quantizer = LearnedStep(Codes((1,), 8, 0, 0.0, 6.0))
    quantizer.step.data.fill_(0.05)
    scale = quantizer.scale().detach()
    values = torch.linspace(-1, 20, 400)
    want = (values.clamp(0, 6) / 0.05).round()
    torch.testing.assert_close(quantizer(values / scale, scale).detach(), want)
    assert int(quantizer.bounds(scale)[1]) == 120


def test_recode_rounds_half_up() -> None:
    x = torch.tensor([-1.5, -0.5, 0.49, 0.5, 1.5])
    assert floor_half_ste(x).tolist() == [-1, 0, 0, 1, 2]


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


@pytest.mark.parametrize("name", GRAPHS)
def test_eight_bits_are_close_to_float(name: str) -> None:
    graph, test = GRAPHS[name](), images(seed=3)
    want = GraphModule(graph).eval()(test)
    got = calibrated(graph, 8).eval()(test)
    assert (got - want).square().mean().sqrt() < 0.06 * want.std(), name


def test_statistics_are_matched_to_the_float_network() -> None:
    graph, test = residual(), images(64, seed=3)
    want = GraphModule(graph).eval()(test)

    def distance(reestimate: bool) -> float:
        module = QuantModule(graph, 3, 3)
        calibrate(module, images(64), reestimate=reestimate)
        return float((module.eval()(test) - want).detach().square().mean())

    assert distance(True) < 0.5 * distance(False)


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


def test_reestimated_statistics_are_those_of_the_images() -> None:
    graph = plain()
    for module in (GraphModule(graph), calibrated(graph, 8)):
        module.eval()
        before = module.state_dict()["c1.bn.num_batches_tracked" if isinstance(module, GraphModule) else "c1.conv.norm.num_batches_tracked"]
        assert int(before) == 0
        reestimate_bn(module, images(48), batch=16)
        norm = next(m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d))
        x = GraphModule(graph).of("norm")(images(48))
        y = GraphModule(graph).of("c1.conv")(x)
        torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)), atol=0.03, rtol=0.02)
        assert norm.momentum == 0.1
        assert not module.training


@pytest.mark.parametrize("name", GRAPHS)
def test_everything_learns(name: str) -> None:
    module, brightness = calibrated(GRAPHS[name]()).train(), images().float().mean((1, 2, 3))
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


def test_state_dict_is_a_checkpoint() -> None:
    module = calibrated(residual()).eval()
    keys = set(module.state_dict())
    assert {"l1.0.1.conv.weight", "l1.0.1.conv.weight_step", "l1.0.1.conv.norm.running_var", "stem.conv.recode.quantizer.step"} <= keys
    again = QuantModule(residual(seed=8), 4, 4).eval()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(images()), module(images()))


@pytest.mark.parametrize("name", ["residual", "concatenated"])
def test_compiles_without_graph_breaks(name: str) -> None:
    module = calibrated(GRAPHS[name]()).train()
    module.freeze_bn()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), module(images()))


def test_steps_may_cross_zero() -> None:
    module = calibrated(mobile(), 8).eval()
    for q in module.quantizers().values():
        q.step.data.mul_(-0.1)  # a large learning rate can do this; the grid is |step|
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
