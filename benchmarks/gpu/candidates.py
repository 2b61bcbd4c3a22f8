"""Which configurations are checked and timed for each shape: the default, and others spread over what a tuner may try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hce_engine.kernels.configurations import (
    ConvConfig,
    GemmConfig,
    conv_candidates,
    default_conv_config,
    default_gemm_config,
    gemm_candidates,
)
from hce_engine.kernels.formats import MapFormat

from .shapes import GEMM_M, GEMM_NK, PRECISIONS, TUNE_BATCHES, ConvLayer, Precision, resnet20, resnet50, spread

PER_LAYER = {"resnet20": 14, "resnet50": 6}
PER_PRODUCT = 6  # of each number of rows
NAMES = {"block_m": "m", "block_n": "n", "block_k": "k", "block_c": "c", "weight_bits": "w", "num_warps": "warps", "num_stages": "stages"}


def describe(config: Any) -> str:
    """``m128 n16 k32 w8 warps4 stages3 unroll``: short, and different for different configurations."""
    parts = []
    for key, value in vars(config).items():
        if isinstance(value, bool):
            parts += [key] * value
        else:
            parts.append(f"{NAMES.get(key, key)}{value}")
    return " ".join(parts)


def layers() -> tuple[ConvLayer, ...]:
    """Of all networks: the w4a4 ones, then the layers of ResNet-20 that w3a3 changes."""
    return (*resnet20(), *resnet50(), *(layer for layer in resnet20(3, 3) if layer not in resnet20()))


def of_layer(layer: ConvLayer, batch: int) -> list[ConvConfig]:
    """For one layer and batch, the default first."""
    out = layer.geometry.out
    arguments = (layer.shape, layer.x, batch * out[0] * out[1], sorted({8, layer.weight_bits}, reverse=True))
    found = conv_candidates(*arguments)
    return list(dict.fromkeys([default_conv_config(*arguments), *spread(found, PER_LAYER[layer.network])]))


def of_product(n: int, k: int, m: int, precision: Precision) -> list[GemmConfig]:
    """For one product, weights stored as the precision says, the default first where it does so too."""
    arguments = ((n, k, 1, 1), MapFormat(k, 1, 1, precision.x_bits), m, sorted({8, precision.weight_bits}, reverse=True))
    found = [default_gemm_config(*arguments), *gemm_candidates(*arguments)]
    return spread([c for c in dict.fromkeys(found) if c.weight_bits == precision.weight_bits], PER_PRODUCT)


@dataclass(frozen=True)
class Check:
    """A compiled kernel to be held against the reference. rank: 0 for defaults, which are checked first. asm: with
    assembly; its plain twin is checked once per shape."""

    kind: str
    shape: ConvLayer | tuple[int, int, Precision]
    config: Any
    rank: int
    asm: bool = True

    @property
    def key(self) -> str:
        return check_key(self.shape, self.config) + ("" if self.asm else " | plain twin")

    def message(self) -> dict[str, Any]:
        """For another process."""
        if isinstance(self.shape, ConvLayer):
            shape: Any = asdict(self.shape)
        else:
            n, k, precision = self.shape
            shape = [n, k, asdict(precision)]
        return {"key": self.key, "kind": self.kind, "shape": shape, "config": asdict(self.config), "asm": self.asm}

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> Check:
        shape, config = message["shape"], message["config"]
        if message["kind"] == "conv2d":
            return cls("conv2d", ConvLayer(**shape), ConvConfig(**config), 0, message["asm"])
        return cls("gemm", (shape[0], shape[1], Precision(**shape[2])), GemmConfig(**config), 0, message["asm"])


def check_key(shape: ConvLayer | tuple[int, int, Precision], config: Any) -> str:
    if isinstance(shape, ConvLayer):
        return f"conv2d | {shape.name} | {describe(config)}"
    n, k, precision = shape
    return f"gemm | {n}x{k} {precision.name} | {describe(config)}"


def checks() -> list[Check]:
    """Every kernel that later stages may time, each once, most wanted first: all defaults, then rank by rank, so that every
    shape has some when time is short."""
    found: list[Check] = []
    for layer in layers():
        found += _ranked("conv2d", layer, (of_layer(layer, batch) for batch in TUNE_BATCHES[layer.network]))
    for n, k in GEMM_NK:
        for precision in PRECISIONS:
            found += _ranked("gemm", (n, k, precision), (of_product(n, k, m, precision) for m in GEMM_M))
    unique = {check.key: check for check in sorted(found, key=lambda check: -check.rank)}
    return sorted(unique.values(), key=lambda check: check.rank)


def _ranked(kind: str, shape: Any, lists: Iterator[Sequence[Any]]) -> Iterator[Check]:
    for number, configs in enumerate(lists):
        for rank, config in enumerate(configs):
            yield Check(kind, shape, config, rank)
        if number == 0 and configs:
            yield Check(kind, shape, configs[0], 1, asm=False)
