"""Convolutions of the compile check: every distinct layer of ResNet-20, -56 and -50 with the configuration that a plan gives
it unmeasured, other widths of codes, and one of each other form (storage of weights, unrolled or loop)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .. import numerics
from . import conv2d
from .case import Built, Case, ending, random_codes, random_weights, spread_multiplier
from .configurations import ConvConfig, default_conv_config
from .description import Geometry
from .device import layer_on, map_of_codes
from .formats import MapFormat
from .layer import layer_arrays


@dataclass(frozen=True)
class Conv:
    """A layer: channels, map, window; bits of x, weights, y and recoded output (0: none); residual: a stream is added."""

    name: str
    channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    x_bits: int = 4
    weight_bits: int = 4
    y_bits: int = 4
    recoded_bits: int = 0
    residual: bool = False
    zero_point: int = 0

    @property
    def geometry(self) -> Geometry:
        out = (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
        return Geometry((self.kernel,) * 2, (self.stride,) * 2, (self.kernel // 2,) * 2, (1, 1), (out, out))

    @property
    def x(self) -> MapFormat:
        """With the halo that the window reaches: an even map and a stride of 2 need none at its end."""
        form = MapFormat(self.channels, self.size, self.size, self.x_bits)
        return form.with_halo(self.geometry.halo(self.size, self.size))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.channels, self.kernel, self.kernel


def _build(layer: Conv, config: ConvConfig, device: str, whole: bool) -> Built:
    rng = np.random.default_rng(7)
    batch = 1 if whole else 3
    layer = layer if whole else replace(layer, size=max(min(layer.size, 7), layer.kernel))
    geometry, form, (oh, ow) = layer.geometry, layer.x, layer.geometry.out
    qmax = (1 << layer.x_bits) - 1
    weight = random_weights(rng, layer.shape, layer.weight_bits)
    bias = rng.integers(-(1 << 12), 1 << 12, layer.out_channels, dtype=np.int32)
    multiplier = spread_multiplier(weight, layer.x_bits, (1 << (layer.y_bits or 8)) - 1)
    arrays = layer_arrays(weight, bias, multiplier, None, form, qmax, config.weight_bits, config.block_k, config.block_n)
    pad = rng.integers(0, qmax + 1, layer.channels, dtype=np.uint8)
    codes = random_codes(rng, form, batch)
    out = ending(
        rng, MapFormat(layer.out_channels, oh, ow, 8, (1, 1, 1, 1)), batch, device, layer.y_bits, layer.recoded_bits,
        layer.residual, layer.zero_point,
    )
    x = map_of_codes(codes, form, device, pad)
    launch = conv2d.launch(layer.name, x, layer_on(arrays, device), geometry, config, **out.operands)

    def differing() -> int:
        acc = numerics.conv2d_accumulate(
            codes, weight, bias, stride=geometry.stride, padding=geometry.padding, dilation=geometry.dilation, groups=1,
            pad_code=pad,
        )
        return out.differing(acc, multiplier)

    return Built([launch], differing, config.block_m * config.block_n)


def _describe(config: ConvConfig) -> str:
    form = "unrolled" if config.unroll else f"loop/{config.num_stages}"
    return f"{config.block_m}x{config.block_n}x{config.block_k} w{config.weight_bits} {form} {config.num_warps} warps"


def conv_case(layer: Conv, config: ConvConfig, quick: bool = False) -> Case:
    twin = partial(_build, layer, replace(config, weight_bits=8)) if config.weight_bits < 8 else None
    return Case("conv2d", f"{layer.name}, {_describe(config)}", partial(_build, layer, config), quick, twin)


def default_config(layer: Conv, batch: int) -> ConvConfig:
    pixels = batch * layer.geometry.out[0] * layer.geometry.out[1]
    storages = sorted({8, layer.weight_bits})
    return default_conv_config(layer.shape, layer.x, pixels, storages)


CIFAR_BATCH, IMAGENET_BATCH = 4096, 256


def _resnet_cifar() -> list[Case]:
    """ResNet-20 and -56: every distinct layer at 4 bits, then other widths of codes and single images."""
    cases = [conv_case(layer, default_config(layer, CIFAR_BATCH), quick) for layer, quick in (
        (Conv("first 32x32 3->16", 3, 16, 32, x_bits=8, weight_bits=8, y_bits=8, recoded_bits=4), True),
        (Conv("32x32 16->32 s2", 16, 32, 32, stride=2), False),
        (Conv("16x16 32->64 s2", 32, 64, 16, stride=2), False),
        (Conv("projection 32x32 16->32", 16, 32, 32, 1, 2, y_bits=8, zero_point=128), False),
        (Conv("projection 16x16 32->64", 32, 64, 16, 1, 2, y_bits=8, zero_point=128), False),
    )]
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        for bits in (4, 3, 8) if channels != 32 else (4, 3):
            name = f"{size}x{size} {channels}->{channels} w{bits}a{bits}"
            inner = Conv(f"{name} inner", channels, channels, size, x_bits=bits, weight_bits=bits, y_bits=bits)
            outer = replace(inner, name=f"{name} residual", y_bits=8, recoded_bits=bits if bits < 8 else 0, residual=True)
            cases.append(conv_case(outer, default_config(outer, CIFAR_BATCH), bits == 4 and channels == 16))
            if bits == 4:
                cases.append(conv_case(inner, default_config(inner, CIFAR_BATCH)))
                cases.append(conv_case(outer, default_config(outer, 1)))
    wide = Conv("32x32 16->16 w3 on 4-bit maps", 16, 16, 32, x_bits=4, weight_bits=3)
    return [*cases, conv_case(wide, default_config(wide, CIFAR_BATCH))]


def _resnet50() -> list[Case]:
    """ResNet-50 at 4 bits: the distinct windows, the widest and the narrowest."""
    layers = (
        Conv("first 224x224 7x7 s2 3->64", 3, 64, 224, 7, 2, x_bits=8, weight_bits=8, y_bits=8, recoded_bits=4),
        Conv("56x56 1x1 64->64", 64, 64, 56, 1),
        Conv("56x56 1x1 64->256 residual", 64, 256, 56, 1, y_bits=8, recoded_bits=4, residual=True),
        Conv("56x56 3x3 s2 128->128", 128, 128, 56, 3, 2),
        Conv("14x14 3x3 256->256", 256, 256, 14),
        Conv("7x7 3x3 512->512", 512, 512, 7),
        Conv("7x7 1x1 512->2048 residual", 512, 2048, 7, 1, y_bits=8, recoded_bits=4, residual=True),
        Conv("7x7 1x1 2048->512", 2048, 512, 7, 1),
    )
    single = (layers[4], layers[7])
    return [
        *(conv_case(layer, default_config(layer, IMAGENET_BATCH)) for layer in layers),
        *(conv_case(replace(layer, name=f"{layer.name} single"), default_config(layer, 1)) for layer in single),
    ]


def _forms() -> list[Case]:
    """Storage of weights and form of the taps that no default above has."""
    narrow = Conv("32x32 16->16", 16, 16, 32, y_bits=8, recoded_bits=4, residual=True)
    wide = Conv("8x8 64->64", 64, 64, 8, y_bits=8, recoded_bits=4, residual=True)
    triples = Conv("8x8 64->64 w3a3", 64, 64, 8, x_bits=3, weight_bits=3, y_bits=3)
    bytes_in = Conv("8x8 64->64 w4a8", 64, 64, 8, x_bits=8)
    return [
        conv_case(narrow, ConvConfig(128, 16, 32, 4, 4, 3, True)),
        conv_case(narrow, ConvConfig(256, 16, 32, 8, 8, 3, True)),
        conv_case(wide, ConvConfig(64, 64, 32, 4, 4, 3, False), True),
        conv_case(wide, ConvConfig(128, 64, 32, 8, 4, 4, False)),
        conv_case(wide, ConvConfig(16, 64, 32, 4, 4, 2, False)),
        conv_case(triples, ConvConfig(64, 64, 32, 3, 4, 3, True), True),
        conv_case(triples, ConvConfig(64, 64, 32, 3, 4, 3, False)),
        conv_case(bytes_in, ConvConfig(64, 64, 32, 4, 4, 3, False)),
    ]


def conv_cases() -> list[Case]:
    return [*_resnet_cifar(), *_resnet50(), *_forms()]
