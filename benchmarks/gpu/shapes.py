"""What is measured: matrix products, the layers of three networks, and batches. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from hce_engine.kernels.description import Geometry
from hce_engine.kernels.formats import MapFormat

Value = TypeVar("Value")

# (N, K), the largest square first: what a short run still reaches.
GEMM_NK = ((8192, 8192), (28672, 4096), (4096, 4096), (1024, 1024))
GEMM_M = (1, 16, 64, 256, 1024, 4096)
LAYER_BATCHES = {"resnet20": (1024, 4096), "resnet50": (256,)}
TUNE_BATCHES = {"resnet20": (4096, 1024, 256, 8192), "resnet50": (256,)}
MEMBER_BATCHES = {"resnet20": (4096, 1024, 256, 8192), "resnet56": (4096, 1024, 256, 8192), "resnet50": (256,)}


@dataclass(frozen=True)
class Precision:
    """Bits of weights and of activations, as stored."""

    weight_bits: int
    x_bits: int

    @property
    def name(self) -> str:
        return f"w{self.weight_bits}a{self.x_bits}"


# w4a4 of the networks; 8-bit activations are what language models use.
PRECISIONS = tuple(Precision(w, x) for x, w in product((8, 4), (4, 3, 8)))


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with everything that its kernel is compiled for, but the batch.

    weight_bits: of the type.  x_bits, y_bits, recoded_bits: of storage, 0 for an output that is not written.  residual: an
    8-bit map is added.  halo: around the outputs, for the layer that reads them.  count: of such layers in the network.
    """

    network: str
    channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1
    x_bits: int = 4
    weight_bits: int = 4
    y_bits: int = 4
    recoded_bits: int = 0
    residual: bool = False
    halo: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        outputs = "+".join(f"u{bits}" for bits in (self.y_bits, self.recoded_bits) if bits)
        return (f"{self.network} {self.size}x{self.size} {self.channels}->{self.out_channels} {self.kernel}x{self.kernel}"
                f"{f' s{self.stride}' if self.stride > 1 else ''} w{self.weight_bits}a{self.x_bits}->{outputs}"
                f"{' +residual' if self.residual else ''}")

    @property
    def geometry(self) -> Geometry:
        padding = self.kernel // 2
        out = (self.size + 2 * padding - self.kernel) // self.stride + 1
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (padding,) * 2, (1, 1), (out, out))

    @property
    def x(self) -> MapFormat:
        form = MapFormat(self.channels, self.size, self.size, self.x_bits)
        return form.with_halo(self.geometry.halo(self.size, self.size))

    def output(self, bits: int) -> MapFormat:
        height, width = self.geometry.out
        return MapFormat(self.out_channels, height, width, bits, (self.halo,) * 4)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.channels, self.kernel, self.kernel

    @property
    def macs(self) -> int:
        """Per image."""
        out = self.geometry.out
        return self.out_channels * self.channels * self.kernel**2 * out[0] * out[1]

    def key(self, batch: int) -> str:
        """The shape as tables of tuned configurations name it (hce_engine/plan/cuda/select.py)."""
        weight = f"s{self.weight_bits}[{self.out_channels}x{self.kernel}x{self.kernel}]"
        outputs = [f"y{self.y_bits}"] * (self.y_bits > 0) + [f"recoded{self.recoded_bits}"] * (self.recoded_bits > 0)
        out = self.geometry.out
        return " ".join([
            f"x{self.x_bits}[{self.channels}x{self.size}x{self.size}]", weight, f"stride{self.stride},{self.stride}",
            "dilation1,1", f"out{out[0]}x{out[1]}", "+".join(sorted(outputs)), *(["residual"] if self.residual else []),
            f"images{batch}",
        ])


def gemm_key(n: int, k: int, m: int, precision: Precision) -> str:
    return f"x{precision.x_bits}[{k}x1x1] s{precision.weight_bits}[{n}x1x1] logits images{m}"


def resnet20(weight_bits: int = 4, activation_bits: int = 4) -> tuple[ConvLayer, ...]:
    """Every distinct layer of ResNet-20 with shortcut A; ResNet-56 has the same. Counts are those of ResNet-20.

    3-bit codes of fewer than 64 channels are stored as 4 bits (hce_engine/plan/cuda/storage.py).
    """
    thin = max(activation_bits, 4)
    layers = [ConvLayer("resnet20", 3, 16, 32, 3, 1, 8, 8, 8, thin, halo=1)]
    for channels, size, plain in ((16, 32, 3), (32, 16, 2), (64, 8, 2)):
        bits = activation_bits if channels == 64 else thin
        if channels > 16:
            before = activation_bits if channels == 128 else thin
            layers.append(ConvLayer("resnet20", channels // 2, channels, 2 * size, 3, 2, before, weight_bits, bits, halo=1))
        inner = ConvLayer("resnet20", channels, channels, size, 3, 1, bits, weight_bits, bits, halo=1, count=plain)
        layers += [inner, replace(inner, y_bits=8, recoded_bits=bits, residual=True, count=2 if channels == 64 else 3)]
    return (*layers, replace(layers[-1], recoded_bits=0, count=1))


def resnet50() -> tuple[ConvLayer, ...]:
    """Every distinct convolution of ResNet-50 for 224x224 images, in the order of the network."""
    layers = [ConvLayer("resnet50", 3, 64, 224, 7, 2, 8, 8, 4, halo=1)]
    inputs = 64
    for width, size, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        stride, outer = (1, 56) if width == 64 else (2, 2 * size)
        out = 4 * width
        first, last = width == 64, width == 512
        layers += [
            ConvLayer("resnet50", inputs, width, outer, 1, halo=1),
            ConvLayer("resnet50", width, width, outer, 3, stride, count=3 if first else 1),
            ConvLayer("resnet50", width, out, size, 1, y_bits=8),
            ConvLayer("resnet50", inputs, out, outer, 1, stride, y_bits=8, recoded_bits=4, residual=True, count=0 if first else 1),
            ConvLayer("resnet50", out, width, size, 1, halo=1, count=blocks - 1),
            ConvLayer("resnet50", width, width, size, 3, count=0 if first else blocks - 1),
            ConvLayer("resnet50", width, out, size, 1, y_bits=8, recoded_bits=4, residual=True, count=blocks - 2 + first),
            ConvLayer("resnet50", width, out, size, 1, y_bits=8 if last else 4, residual=True),
        ]
        inputs = out
    return tuple(layer for layer in layers if layer.count)


def networks() -> dict[str, tuple[ConvLayer, ...]]:
    return {"resnet20": resnet20(), "resnet50": resnet50()}


def spread(values: Sequence[Value], count: int) -> list[Value]:
    """The first value and others evenly apart, ``count`` in all or fewer."""
    if len(values) <= count:
        return list(values)
    step = (len(values) - 1) / max(count - 1, 1)
    return [values[round(i * step)] for i in range(count)]
