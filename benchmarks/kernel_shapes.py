"""The layers that kernels are measured on: those of the networks that this project ships, pruned ones, and matrix products.

Plain data. ResNet-20 and ResNet-56 consist of the same layers; their pruned widths are what two FLOPs budgets leave, odd ones
included. A matrix product of M x N x K is a 1x1 convolution on M pixels, or a linear layer where M is 1: with images in
lanes a tile multiplies 16 M rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("f32", "u8xs8", "u4xs4", "u3xs3")


@dataclass(frozen=True)
class Layer:
    """A convolution over a square map of ``size`` pixels a side with same padding; a linear layer where size is 1.

    network: what it is a layer of, the first word of its name in reports.  groups: equal to c for a depthwise layer.
    """

    network: str
    c: int
    oc: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        depthwise = "dw" if self.groups > 1 else ""
        stride = f"s{self.stride}" if self.stride > 1 else ""
        return f"{self.network}/{self.c}-{self.oc}@{self.size}k{self.kernel}{stride}{depthwise}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which it exists in: a layer of pixels has 8-bit inputs or floats."""
        return KINDS[:2] if self.c == 3 else KINDS


def _depthwise(c: int, size: int, stride: int = 1) -> Layer:
    return Layer("mobilenetv2", c, c, size, 3, stride, c)


def _products() -> Iterator[Layer]:
    for pixels in (1, 4, 14):  # M = 1, 16 and 196 per image
        for n, k in ((64, 64), (256, 256), (1000, 1000), (1024, 256), (256, 1024), (97, 61)):
            yield Layer("gemm", k, n, pixels, 1)


CIFAR_RESNET = (
    Layer("cifar", 3, 16, 32), Layer("cifar", 16, 16, 32), Layer("cifar", 16, 32, 32, stride=2), Layer("cifar", 32, 32, 16),
    Layer("cifar", 32, 64, 16, stride=2), Layer("cifar", 64, 64, 8), Layer("cifar", 64, 10, 1, 1),
)
CIFAR_PRUNED = tuple(
    Layer("pruned", c, oc, size)
    for size, pairs in (
        (32, ((16, 5), (5, 16), (16, 7), (7, 16), (16, 10), (10, 16))),
        (16, ((32, 13), (13, 32), (32, 21), (21, 32))),
        (8, ((64, 26), (26, 64), (64, 43), (43, 64))),
    )
    for c, oc in pairs
)
RESNET50 = (
    Layer("resnet50", 3, 64, 224, 7, 2), Layer("resnet50", 64, 64, 56, 1), Layer("resnet50", 64, 64, 56), Layer("resnet50", 64, 256, 56, 1),
    Layer("resnet50", 256, 64, 56, 1), Layer("resnet50", 128, 128, 56, stride=2), Layer("resnet50", 256, 512, 56, 1, 2),
    Layer("resnet50", 128, 128, 28), Layer("resnet50", 512, 128, 28, 1), Layer("resnet50", 256, 256, 14), Layer("resnet50", 1024, 256, 14, 1),
    Layer("resnet50", 512, 512, 7), Layer("resnet50", 512, 2048, 7, 1), Layer("resnet50", 2048, 1000, 1, 1),
)
MOBILENETV2 = (
    Layer("mobilenetv2", 3, 32, 224, 3, 2), _depthwise(32, 112), Layer("mobilenetv2", 32, 16, 112, 1), Layer("mobilenetv2", 16, 96, 112, 1),
    _depthwise(96, 112, 2), Layer("mobilenetv2", 96, 24, 56, 1), _depthwise(144, 56), Layer("mobilenetv2", 144, 24, 56, 1), _depthwise(192, 28),
    Layer("mobilenetv2", 192, 64, 14, 1), Layer("mobilenetv2", 64, 384, 14, 1), _depthwise(384, 14), _depthwise(960, 7),
    Layer("mobilenetv2", 960, 160, 7, 1), Layer("mobilenetv2", 320, 1280, 7, 1),
)
LAYERS = (*CIFAR_RESNET, *CIFAR_PRUNED, *RESNET50, *MOBILENETV2, *_products())


@dataclass(frozen=True)
class MapStep:
    """A step without products on a map of ``c`` channels, ``size`` pixels a side; ``codes``: of u8 instead of float32."""

    step: str
    c: int
    size: int
    codes: bool

    @property
    def name(self) -> str:
        return f"{self.step}/{self.c}@{self.size}"


MAP_STEPS = tuple(
    MapStep(step, c, size, codes)
    for step, shapes in (
        ("load", ((3, 32), (3, 224))), ("halo", ((16, 32), (64, 56))), ("add", ((16, 32), (64, 8), (256, 56))),
        ("max_pool", ((64, 112),)), ("global_avg_pool", ((64, 8), (2048, 7))), ("recode", ((16, 32), (256, 14))),
        ("slice_and_pad", ((16, 32), (32, 16))), ("concat", ((16, 32),)),
    )
    for c, size in shapes
    for codes in ((True,) if step == "recode" else (False, True))
)
