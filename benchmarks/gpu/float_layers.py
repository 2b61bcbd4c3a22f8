"""Float layers on our kernels beside cuDNN in float32, and beside what float32 multiply-adds allow.

``direct``: the plan's choice of register tile, and the best of others (``direct, tuned``).  ``F(2x2)``, ``F(4x4)``: Winograd, best
configuration.  ``plain``: what the plan takes by itself; compensated modes and NHWC where the plan has them.  cuDNN runs in
NCHW and channels_last with TF32 off and benchmarks its algorithms; ``fused`` is convolution, bias, residual and ReLU in one call.

``ffma_bound_us`` is the time of the multiply-accumulates that the direct kernel walks at the rate that this machine reached
(ffma.py); what is faster needs fewer of them. Everything is verified before it is timed, and all take turns in one run: one call
per replay on either side, in a cold L2, so a time includes the few microseconds of an empty replay (``graph_node_us``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hce_engine.errors import UnsupportedError

from . import float_shapes, measure, stage, variants
from .float_operands import Operands, Planned, Start, residual_of, winograd_bound
from .float_shapes import FloatLayer
from .networks import KINDS, convolve, precision

NAME = "float_layers"
SECONDS = 0.5
BRIEF = 3
FP32 = KINDS[0]
Told = dict[str, dict[str, Any]]
operands_of = Operands.of


def fastest(candidates: Iterator[tuple[str, Start]], planned: Planned, bound: Tensor | None) -> tuple[dict[str, Any], Start] | None:
    """(what is told of it, the launch): the fastest of those that the kernel accepts, each verified."""
    best: tuple[float, dict[str, Any], Start] | None = None
    tried = 0
    for name, start in candidates:
        planned.poison()
        try:
            errors = planned.checked(start, bound)
        except ValueError:  # refused by the launch before it started
            continue
        tried += 1
        recording = measure.Recording([planned.call([start])], warm=1)
        time = min(recording.microseconds() for _ in range(BRIEF))
        if best is None or time < best[0]:
            best = (time, {"config": name, **errors}, start)
    return (best[1] | {"tried": tried}, best[2]) if best else None


def ours(operands: Operands, recordings: dict[str, measure.Contender], told: Told) -> dict[str, Any]:
    """Adds every way in which we compute the layer; gives the cost of the direct one."""
    direct = Planned(operands, variants.DIRECT)
    (step,) = direct.steps
    cost = step.cost
    told["direct"] = {"config": direct.describe(), **direct.checked()}
    recordings["direct"] = measure.Recording([direct.call(direct.launches())])
    searches: list[tuple[str, Iterator[tuple[str, Start]], Tensor | None]] = [("direct, tuned", direct.tiles(), None)]
    searches += [(f"F({m}x{m})", direct.winograd(m), winograd_bound(operands, m)) for m in direct.winograd_sizes()]
    for name, candidates, bound in searches:
        with keep(told, name):
            found = fastest(candidates, direct, bound)
            if found:
                told[name], start = found
                recordings[name] = measure.Recording([direct.call([start])])
            else:
                told[name] = {"why": "the kernel accepts no configuration of this layer"}
    seen = {direct.describe()}
    for variant in (v for v in variants.VARIANTS if v != variants.DIRECT):
        with keep(told, variant):
            planned = Planned(operands, variant)
            if planned.describe() in seen:
                told[variant] = {"why": f"planned as {planned.describe()}, like another"}
                continue
            seen.add(planned.describe())
            told[variant] = {"config": planned.describe(), **planned.checked()}
            recordings[variant] = measure.Recording([planned.call(planned.launches())])
    return {"macs": cost.macs, "walked": cost.walked, "bytes": cost.read + cost.written}


class keep:
    """A context: what fails inside is told of ``name``, unless the GPU is lost. Of ours nothing may fail but for want of memory or
    of a kernel; of rivals only a wrong result is no mere absence."""

    def __init__(self, told: Told, name: str, ours: bool = True) -> None:
        self.told, self.name = told, name
        self.absences: tuple[type[Exception], ...] = (UnsupportedError, MemoryError) if ours else (Exception,)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception) or stage.sticky(error):
            return False
        absent = isinstance(error, self.absences) and not isinstance(error, ArithmeticError)
        self.told[self.name] = {"why": stage.failure(error)["error"]} if absent else stage.failure(error)
        return True


def rivals(operands: Operands) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Calls of torch that yield the outputs ``(N, OC, OH, OW)``."""
    layer, images = operands.layer, operands.images
    weight, bias = (v.float() for v in operands.constants())
    if layer.linear:
        x, w = images.flatten(1), weight.flatten(1)
        yield "cuBLAS fp32", lambda: torch.relu_(torch.addmm(bias, x, w.T))
        return
    for form, label in ((torch.contiguous_format, "NCHW"), (torch.channels_last, "NHWC")):
        conv = nn.Conv2d(layer.channels, layer.out_channels, layer.kernel, layer.stride, layer.geometry.padding, groups=layer.groups)
        conv.weight.data, conv.bias = weight.contiguous(memory_format=form), nn.Parameter(bias)
        conv.requires_grad_(False)
        x = images.contiguous(memory_format=form)
        residual = residual_of(layer, images)
        residual = residual if residual is None else residual.contiguous(memory_format=form)
        for fused in (True, False):
            yield f"cuDNN fp32 {label}{' fused' if fused else ''}", partial(convolve, x, conv, fused, residual=residual)


