"""Each convolution of ResNet-20 and ResNet-50 beside cuDNN in fp32, tf32, fp16 and bf16, channels_last, bias and ReLU and
residual included; where time allows, torch.compile's max-autotune in fp16.

``speedup_over_fp16``: of the fastest fp16 anchor. Random operands; anchors are verified against float64 before they are
timed, ours byte by byte before (equality.py, tune.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hce_engine.kernels.configurations import ConvConfig

from . import equality, measure, stage, tune
from .candidates import check_key, describe, of_layer
from .networks import KINDS, Kind, convolve, precision
from .operands import Convolution
from .shapes import LAYER_BATCHES, ConvLayer, networks

NAME = "layers"
SECONDS = 0.6
CHECKED_IMAGES = 4
COMPILE_SECONDS = 45.0


def choice(layer: ConvLayer, batch: int, out: Path) -> tuple[ConvConfig, str] | None:
    fields = tune.best(out, tune.layer_item(layer, batch))
    if fields:
        return ConvConfig(**fields), "tuned"
    held = equality.verified(out)
    return next(((c, "default") for c in of_layer(layer, batch) if check_key(layer, c) in held), None)


def ours(layer: ConvLayer, batch: int, config: ConvConfig) -> tuple[measure.Recording, Any]:
    first = Convolution(layer, batch)
    cost = first.launch(config).cost
    works = first.copies(measure.copies(cost.read + cost.written))
    return measure.Recording([work.launch(config) for work in works]), cost


class Rival:
    """One layer in torch: operands of one kind, and the call."""

    def __init__(self, layer: ConvLayer, batch: int, kind: Kind) -> None:
        self.layer, self.batch, self.kind = layer, batch, kind
        geometry = layer.geometry
        conv = nn.Conv2d(layer.channels, layer.out_channels, layer.kernel, layer.stride, geometry.padding)
        self.conv = conv.to("cuda", kind.dtype, memory_format=torch.channels_last).requires_grad_(False)
        size = 2 if kind.dtype != torch.float32 else 4
        pixels_in, pixels_out = layer.size**2 * layer.channels, geometry.out[0] * geometry.out[1] * layer.out_channels
        self.bytes = size * batch * (pixels_in + pixels_out * (2 if layer.residual else 1))
        self.operands = [self._operands() for _ in range(measure.copies(self.bytes))]

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        layer = self.layer

        def maps(channels: int, height: int, width: int) -> Tensor:
            shape = (self.batch, channels, height, width)
            return torch.randn(shape, device="cuda", dtype=self.kind.dtype).contiguous(memory_format=torch.channels_last)

        residual = maps(layer.out_channels, *layer.geometry.out) if layer.residual else None
        return maps(layer.channels, layer.size, layer.size), residual

    def check(self, call: Callable[[Tensor, Tensor | None], Tensor]) -> dict[str, float]:
        x, residual = self.operands[0]
        some = slice(0, CHECKED_IMAGES)
        got = call(x, residual)[some]
        weight, bias = self.conv.weight.double(), self.conv.bias
        assert bias is not None
        # Float64 products as matrices: no algorithm of a library stands between.
        columns = nn.functional.unfold(x[some].double(), self.layer.kernel, padding=self.layer.geometry.padding, stride=self.layer.stride)
        sums = (weight.reshape(len(weight), -1) @ columns + bias.double()[:, None]).reshape(got.shape)
        expected = torch.relu(sums if residual is None else sums + residual[some].double())
        return measure.check_close(self.kind.name, got, expected, self.kind.bound)

    def record(self, call: Callable[[Tensor, Tensor | None], Tensor]) -> measure.Recording:
        return measure.Recording([partial(call, x, residual) for x, residual in self.operands])


def compare(layer: ConvLayer, batch: int, out: Path) -> stage.Result:
    recordings: dict[str, measure.Recording | measure.Live] = {}
    told: dict[str, dict[str, Any]] = {}
    chosen = choice(layer, batch, out)
    if chosen is None:
        told["ours"] = {"why": "no configuration was verified"}
    else:
        recordings["ours"], cost = ours(layer, batch, chosen[0])
        bound = measure.bound_us(measure.ceilings(out), cost.read + cost.written, 2 * cost.macs)
        told["ours"] = {"config": describe(chosen[0]), "source": chosen[1], "walked_per_mac": measure.digits(cost.walked / cost.macs, 3),
                        **bound}
    for kind in KINDS:
        with precision(kind), torch.no_grad():
            rival = Rival(layer, batch, kind)
            for fused in (True, False):
                name = f"cuDNN {kind.name}{' fused' if fused else ''}"
                try:
                    call = partial(_call, rival.conv, fused)
                    told[name] = rival.check(call)
                    recordings[name] = rival.record(call)
                except Exception as error:
                    if stage.sticky(error):
                        raise
                    told[name] = {"why": stage.failure(error)["error"]}
            del rival
    return _finish(layer, batch, recordings, told)


def _call(conv: nn.Conv2d, fused: bool, x: Tensor, residual: Tensor | None) -> Tensor:
    return convolve(x, conv, fused, residual=residual)


def compiled(layer: ConvLayer, batch: int, out: Path) -> stage.Result:
    """torch.compile max-autotune in fp16, beside ours."""
    recordings: dict[str, measure.Recording | measure.Live] = {}
    told: dict[str, dict[str, Any]] = {}
    chosen = choice(layer, batch, out)
    if chosen is not None:
        recordings["ours"], _ = ours(layer, batch, chosen[0])
        told["ours"] = {"config": describe(chosen[0]), "source": chosen[1]}
    kind = next(kind for kind in KINDS if kind.name == "fp16")
    with precision(kind), torch.no_grad():
        rival = Rival(layer, batch, kind)

        @torch.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        def call(x: Tensor, residual: Tensor | None) -> Tensor:
            return convolve(x, rival.conv, False, residual=residual)

        name = "compile fp16"
        try:
            told[name] = rival.check(call)
            recordings[name] = rival.record(call)
        except Exception as error:
            if stage.sticky(error):
                raise
            told[name] = {"why": stage.failure(error)["error"]}
    return _finish(layer, batch, recordings, told)


def _finish(
    layer: ConvLayer, batch: int, recordings: dict[str, measure.Recording | measure.Live], told: dict[str, dict[str, Any]]
) -> stage.Result:
    for name, timed in measure.interleave(recordings, SECONDS).items():
        told[name] |= timed | measure.percent(told[name] if "bound_us" in told[name] else {}, timed["median_us"])
    recordings.clear()
    torch.cuda.empty_cache()
    result: stage.Result = {"layer": layer.name, "network": layer.network, "batch": batch, "count": layer.count, "contenders": told}
    fp16 = [r["median_us"] for name, r in told.items() if "fp16" in name and "median_us" in r]
    if fp16 and "median_us" in told.get("ours", {}):
        result["speedup_over_fp16"] = measure.digits(min(fp16) / told["ours"]["median_us"], 3)
    return result


def items(out: Path) -> list[stage.Item]:
    cases = [(layer, batch) for name, layers in networks().items() for batch in reversed(LAYER_BATCHES[name]) for layer in layers]
    plain = [stage.Item(tune.layer_item(layer, batch), 4, partial(compare, layer, batch, out)) for layer, batch in cases]
    late = [stage.Item(f"{tune.layer_item(layer, batch)}, compiled", COMPILE_SECONDS, partial(compiled, layer, batch, out))
            for layer, batch in cases if layer.network == "resnet20" and batch == 4096]
    return [*plain, *late]


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
