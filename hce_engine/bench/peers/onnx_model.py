"""A float graph as an ONNX model, node by node under its own name: what ONNX Runtime and OpenVINO read.

Written from the graph and not traced from PyTorch, so that convolution, residual addition and activation stand in the
order in which both engines fuse them, and profiles carry our names. The batch is the symbolic dimension ``N``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node

if TYPE_CHECKING:
    import onnx

BATCH, INPUT, OUTPUT = "N", "input", "logits"
_OPSET, _IR_VERSION = 17, 9


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """The checked model of a graph with one float member and a normalised float32 input.

    Raises UnsupportedError for an operation that is not float32 arithmetic.
    """
    import onnx

    writer = _Writer()
    names = {graph.input.name: INPUT}
    for node in graph.nodes:
        if node.op != "input":
            names[node.name] = writer.write(node, [names[i] for i in node.inputs])
    writer.add("Identity", [names[graph.members[0].output]], "logits", OUTPUT)
    float32 = onnx.TensorProto.FLOAT
    logits = graph[graph.members[0].output].spec.shape
    body = onnx.helper.make_graph(
        writer.nodes, graph.members[0].name,
        [onnx.helper.make_tensor_value_info(INPUT, float32, [BATCH, *graph.input.spec.shape])],
        [onnx.helper.make_tensor_value_info(OUTPUT, float32, [BATCH, *logits])], writer.constants,
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION,
                                   producer_name="hce-engine")
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects ONNX nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def write(self, node: Node, inputs: list[str]) -> str:
        """The name of the tensor that holds the node's result."""
        operation = _OPERATIONS.get(node.op)
        if operation is None:
            raise UnsupportedError(f"ONNX model, %{node.name}", expected="a float32 operation", got=node.op,
                                   fix="give the peer the float original")
        return operation(self, node, inputs)

    def add(self, op: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        import onnx

        output = output or f"{name}:out"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.float32) -> str:
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def clamp(self, x: str, node: Node) -> str:
        low, high = node.attrs["min"], node.attrs["max"]
        if low is None and high is None:
            return x
        if (low, high) == (0, None):
            return self.add("Relu", [x], f"{node.name}.relu")
        limits = [self.constant(f"{node.name}.{key}", np.float32(value)) if value is not None else ""
                  for key, value in (("min", low), ("max", high))]
        return self.add("Clip", [x, *limits] if limits[1] else [x, limits[0]], f"{node.name}.clip")


def _conv2d(w: _Writer, node: Node, inputs: list[str]) -> str:
    a = node.attrs
    (ph, pw), weight = a["padding"], node.params["weight"]
    tensors = [inputs[0], *(w.constant(f"{node.name}.{key}", node.params[key]) for key in ("weight", "bias"))]
    y = w.add("Conv", tensors, node.name, kernel_shape=list(weight.shape[2:]), strides=list(a["stride"]), pads=[ph, pw, ph, pw],
              dilations=list(a["dilation"]), group=a["groups"])
    if len(inputs) == 2:
        y = w.add("Add", [y, inputs[1]], f"{node.name}.add")
    return w.clamp(y, node)


def _linear(w: _Writer, node: Node, inputs: list[str]) -> str:
    tensors = [inputs[0], *(w.constant(f"{node.name}.{key}", node.params[key]) for key in ("weight", "bias"))]
    return w.clamp(w.add("Gemm", tensors, node.name, transB=1), node)


def _pool(w: _Writer, node: Node, inputs: list[str]) -> str:
    a = node.attrs
    ph, pw = a["padding"]
    same: dict[str, Any] = {"kernel_shape": list(a["kernel"]), "strides": list(a["stride"]), "pads": [ph, pw, ph, pw]}
    if node.op == "max_pool2d":
        return w.add("MaxPool", inputs, node.name, **same)
    return w.add("AveragePool", inputs, node.name, count_include_pad=a["count_include_pad"], **same)


def _channel_pad(w: _Writer, node: Node, inputs: list[str]) -> str:
    pads = np.array([0, node.attrs["before"], 0, 0, 0, node.attrs["after"], 0, 0], np.int64)
    return w.add("Pad", [inputs[0], w.constant(f"{node.name}.pads", pads)], node.name, mode="constant")


def _strided_slice(w: _Writer, node: Node, inputs: list[str]) -> str:
    (h0, h1, hs), (w0, w1, ws) = node.attrs["h"], node.attrs["w"]
    values = {"starts": [h0, w0], "ends": [h1, w1], "axes": [2, 3], "steps": [hs, ws]}
    return w.add("Slice", [inputs[0], *(w.constant(f"{node.name}.{k}", np.array(v, np.int64)) for k, v in values.items())], node.name)


def _batch_norm(w: _Writer, node: Node, inputs: list[str]) -> str:
    tensors = [w.constant(f"{node.name}.{key}", node.params[key]) for key in ("gamma", "beta", "mean", "var")]
    return w.add("BatchNormalization", [inputs[0], *tensors], node.name, epsilon=float(node.attrs["eps"]))


_OPERATIONS: dict[str, Callable[[_Writer, Node, list[str]], str]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "add": lambda w, node, inputs: w.clamp(w.add("Add", inputs, node.name), node),
    "clamp": lambda w, node, inputs: w.clamp(inputs[0], node),
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "global_avg_pool": lambda w, node, inputs: w.add("GlobalAveragePool", inputs, node.name),
    "flatten": lambda w, node, inputs: w.add("Flatten", inputs, node.name, axis=1),
    "channel_pad": _channel_pad,
    "strided_slice": _strided_slice,
    "concat": lambda w, node, inputs: w.add("Concat", inputs, node.name, axis=1),
    "mean": lambda w, node, inputs: w.add("Mean", inputs, node.name),
}