def anchors(operands: Operands, recordings: dict[str, measure.Contender], told: Told) -> None:
    with precision(FP32), torch.no_grad():
        for name, call in rivals(operands):
            with keep(told, name, ours=False):
                got = call()[operands.some].flatten(1)
                told[name] = measure.check_close(name, got, operands.expected, FP32.bound) | measure.largest_and_mean(got, operands.expected)
                recordings[name] = measure.Recording([call])


def compare(layer: FloatLayer, batch: int, out: Path) -> stage.Result:
    known, operands = measure.ceilings(out), operands_of(layer, batch)
    recordings: dict[str, measure.Contender] = {}
    told: Told = {}
    cost = ours(operands, recordings, told)
    anchors(operands, recordings, told)
    for name, timed in measure.interleave(recordings, SECONDS).items():
        told[name] |= timed
    recordings.clear()
    torch.cuda.empty_cache()
    result: stage.Result = {"layer": layer.name, "network": layer.network, "batch": batch, "count": layer.count, **cost, "contenders": told,
                            "held": all(r.get("held", True) for r in told.values())}
    return result | bounds(result, known)


def bounds(result: stage.Result, known: dict[str, float]) -> dict[str, Any]:
    """What follows from the times and from what the machine reached."""
    found: dict[str, Any] = {}
    times = {name: r["median_us"] for name, r in result["contenders"].items() if "median_us" in r}
    if "ffma_tflops" in known:
        ffma = 2 * result["walked"] / known["ffma_tflops"] / 1e6
        found["ffma_bound_us"] = measure.digits(ffma)
        found["percent_of_ffma"] = {name: measure.digits(100 * ffma / time, 3) for name, time in times.items()}
    least = measure.bound_us(known, result["bytes"], 2 * result["walked"], "ffma_tflops")
    anchored = [time for name, time in times.items() if name.startswith("cu")]
    mine = [time for name, time in times.items() if name in ("direct", "direct, tuned", variants.PLAIN, "F(2x2)", "F(4x4)", variants.NHWC)]
    if anchored and mine:
        found["speedup_over_cudnn"] = measure.digits(min(anchored) / min(mine), 3)
    return found | least


def item_key(layer: FloatLayer, batch: int) -> str:
    return f"{layer.name}, batch {batch}"


def items(out: Path) -> list[stage.Item]:
    """Batch by batch, so that a short run has every layer at the batch that matters most."""
    layers = float_shapes.layers()
    found = []
    for position in range(len(float_shapes.CIFAR_BATCHES)):
        for layer in layers:
            if position < len(float_shapes.batches(layer)):
                batch = float_shapes.batches(layer)[position]
                found.append(stage.Item(item_key(layer, batch), 4, partial(compare, layer, batch, out)))
    return found


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
