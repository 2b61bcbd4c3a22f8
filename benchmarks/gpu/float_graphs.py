"""Graphs of one float layer and of every other float operation, with random constants, through which kernels are reached the
way plans reach them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hce_engine.graph import OPS, Graph, Member, Node, TensorSpec, verify

from .float_shapes import FloatLayer

LAYER, MEMBER = "layer", "m"


class Nodes:
    """Nodes in order, over one input ``image``; shapes follow from the operations."""

    def __init__(self, shape: tuple[int, ...], dtype: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes = [Node("image", "input", (), TensorSpec(shape, dtype))]
        self._specs = {"image": self.nodes[0].spec}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].shape

    def add(
        self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, np.ndarray] | None = None, name: str = "",
    ) -> str:
        name = name or f"{op}{len(self.nodes)}"
        shape = OPS[op].infer([self._specs[i] for i in inputs], attrs or {}, params or {})
        self._specs[name] = TensorSpec(tuple(shape), "f32")
        self.nodes.append(Node(name, op, tuple(inputs), self._specs[name], attrs or {}, params or {}))
        return name

    def conv(self, x: str, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, residual: str | None = None, name: str = "") -> str:
        """With padding to the size of its input, bias and ReLU; sums of the magnitude of their inputs."""
        shape = (outputs, self.shape(x)[0] // groups, kernel, kernel)
        params = {"weight": (self.rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32),
                  "bias": self.rng.standard_normal(outputs).astype(np.float32)}
        attrs = {"stride": (stride,) * 2, "padding": (kernel // 2,) * 2, "dilation": (1, 1), "groups": groups, "min": 0.0, "max": None,
                 "folded_norm": 0}
        return self.add("conv2d", [x, *([residual] if residual else [])], attrs, params, name)

    def linear(self, x: str, outputs: int, name: str = "") -> str:
        (features,) = self.shape(x)
        params = {"weight": (self.rng.standard_normal((outputs, features)) / features**0.5).astype(np.float32),
                  "bias": self.rng.standard_normal(outputs).astype(np.float32)}
        return self.add("linear", [x], {"min": 0.0, "max": None}, params, name)

    def finish(self, output: str) -> Graph:
        """A map is flattened: what the member yields is every value of it."""
        if len(self.shape(output)) > 1:
            output = self.add("flatten", [output])
        return verify(Graph(tuple(self.nodes), (Member(MEMBER, output),)))


def of_layer(layer: FloatLayer, seed: int = 0) -> Graph:
    """Float images ``(C, size, size)``, the layer, whose node is called LAYER, and its outputs as logits. The residual is made of
    the image: the image itself would be in the cache already."""
    made = Nodes((layer.channels, layer.size, layer.size), "f32", seed)
    if layer.linear:
        return made.finish(made.linear(made.add("flatten", ["image"]), layer.out_channels, LAYER))
    residual = None
    if layer.residual:
        more = layer.out_channels - layer.channels
        assert layer.stride == 1 and more >= 0
        residual = (made.add("channel_pad", ["image"], {"before": 0, "after": more}) if more
                    else made.add("clamp", ["image"], {"min": -1.0, "max": 1.0}))
    return made.finish(made.conv("image", layer.out_channels, layer.kernel, layer.stride, layer.groups, residual, LAYER))


def zoo(seed: int = 0) -> Graph:
    """uint8 images of 7 x 9 through every float operation but those of :func:`of_layer`, on odd sizes."""
    made = Nodes((3, 7, 9), "u8", seed)
    scale = {"scale": np.full(3, 0.017, np.float32), "offset": np.full(3, -2.1, np.float32)}
    x = made.add("normalize", ["image"], {}, scale)
    a, b = made.conv(x, 5), made.conv(x, 5, groups=1)
    window = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)}
    sums = made.add("add", [a, b], {"min": None, "max": 6.0})
    largest = made.add("max_pool2d", [sums], window)
    average = made.add("avg_pool2d", [made.add("mean", [a, b, sums])], {**window, "count_include_pad": 0})
    joined = made.add("concat", [largest, average])
    every_second = made.add("strided_slice", [joined], {"h": (0, 4, 2), "w": (0, 4, 2)})
    padded = made.add("channel_pad", [every_second], {"before": 1, "after": 2})
    vector = made.add("flatten", [made.add("clamp", [padded], {"min": -0.5, "max": None})])
    pooled = made.add("flatten", [made.add("global_avg_pool", [joined])])
    return made.finish(made.add("add", [made.linear(vector, 7), made.linear(pooled, 7)], {"min": None, "max": None}))
