"""Small float graphs, built by hand, that between them hold every pattern the training code must understand."""

from __future__ import annotations

import numpy as np

from hce_engine.graph import Graph, Member, Node, TensorSpec, verify
from hce_engine.graph.ops import OPS
from hce_engine.preprocess import UINT8_NHWC, InputSpec

CLASSES = 5


class Builder:
    """Appends nodes with random parameters and inferred shapes; every method returns the new node's name."""

    def __init__(self, shape: tuple[int, int, int] = (3, 12, 12), kind: str = UINT8_NHWC, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        c = shape[0]
        self.input = InputSpec(kind, shape, (0.485, 0.456, 0.406)[:c], (0.229, 0.224, 0.225)[:c])
        image = self.input.input_node()
        self.nodes = {image.name: image}
        self.keep(self.input.normalize_node("norm", image.name))

    def keep(self, node: Node) -> str:
        self.nodes[node.name] = node
        return node.name

    def node(self, op: str, name: str, inputs: tuple[str, ...], attrs: dict | None = None, params: dict | None = None) -> str:
        specs = [self.nodes[i].spec for i in inputs]
        shape = OPS[op].infer(specs, attrs or {}, params or {})
        return self.keep(Node(name, op, inputs, TensorSpec(shape), attrs or {}, params or {}))

    def _normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def conv(
        self, name: str, x: str, channels: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, bias: bool = False,
        padding: int | None = None, low: float | None = None, high: float | None = None,
    ) -> str:
        c = self.nodes[x].spec.shape[0] // groups
        pad = kernel // 2 if padding is None else padding
        params = {
            "weight": self._normal(channels, c, kernel, kernel) * np.float32(np.sqrt(2 / (c * kernel * kernel))),
            "bias": self._normal(channels) * np.float32(0.2 * bias),
        }
        attrs = {
            "stride": [stride, stride], "padding": [pad, pad], "dilation": [1, 1], "groups": groups, "min": low,
            "max": high, "folded_norm": 0,
        }
        return self.node("conv2d", name, (x,), attrs, params)

    def bn(self, name: str, x: str) -> str:
        c = self.nodes[x].spec.shape[0]
        params = {
            "gamma": (1 + 0.3 * self._normal(c)).astype(np.float32), "beta": 0.2 * self._normal(c),
            "mean": 0.2 * self._normal(c), "var": self.rng.uniform(0.5, 1.5, c).astype(np.float32),
        }
        return self.node("batch_norm", name, (x,), {"eps": 1e-5}, params)

    def clamp(self, name: str, x: str, low: float | None = 0, high: float | None = None) -> str:
        return self.node("clamp", name, (x,), {"min": low, "max": high})

    def add(self, name: str, a: str, b: str) -> str:
        return self.node("add", name, (a, b), {"min": None, "max": None})

    def conv_bn(self, name: str, x: str, channels: int, relu: bool = True, high: float | None = None, **keys: int) -> str:
        y = self.bn(f"{name}.bn", self.conv(f"{name}.conv", x, channels, **keys))
        return self.clamp(f"{name}.relu", y, 0, high) if relu else y

    def max_pool(self, name: str, x: str, kernel: int = 3, stride: int = 2, padding: int = 1) -> str:
        return self.node("max_pool2d", name, (x,), self._window(kernel, stride, padding))

    def avg_pool(self, name: str, x: str, kernel: int = 2, stride: int = 2, padding: int = 0) -> str:
        return self.node("avg_pool2d", name, (x,), {**self._window(kernel, stride, padding), "count_include_pad": 1})

    @staticmethod
    def _window(kernel: int, stride: int, padding: int) -> dict:
        return {"kernel": [kernel, kernel], "stride": [stride, stride], "padding": [padding, padding]}

    def option_a(self, name: str, x: str, channels: int) -> str:
        c, h, w = self.nodes[x].spec.shape
        y = self.node("strided_slice", f"{name}.slice", (x,), {"h": [0, h, 2], "w": [0, w, 2]})
        extra = channels - c
        return self.node("channel_pad", f"{name}.pad", (y,), {"before": extra // 2, "after": extra - extra // 2})

    def concat(self, name: str, *xs: str) -> str:
        return self.node("concat", name, xs)

    def linear(self, name: str, x: str, features: int) -> str:
        f = self.nodes[x].spec.shape[0]
        params = {"weight": self._normal(features, f) * np.float32(f**-0.5), "bias": 0.1 * self._normal(features)}
        return self.node("linear", name, (x,), {"min": None, "max": None}, params)

    def head(self, x: str) -> Graph:
        pooled = self.node("flatten", "flat", (self.node("global_avg_pool", "pool", (x,)),))
        return self.graph(self.linear("fc", pooled, CLASSES))

    def graph(self, output: str) -> Graph:
        return verify(Graph(tuple(self.nodes.values()), (Member("o", output),)))


def residual(seed: int = 0, kind: str = UINT8_NHWC) -> Graph:
    """Stem, then blocks with an identity, an option-A and a projection shortcut."""
    b = Builder(kind=kind, seed=seed)
    x = b.conv_bn("stem", "norm", 8)
    for name, channels, stride, shortcut in (("l1.0", 8, 1, "id"), ("l2.0", 12, 2, "a"), ("l3.0", 16, 2, "b")):
        y = b.conv_bn(f"{name}.1", x, channels, stride=stride)
        y = b.conv_bn(f"{name}.2", y, channels, relu=False)
        if shortcut == "a":
            x = b.option_a(f"{name}.short", x, channels)
        elif shortcut == "b":
            x = b.conv_bn(f"{name}.short", x, channels, relu=False, kernel=1, stride=stride)
        x = b.clamp(f"{name}.relu", b.add(f"{name}.add", y, x))
    return b.head(x)


def plain(seed: int = 1) -> Graph:
    """VGG-like: biases, max pool between low-bit tensors, a hidden linear over a flattened map, average pool."""
    b = Builder(seed=seed)
    x = b.conv_bn("c1", "norm", 8)
    x = b.max_pool("p1", x, 2, 2, 0)
    x = b.clamp("r2", b.conv("c2", x, 12, bias=True))
    x = b.avg_pool("p2", x)
    x = b.conv("c3", x, 8, bias=True, low=0)
    x = b.node("flatten", "flat", (x,))
    x = b.clamp("r4", b.linear("fc1", x, 16))
    return b.graph(b.linear("fc2", x, CLASSES))


def mobile(seed: int = 2) -> Graph:
    """MobileNetV2-like: relu6, depthwise, linear bottlenecks with and without an addition."""
    b = Builder(seed=seed)
    x = b.conv_bn("stem", "norm", 8, high=6)
    for name, residual_here in (("b1", False), ("b2", True), ("b3", True)):
        y = b.conv_bn(f"{name}.expand", x, 16, high=6, kernel=1)
        y = b.conv_bn(f"{name}.depthwise", y, 16, high=6, groups=16)
        y = b.conv_bn(f"{name}.project", y, 8, relu=False, kernel=1)
        x = b.add(f"{name}.add", x, y) if residual_here else y
    return b.head(b.conv_bn("last", x, 24, high=6, kernel=1))


def concatenated(seed: int = 3) -> Graph:
    """Two branches and the stem itself in a concat; a relu after it; a padded max pool."""
    b = Builder(seed=seed)
    x = b.max_pool("p", b.conv_bn("stem", "norm", 8))
    y = b.concat("cat", b.conv_bn("left", x, 6, kernel=1), b.conv_bn("right", x, 6, relu=False), x)
    return b.head(b.conv_bn("last", b.clamp("cat.relu", y), 16))


def preactivated(seed: int = 4) -> Graph:
    """WRN-like: batch norm and relu before the convolutions, sums without relu, two convolutions on one input."""
    b = Builder(seed=seed)
    x = b.conv("stem", "norm", 8)
    for name, channels, stride in (("b1", 8, 1), ("b2", 12, 2)):
        pre = b.clamp(f"{name}.relu1", b.bn(f"{name}.bn1", x))
        y = b.conv_bn(f"{name}.c1", pre, channels, stride=stride)
        y = b.conv(f"{name}.c2", y, channels)
        short = x if stride == 1 else b.conv(f"{name}.short", pre, channels, 1, stride)
        x = b.add(f"{name}.add", y, short)
    return b.head(b.clamp("relu", b.bn("bn", x)))


GRAPHS = {
    "residual": residual, "plain": plain, "mobile": mobile, "concatenated": concatenated, "preactivated": preactivated,
}


def pictures(count: int, shape: tuple[int, int, int] = (3, 12, 12), seed: int = 0) -> np.ndarray:
    """Smooth random uint8 images ``(N, C, H, W)``: neighbouring pixels agree, as in photographs."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    coarse = rng.uniform(0, 255, (count, c, -(-h // 3), -(-w // 3)))
    fine = coarse.repeat(3, axis=2)[:, :, :h].repeat(3, axis=3)[:, :, :, :w] + rng.normal(0, 12, (count, c, h, w))
    return np.clip(fine, 0, 255).astype(np.uint8)
