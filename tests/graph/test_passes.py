"""Each pass on small graphs: what it changes, what it must leave alone, and that values stay."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from hce_engine.backends import reference
from hce_engine.errors import GraphError
from hce_engine.graph import Graph, Member, Node, TensorSpec, verify
from hce_engine.graph.ops import OPS
from hce_engine.graph.passes import drop_dead, fold_batch_norm, fuse_clamp, fuse_residual, lower

RNG = np.random.default_rng(5)
CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "min": None, "max": None, "folded_norm": 0}
RELU = {"min": 0.0, "max": None}
FREE = {"min": None, "max": None}


class Sketch:
    """Writes a graph line by line over images of 3x6x6."""

    def __init__(self) -> None:
        self.nodes = [Node("x", "input", (), TensorSpec((3, 6, 6)))]

    def add(self, name: str, op: str, *inputs: str, attrs: dict | None = None, params: dict | None = None) -> Sketch:
        specs = {n.name: n.spec for n in self.nodes}
        shape = OPS[op].infer([specs[i] for i in inputs], attrs or {}, params or {})
        self.nodes.append(Node(name, op, inputs, TensorSpec(tuple(shape)), attrs or {}, params or {}))
        return self

    def conv(self, name: str, source: str, inputs: int = 4, outputs: int = 4, kernel: int = 3) -> Sketch:
        params = {"weight": RNG.normal(size=(outputs, inputs, kernel, kernel)).astype(np.float32),
                  "bias": RNG.normal(size=outputs).astype(np.float32)}
        padding = [kernel // 2, kernel // 2]
        return self.add(name, "conv2d", source, attrs={**CONV, "padding": padding}, params=params)

    def norm(self, name: str, source: str, channels: int = 4) -> Sketch:
        params = {k: RNG.uniform(0.3, 1.5, channels).astype(np.float32) for k in ("gamma", "beta", "mean", "var")}
        return self.add(name, "batch_norm", source, attrs={"eps": 1e-5}, params=params)

    def done(self, last: str) -> Graph:
        features = next(n.spec.elements for n in self.nodes if n.name == last)
        weight = RNG.normal(size=(3, features)).astype(np.float32)
        self.add("flat", "flatten", last)
        self.add("head", "linear", "flat", attrs=FREE, params={"weight": weight, "bias": np.zeros(3, np.float32)})
        return verify(Graph(tuple(self.nodes), (Member("o", "head"),)))


def same_values(before: Graph, after: Graph) -> None:
    images = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
    verify(after)
    want, got = reference.run(before, images)["o"], reference.run(after, images)["o"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op not in ("input", "flatten", "linear")]


def test_fold_into_convolution() -> None:
    graph = Sketch().conv("c", "x", 3).norm("n", "c").done("n")
    folded = fold_batch_norm(graph)
    assert ops(folded) == ["conv2d"]
    assert folded["c"].attrs["folded_norm"] == 1
    same_values(graph, folded)


def test_fold_of_zero_gamma_leaves_the_bias() -> None:
    graph = Sketch().conv("c", "x", 3).norm("n", "c").done("n")
    graph["n"].params["gamma"][:2] = 0
    folded = fold_batch_norm(graph)
    assert not folded["c"].params["weight"][:2].any()
    np.testing.assert_array_equal(folded["c"].params["bias"][:2], graph["n"].params["beta"][:2])
    same_values(graph, folded)


def test_norm_of_an_input_or_sum_becomes_depthwise() -> None:
    graph = Sketch().conv("c", "x", 3).add("s", "add", "c", "c", attrs=FREE).norm("n", "s").done("n")
    folded = fold_batch_norm(graph)
    assert ops(folded) == ["conv2d", "add", "conv2d"]
    assert folded["n"].attrs["groups"] == 4
    same_values(graph, folded)


def test_convolution_that_is_read_twice_keeps_its_values() -> None:
    graph = Sketch().conv("c", "x", 3).norm("n", "c").add("s", "add", "c", "n", attrs=FREE).done("s")
    folded = fold_batch_norm(graph)
    np.testing.assert_array_equal(folded["c"].params["weight"], graph["c"].params["weight"])
    same_values(graph, folded)


def test_two_norms_in_a_row_both_fold() -> None:
    graph = Sketch().conv("c", "x", 3).norm("n", "c").norm("m", "n").done("m")
    folded = fold_batch_norm(graph)
    assert ops(folded) == ["conv2d"]
    same_values(graph, folded)


def test_norm_of_a_vector_without_linear_layer_is_an_error() -> None:
    graph = Sketch().add("f", "flatten", "x").norm("n", "f", 108).done("n")
    with pytest.raises(GraphError, match="follows a linear layer"):
        fold_batch_norm(graph)


@pytest.mark.parametrize(("first", "second", "both"), [
    ((0.0, None), (None, 6.0), (0.0, 6.0)), ((0.0, 6.0), (0.0, None), (0.0, 6.0)), ((0.0, 1.0), (2.0, 3.0), (2.0, 2.0)),
    ((-1.0, 1.0), (None, None), (-1.0, 1.0)), ((2.0, None), (None, 1.0), (1.0, 1.0)),
])
def test_clamps_compose(first: tuple, second: tuple, both: tuple) -> None:
    keys = ("min", "max")
    sketch = Sketch().conv("c", "x", 3)
    sketch.add("a", "clamp", "c", attrs=dict(zip(keys, first, strict=True)))
    graph = sketch.add("b", "clamp", "a", attrs=dict(zip(keys, second, strict=True))).done("b")
    fused = fuse_clamp(graph)
    assert ops(fused) == ["conv2d"]
    assert (fused["c"].attrs["min"], fused["c"].attrs["max"]) == both
    same_values(graph, fused)


def test_clamp_stays_where_the_unclamped_value_is_read_too() -> None:
    graph = Sketch().conv("c", "x", 3).add("r", "clamp", "c", attrs=RELU).add("s", "add", "r", "c", attrs=FREE).done("s")
    fused = fuse_clamp(graph)
    assert ops(fused) == ["conv2d", "clamp", "add"]


def test_residual_computed_after_the_convolution() -> None:
    sketch = Sketch().conv("stem", "x", 3).conv("c", "stem")
    sketch.add("late", "max_pool2d", "stem", attrs={"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]})
    graph = sketch.add("s", "add", "c", "late", attrs=FREE).add("r", "clamp", "s", attrs=RELU).done("r")
    fused = fuse_residual(fuse_clamp(graph))
    assert ops(fused) == ["conv2d", "max_pool2d", "conv2d"]
    assert fused["c"].inputs == ("stem", "late")
    assert fused["c"].attrs["min"] == 0
    same_values(graph, fused)


@pytest.mark.parametrize("swap", [False, True])
def test_projection_is_the_residual_of_the_main_path(swap: bool) -> None:
    sketch = Sketch().conv("stem", "x", 3).conv("c1", "stem").conv("c2", "c1").conv("projection", "stem", kernel=1)
    operands = ("projection", "c2") if swap else ("c2", "projection")
    graph = sketch.add("s", "add", *operands, attrs=FREE).done("s")
    fused = fuse_residual(graph)
    assert fused["c2"].inputs == ("c1", "projection")
    same_values(graph, fused)


def test_clamped_or_shared_operand_is_not_fused() -> None:
    sketch = Sketch().conv("a", "x", 3).conv("b", "x", 3).add("ra", "clamp", "a", attrs=RELU)
    sketch.add("s", "add", "ra", "b", attrs=FREE)
    graph = sketch.add("t", "add", "s", "b", attrs=FREE).done("t")
    fused = fuse_residual(fuse_clamp(graph))
    assert ops(fused) == ["conv2d", "conv2d", "add", "add"]
    same_values(graph, fused)


def test_chain_of_additions() -> None:
    sketch = Sketch().conv("stem", "x", 3).conv("a", "stem").conv("b", "stem").add("s", "add", "a", "stem", attrs=FREE)
    graph = sketch.add("t", "add", "s", "b", attrs=FREE).done("t")
    fused = fuse_residual(graph)
    assert ops(fused) == ["conv2d", "conv2d", "conv2d"]
    assert fused["b"].inputs == ("stem", "a")
    same_values(graph, fused)


def test_node_that_is_an_output_is_neither_folded_nor_fused_away() -> None:
    sketch = Sketch().add("f", "flatten", "x")
    params = {"weight": RNG.normal(size=(3, 108)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    sketch.add("early", "linear", "f", attrs=FREE, params=params).add("late", "clamp", "early", attrs=RELU)
    graph = verify(Graph(tuple(sketch.nodes), (Member("early", "early"), Member("late", "late"))))
    assert fuse_clamp(graph)["early"].attrs["min"] is None


def test_dead_nodes_go() -> None:
    graph = Sketch().conv("c", "x", 3).conv("unused", "c").done("c")
    assert "unused" not in drop_dead(graph)


def test_lower_twice_is_lower_once() -> None:
    sketch = Sketch().conv("stem", "x", 3).norm("n0", "stem").add("r0", "clamp", "n0", attrs=RELU).conv("c1", "r0")
    sketch.norm("n1", "c1").add("s", "add", "n1", "r0", attrs=FREE).add("r1", "clamp", "s", attrs=RELU)
    graph = sketch.done("r1")
    once = lower(graph)
    assert ops(once) == ["conv2d", "conv2d"]
    assert str(lower(once)) == str(once)
    same_values(graph, once)


def test_lower_refuses_an_illegal_graph() -> None:
    graph = Sketch().conv("c", "x", 3).done("c")
    graph["c"].params["weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(GraphError, match="finite"):
        lower(graph)


def test_weights_that_overflow_are_refused_without_a_warning() -> None:
    sketch = Sketch().add("conv", "conv2d", "x", attrs=CONV, params={
        "weight": np.full((4, 3, 3, 3), 1e30, np.float32), "bias": np.zeros(4, np.float32)})
    sketch.add("norm", "batch_norm", "conv", attrs={"eps": 1e-5}, params={
        "gamma": np.full(4, 1e30, np.float32), "beta": np.zeros(4, np.float32),
        "mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)})
    sketch.add("flat", "flatten", "norm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = fold_batch_norm(Graph(tuple(sketch.nodes), (Member("o", "flat"),)))
    with pytest.raises(GraphError, match="finite values in weight"):
        verify(folded)
