"""Matrix products, depthwise convolutions and heads of the compile check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from .. import numerics
from . import depthwise_conv2d, gemm, head
from .case import Built, Case, changed_bits, ending, random_codes, random_weights, spread_multiplier
from .configurations import (
    DepthwiseConfig,
    GemmConfig,
    default_depthwise_config,
    default_gemm_config,
    default_head_config,
)
from .depthwise_layer import depthwise_arrays
from .description import Codes, Geometry
from .device import layer_on, map_of_codes
from .formats import MapFormat
from .layer import layer_arrays


@dataclass(frozen=True)
class Product:
    """rows x inner codes of x_bits times inner x channels weights; outputs as of a convolution, or logits."""

    name: str
    rows: int
    inner: int
    channels: int
    x_bits: int = 4
    weight_bits: int = 4
    y_bits: int = 4
    recoded_bits: int = 0
    residual: bool = False
    logits: bool = False


def _product(layer: Product, config: GemmConfig, device: str, whole: bool) -> Built:
    rng = np.random.default_rng(11)
    # Small: two blocks of rows and of channels with a rest in each, and steps enough for every split.
    tall, wide = min(layer.rows, config.block_m + 7), min(layer.channels, config.block_n + 9)
    deep = min(layer.inner, 16 * config.block_k * config.split_k)
    layer = layer if whole else replace(layer, rows=tall, channels=wide, inner=deep)
    form = MapFormat(layer.inner, 1, 1, layer.x_bits)
    weight = random_weights(rng, (layer.channels, layer.inner, 1, 1), layer.weight_bits)
    bias = rng.integers(-(1 << 12), 1 << 12, layer.channels, dtype=np.int32)
    multiplier = spread_multiplier(weight, layer.x_bits, (1 << (layer.y_bits or 8)) - 1)
    offset = rng.normal(size=layer.channels).astype(np.float32)
    qmax = (1 << layer.x_bits) - 1
    arrays = layer_arrays(weight, bias, multiplier, offset, form, qmax, config.weight_bits, config.block_k, config.block_n)
    codes = random_codes(rng, form, layer.rows)
    on = layer_on(arrays, device)
    size = gemm.workspace_size(layer.rows, on, config)
    workspace = torch.zeros(size, dtype=torch.int32, device=device) if size else None
    x, tile = map_of_codes(codes, form, device), config.block_m * config.block_n
    if size:
        tile = gemm.SUMS

    def sums() -> np.ndarray:
        return (codes.reshape(layer.rows, -1).astype(np.float64) @ weight.reshape(layer.channels, -1).T.astype(np.float64)).astype(np.int32) + bias

    if layer.logits:
        logits = torch.full((layer.rows, layer.channels), torch.nan, device=device)
        launches = gemm.launch(layer.name, x, on, config, logits=logits, workspace=workspace)
        return Built(launches, lambda: changed_bits(logits, numerics.logits(sums(), multiplier, offset)), tile)
    out = ending(rng, MapFormat(layer.channels, 1, 1, 8), layer.rows, device, layer.y_bits, layer.recoded_bits, layer.residual)
    launches = gemm.launch(layer.name, x, on, config, workspace=workspace, **out.operands)
    return Built(launches, lambda: out.differing(sums()[:, :, None, None], multiplier), tile)


def _gemm_case(layer: Product, config: GemmConfig, quick: bool = False) -> Case:
    form = f"{config.block_m}x{config.block_n}x{config.block_k} w{config.weight_bits} {config.num_warps} warps"
    extra = f"{' swap' if config.swap else ''}{f' split {config.split_k}' if config.split_k > 1 else ''}"
    twin = partial(_product, layer, replace(config, weight_bits=8)) if config.weight_bits < 8 else None
    return Case("gemm", f"{layer.name}, {form}{extra}", partial(_product, layer, config), quick, twin)


def _gemm_cases() -> list[Case]:
    layers = [
        Product(f"{rows}x2048x1024 w{bits}a{x_bits}", rows, 2048, 1024, x_bits, bits, 8)
        for rows, bits, x_bits in (
            (1, 4, 8), (16, 4, 8), (16, 3, 8), (64, 4, 8), (64, 3, 8), (64, 4, 4), (256, 4, 8), (4096, 4, 8), (4096, 8, 8),
        )
    ]
    found = [
        _gemm_case(layer, default_gemm_config(
            (layer.channels, layer.inner, 1, 1), MapFormat(layer.inner, 1, 1, layer.x_bits), layer.rows,
            sorted({8, layer.weight_bits}),
        ), (layer.rows, layer.weight_bits, layer.x_bits) == (64, 4, 8)) for layer in layers
    ]
    plain = replace(layers[4], x_bits=3, name="64x2048x1024 w3a3", y_bits=8, recoded_bits=3, residual=True)
    return [
        *found,
        _gemm_case(plain, GemmConfig(64, 64, 32, 3, 1, False, 4, 3)),
        _gemm_case(replace(layers[7], name="4096x2048x1024 w4a8 logits", logits=True), GemmConfig(128, 128, 64, 4, 1, True, 8, 3)),
    ]


def _depthwise(channels: int, size: int, kernel: int, stride: int, bits: int, config: DepthwiseConfig, device: str, whole: bool) -> Built:
    rng = np.random.default_rng(13)
    batch, size = (1, size) if whole else (3, min(size, 9))
    out_size = (size + 2 * (kernel // 2) - kernel) // stride + 1
    geometry = Geometry((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), (out_size,) * 2)
    form = MapFormat(channels, size, size, bits)
    form = form.with_halo(geometry.halo(size, size))
    weight = random_weights(rng, (channels, 1, kernel, kernel), 4)
    bias = rng.integers(-(1 << 10), 1 << 10, channels, dtype=np.int32)
    multiplier = spread_multiplier(weight, bits, 15)
    codes = random_codes(rng, form, batch)
    arrays = depthwise_arrays(weight, bias, multiplier, form, (1 << bits) - 1)
    layer = depthwise_conv2d.depthwise_layer_on(arrays, device)
    out = ending(rng, MapFormat(channels, out_size, out_size, 8, (1, 1, 1, 1)), batch, device, 4)
    x = map_of_codes(codes, form, device, pad_code=1)
    launch = depthwise_conv2d.launch(f"{channels}", x, layer, geometry, config, y=out.y, codes=out.codes)

    def differing() -> int:
        acc = numerics.conv2d_accumulate(
            codes, weight, bias, stride=geometry.stride, padding=geometry.padding, dilation=(1, 1), groups=channels,
            pad_code=np.ones(channels, np.uint8),
        )
        return out.differing(acc, multiplier)

    return Built([launch], differing, config.block_m * config.block_c)


def _depthwise_cases() -> list[Case]:
    cases = []
    for channels, size, kernel, stride, bits, images in (
        (32, 112, 3, 1, 4, 256), (96, 112, 3, 2, 8, 256), (192, 28, 3, 1, 3, 256), (960, 7, 3, 1, 4, 1), (64, 14, 7, 1, 4, 256),
    ):
        pixels = images * (size // stride) ** 2
        config = default_depthwise_config((kernel, kernel), MapFormat(channels, size, size, bits), pixels)
        form = f"{config.block_m}x{config.block_c} {'unrolled' if config.unroll else 'loop'} {config.num_warps} warps"
        name = f"{size}x{size} {kernel}x{kernel} s{stride} {channels} w4a{bits}, {form}"
        build = partial(_depthwise, channels, size, kernel, stride, bits, config)
        cases.append(Case("depthwise_conv2d", name, build, (channels, bits) == (32, 4)))
    return cases


def _head(channels: int, size: int, classes: int, batch: int, device: str, whole: bool) -> Built:
    rng = np.random.default_rng(17)
    batch = batch if whole else min(batch, 5)
    form, vector = MapFormat(channels, size, size, 8), MapFormat(channels, 1, 1, 8)
    weight, bias = random_weights(rng, (classes, channels, 1, 1), 8), rng.integers(-999, 999, classes, dtype=np.int32)
    multiplier, offset = rng.uniform(1e-3, 1e-2, classes).astype(np.float32), rng.normal(size=classes).astype(np.float32)
    config = default_head_config(classes, channels)
    arrays = layer_arrays(weight, bias, multiplier, offset, vector, 255, 8, config.block_k, config.block_n)
    codes = random_codes(rng, form, batch)
    factor = float(np.float32(1.3 / size**2))
    logits = torch.full((batch, classes), torch.nan, device=device)
    grid = Codes(3, 0, 255)
    launch = head.launch(
        f"{channels}->{classes}", map_of_codes(codes, form, device), layer_on(arrays, device), zero_point_in=5,
        pool_multiplier=factor, pooled=grid, logits=logits,
    )

    def differing() -> int:
        total = numerics.pool_sum(codes, 5)
        pooled = numerics.requantize(total, factor, zero_point=3, qmin=0, qmax=255)
        acc = pooled.astype(np.int32) @ weight.reshape(classes, channels).T.astype(np.int32) + bias
        return changed_bits(logits, numerics.logits(acc, multiplier, offset))

    return Built([launch], differing, launch.constants["IMAGES"] * launch.constants["BLOCK_N"])


def _head_cases() -> list[Case]:
    return [
        Case("head", f"{size}x{size} {channels}->{classes}, {batch} images", partial(_head, channels, size, classes, batch), quick)
        for channels, size, classes, batch, quick in ((64, 8, 10, 4096, True), (64, 8, 100, 1, False), (2048, 7, 1000, 256, False))
    ]


def product_cases() -> list[Case]:
    return [*_gemm_cases(), *_depthwise_cases(), *_head_cases()]
