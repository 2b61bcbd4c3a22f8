"""The layers of float members that are measured: plain data, no torch.

Pruned networks keep the widths of their residual stream and lose filters inside the blocks. ``s43.5`` are the architectures with
every block cut by one factor to 43.5 % of the multiply-accumulates; the shipped S has the widths that its training left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from hce_engine import artifact
from hce_engine.graph import Graph
from hce_engine.kernels.description import Geometry

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "hce-resnet20-cifar10.hce"
RATIO = 0.435
BATCHES = {"resnet50": (256,), "mobilenet_v2": (256,)}
CIFAR_BATCHES = (4096, 1024, 8192, 256)


@dataclass(frozen=True)
class FloatLayer:
    """A convolution, or with size 1 a linear layer, with bias and ReLU. residual: a map is added first.  count: of such
    layers in the network."""

    network: str
    channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    residual: bool = False
    count: int = 1

    @property
    def linear(self) -> bool:
        return self.size == 1

    @property
    def geometry(self) -> Geometry:
        padding = self.kernel // 2
        out = (self.size + 2 * padding - self.kernel) // self.stride + 1
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (padding,) * 2, (1, 1), (out, out))

    @property
    def taps(self) -> int:
        return self.channels // self.groups * self.kernel**2

    @property
    def macs(self) -> int:
        """Per image."""
        out = self.geometry.out
        return self.out_channels * self.taps * out[0] * out[1]

    @property
    def shape(self) -> tuple[object, ...]:
        return astuple(replace(self, network="", count=1))

    @property
    def name(self) -> str:
        if self.linear:
            return f"{self.network} {self.channels}->{self.out_channels} linear"
        return (f"{self.network} {self.size}x{self.size} {self.channels}->{self.out_channels} {self.kernel}x{self.kernel}"
                f"{f' s{self.stride}' if self.stride > 1 else ''}{f' g{self.groups}' if self.groups > 1 else ''}"
                f"{' +residual' if self.residual else ''}")


def counted(layers: Iterable[FloatLayer]) -> tuple[FloatLayer, ...]:
    """Each layer once, with how often it occurs."""
    return tuple(replace(layer, count=count) for layer, count in Counter(layers).items())


def cifar(network: str, depth: int, inner: Callable[[int], int] = lambda width: width) -> tuple[FloatLayer, ...]:
    """A CIFAR ResNet with shortcut A and ``inner(width)`` channels inside its blocks."""
    layers, before = [FloatLayer(network, 3, 16, 32)], 16
    for width, size in ((16, 32), (32, 16), (64, 8)):
        for block in range((depth - 2) // 6):
            first = block == 0 and width > 16
            layers += [FloatLayer(network, before, inner(width), 2 * size if first else size, 3, 2 if first else 1),
                       FloatLayer(network, inner(width), width, size, residual=True)]
            before = width
    return counted([*layers, FloatLayer(network, 64, 10, 1, 1)])


def total_macs(layers: Iterable[FloatLayer]) -> int:
    return sum(layer.macs * layer.count for layer in layers)


def uniform(network: str, depth: int, ratio: float = RATIO) -> tuple[FloatLayer, ...]:
    """The widest uniform cut of the blocks that costs at most ``ratio`` of the network."""
    whole = total_macs(cifar(network, depth))
    cuts = (cifar(network, depth, lambda width, keep=keep: max(1, round(width * keep / 256))) for keep in range(256, 0, -1))  # type: ignore[misc]
    return next(layers for layers in cuts if total_macs(layers) <= ratio * whole)


def of_member(graph: Graph, network: str) -> tuple[FloatLayer, ...]:
    """The convolutions with square kernels on square maps, and the linear layers, of a float member."""
    found = []
    for node in graph.nodes:
        if node.op == "conv2d":
            (_, height, width), a, weight = graph[node.inputs[0]].spec.shape, node.attrs, node.params["weight"]
            (sh, sw), (kh, kw) = a["stride"], weight.shape[2:]
            assert height == width and sh == sw and kh == kw and tuple(a["padding"]) == (kh // 2, kw // 2)
            found.append(FloatLayer(network, weight.shape[1] * a["groups"], len(weight), height, kh, sh, a["groups"], len(node.inputs) == 2))
        elif node.op == "linear":
            found.append(FloatLayer(network, node.params["weight"].shape[1], len(node.params["weight"]), 1, 1))
    return counted(found)


def resnet50() -> tuple[FloatLayer, ...]:
    """Of each kind and width some: 1x1 down and up, 3x3, a stride, the stem and the head."""
    layers = [FloatLayer("resnet50", 3, 64, 224, 7, 2)]
    for width, size in ((64, 56), (256, 14), (512, 7)):
        layers += [FloatLayer("resnet50", 4 * width, width, size, 1), FloatLayer("resnet50", width, width, size, 3),
                   FloatLayer("resnet50", width, 4 * width, size, 1, residual=True)]
    return (*layers, FloatLayer("resnet50", 128, 128, 56, 3, 2), FloatLayer("resnet50", 2048, 1000, 1, 1))


def depthwise() -> tuple[FloatLayer, ...]:
    return tuple(FloatLayer("mobilenet_v2", channels, channels, size, 3, stride, channels)
                 for channels, size, stride in ((96, 112, 2), (144, 56, 1), (384, 14, 1), (960, 7, 1)))


def layers() -> tuple[FloatLayer, ...]:
    """Every distinct shape once, the goal's network first."""
    shipped = of_member(artifact.load(SHIPPED).graph.only("s"), "shipped s")
    groups = (uniform("resnet20-s43.5", 20), cifar("resnet20", 20), shipped, resnet50(), uniform("resnet56-s43.5", 56), depthwise())
    found: dict[tuple[object, ...], FloatLayer] = {}
    for layer in (layer for group in groups for layer in group):
        found.setdefault(layer.shape, layer)
    return tuple(found.values())


def batches(layer: FloatLayer) -> tuple[int, ...]:
    return BATCHES.get(layer.network, CIFAR_BATCHES)
