"""One float layer on the device: operands, what its outputs must be, and launches of the kernels that may compute it.

A layer is reached through a plan of a graph of its own (float_graphs.py), in a variant of the back end (variants.py). Memory is
poisoned, and the whole program runs before a launch is timed. Outputs of some images are compared with float64, value by
value, within a bound derived for the arithmetic (docs/NUMERICS.md), and those of all images loosely with torch, so that none is
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hce_engine.backends.cuda.lanes_program import LanesArena, LanesProgram, aligned_copy, current_stream, device_index
from hce_engine.graph import Graph
from hce_engine.plan.cuda import lanes_select
from hce_engine.plan.cuda.lanes_plan import ConvConfig, LaneStep
from hce_engine.plan.cuda.winograd_weights import G, pack_winograd

from . import measure, variants
from .float_graphs import LAYER, MEMBER, of_layer
from .float_shapes import FloatLayer
from .networks import KINDS, precision

CHECKED = 3  # images at either end of the batch
LOOSE = 1e-3  # of all images, in parts of the largest output: what is missing or misplaced errs by more
TILES = 6  # register tiles that are tried, the plan's own first
# |B^T| and |A^T| of the Winograd kernels (csrc/cuda/kernels/winograd_f32.h), by the outputs of a tile; their roundings besides
# one per channel: docs/NUMERICS.md, and one for the residual.
BT = {2: [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]],
      4: [[4, 0, 5, 0, 1, 0], [0, 4, 4, 1, 1, 0], [0, 4, 4, 1, 1, 0], [0, 2, 1, 2, 1, 0], [0, 2, 1, 2, 1, 0], [0, 4, 0, 5, 0, 1]]}
AT = {2: [[1, 1, 1, 0], [0, 1, 1, 1]], 4: [[1, 1, 1, 1, 1, 0], [0, 1, 1, 2, 2, 0], [0, 1, 1, 4, 4, 0], [0, 1, 1, 8, 8, 1]]}
ROUNDINGS = {2: 9, 4: 13}

Start = Callable[[int], object]  # a launch on a stream


@dataclass(frozen=True)
class Operands:
    """images float32 ``(N, C, H, W)``, on the device that computes what outputs are compared with.  whole: outputs in float32, ``(N, OC * OH * OW)``.  some: which images are checked
    closely.  expected, magnitude: of those, in float64; magnitude is |bias| + sum |w||x| + |residual|."""

    layer: FloatLayer
    graph: Graph
    images: Tensor
    whole: Tensor
    some: Tensor
    expected: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, layer: FloatLayer, batch: int, device: str = "cuda", seed: int = 0) -> Operands:
        graph = of_layer(layer, seed)
        generator = torch.Generator(device).manual_seed(seed)
        images = torch.randn((batch, *graph.input.spec.shape), device=device, generator=generator)
        ends = sorted({*range(min(CHECKED, batch)), *range(max(batch - CHECKED, 0), batch)})
        some = torch.tensor(ends, device=device)
        x = images[some].double()
        expected = torch.relu(products(graph, layer, x, lambda v: v)).flatten(1)
        return cls(layer, graph, images, in_float32(graph, layer, images), some, expected, products(graph, layer, x, torch.abs).flatten(1))

    def constants(self) -> tuple[Tensor, Tensor]:
        return constants(self.graph, self.layer, self.images.device)

    def checked(self, logits: Tensor, bound: Tensor) -> dict[str, Any]:
        """Errors of the outputs of a program. Raises ArithmeticError beyond the bound, or where some image's are missing."""
        logits = logits.to(self.whole.device)
        farthest = float((logits - self.whole).abs().max() / self.whole.max())
        if not farthest <= LOOSE:
            raise ArithmeticError(f"{self.layer.name}: expected every output of every image, got an error of {farthest:.3g}; it is not timed")
        got = logits[self.some].double()
        share = float(((got - self.expected).abs() / bound.clamp_min(1e-300)).max())
        if not share <= 1:
            raise ArithmeticError(f"{self.layer.name}: expected errors within their bound, got {share:.3g} times it; it is not timed")
        return measure.largest_and_mean(got, self.expected) | {"share_of_bound": measure.digits(share, 3)}


def constants(graph: Graph, layer: FloatLayer, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights ``(OC, C / groups, k, k)`` and bias in float64."""
    params = graph[LAYER].params
    weight = torch.from_numpy(params["weight"].astype(np.float64)).to(device)
    return weight.view(layer.out_channels, -1, layer.kernel, layer.kernel), torch.from_numpy(params["bias"].astype(np.float64)).to(device)


def in_float32(graph: Graph, layer: FloatLayer, images: Tensor) -> Tensor:
    weight, bias = (v.float() for v in constants(graph, layer, images.device))
    with precision(KINDS[0]):
        sums = F.conv2d(images, weight, bias, layer.stride, layer.geometry.padding, groups=layer.groups)
    residual = residual_of(layer, images)
    return torch.relu_(sums if residual is None else sums + residual).flatten(1)


def residual_of(layer: FloatLayer, x: Tensor) -> Tensor | None:
    """What the graph of the layer makes of the image ``(N, C, H, W)``."""
    if not layer.residual:
        return None
    more = layer.out_channels - layer.channels
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x.clamp(-1.0, 1.0)


def products(graph: Graph, layer: FloatLayer, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums ``(N, OC, OH, OW)`` over ``of`` each operand, as products of matrices: no algorithm of a library stands between."""
    weight, bias = constants(graph, layer, x.device)
    n, groups = len(x), layer.groups
    columns = F.unfold(of(x), layer.kernel, padding=layer.geometry.padding, stride=layer.stride).view(n, groups, layer.taps, -1)
    sums = of(weight).reshape(groups, -1, layer.taps) @ columns
    sums = sums.reshape(n, layer.out_channels, *layer.geometry.out) + of(bias)[:, None, None]
    residual = residual_of(layer, x)
    return sums if residual is None else sums + of(residual)


def winograd_bound(operands: Operands, m: int) -> Tensor:
    """Of a layer of stride 1: gamma_n (|A^T| [sum_c |G||w||G^T| (|B^T||d||B|)] |A| + |bias| + |residual|), ``(n, OC * H * W)``. A pixel
    of two tiles, the last of which ends with the map, gets the larger."""
    layer, x = operands.layer, operands.images[operands.some].double()
    weight, bias = operands.constants()
    at, bt, g = (torch.tensor(np.abs(v), dtype=torch.float64, device=x.device) for v in (AT[m], BT[m], G[m]))
    u = torch.einsum("ia,ocab,jb->ocij", g, weight.abs(), g)
    padded = F.pad(x.abs(), (1, 1, 1, 1))
    found = torch.zeros((len(x), layer.out_channels, layer.size, layer.size), dtype=torch.float64, device=x.device)
    starts = sorted({min(i, layer.size - m) for i in range(0, layer.size, m)})
    for i in starts:
        for j in starts:
            v = torch.einsum("pi,ncij,qj->ncpq", bt, padded[:, :, i : i + m + 2, j : j + m + 2], bt)
            sums = torch.einsum("ip,nopq,jq->noij", at, torch.einsum("ncpq,ocpq->nopq", v, u), at)
            tile = found[:, :, i : i + m, j : j + m]
            torch.maximum(tile, sums, out=tile)
    found += bias.abs()[:, None, None]
    residual = residual_of(layer, x)
    found = found if residual is None else found + residual.abs()
    n = (ROUNDINGS[m] + layer.channels) * 2.0**-24
    return (n / (1 - n) * found).flatten(1)


class Planned:
    """The layer as a variant plans it for ``batch`` images; ``part`` is the program's only one."""

    def __init__(self, operands: Operands, variant: str, device: str = "cuda", extension: ModuleType | None = None) -> None:
        self.operands, self.variant = operands, variant
        batch = len(operands.images)
        self.backend = variants.backend(operands.graph, batch, variant, device=device, extension=extension)
        program: Any = variants.prepared(self.backend, batch).program
        (self.part,) = program.parts
        program.images.copy_(operands.images)
        self.device, self.images = self.backend.runtime.device, program.images

    @property
    def steps(self) -> list[LaneStep]:
        return [step for step, _ in self.own()]

    def own(self) -> list[tuple[LaneStep, Start]]:
        """Steps and launches of the layer alone. One that writes no map stores logits."""
        both = zip(self.part.plan.steps, self.part.launches, strict=True)
        return [(step, launch) for step, launch in both if LAYER in step.nodes and step.writes]

    def launches(self) -> list[Start]:
        return [launch for _, launch in self.own()]

    def describe(self) -> str:
        return " + ".join(" ".join(filter(None, (s.kernel, str(s.config or "")))) for s in self.steps)

    def bound(self) -> Tensor:
        """Of the plan's own kernel: of Winograd where it takes that, else of the sum in the variant's arithmetic."""
        layer, (step, *_) = self.operands.layer, self.steps
        if "winograd" in step.kernel:
            return winograd_bound(self.operands, step.config.output)  # type: ignore[union-attr]
        return self.operands.magnitude * variants.error_factor(self.variant, layer.kernel**2, layer.channels // layer.groups)

    def checked(self, instead: Start | None = None, bound: Tensor | None = None) -> dict[str, Any]:
        """Runs the whole program, ``instead`` in place of the layer's launches, and compares its outputs."""
        stream, logits, own = current_stream(self.device), self.part.logits[MEMBER], self.launches()
        logits.fill_(float("nan"))
        for launch in self.part.launches:
            if instead is None or launch not in own:
                launch(stream)
            elif launch is own[0]:
                instead(stream)
        return self.operands.checked(logits, self.bound() if bound is None else bound)

    def call(self, starts: list[Start]) -> Callable[[], None]:
        """The launches on the current stream."""
        def run() -> None:
            stream = current_stream(self.device)
            for start in starts:
                start(stream)

        return run

    def poison(self) -> None:
        """The outputs of the layer, before another kernel writes them."""
        (step,) = self.steps
        slot = step.writes["y"].slot
        LanesArena.inner(self.part.arena.slots[slot], self.part.arena.memory[slot]).fill_(float("nan"))

    # -- kernels other than the planned one, of the variant ``direct`` ---------------------------------------------------

    def tiles(self) -> Iterator[tuple[str, Start]]:
        """Register tiles of the direct kernel: the rest is cut as the plan cuts its own."""
        (step,) = self.steps
        if step.config is None:
            return
        groups, _, per = step.arguments["channels"]
        for config in register_tiles(step.config, per, groups, self.operands.layer.taps):
            weights = replace(step.weights, packed_bytes=lanes_select.packed_bytes(per, groups, self.operands.layer.taps, config))  # type: ignore[type-var]
            other = replace(step, config=config, weights=weights)
            plan = replace(self.part.plan, steps=tuple(other if s is step else s for s in self.part.plan.steps))
            program = LanesProgram(plan, self.part.arena, self.part.constants, self.images)
            yield str(config), program.launches[plan.steps.index(other)]

    def winograd_sizes(self) -> list[int]:
        """m of the F(m x m, 3 x 3) that can compute the layer."""
        layer = self.operands.layer
        fits = layer.kernel == 3 and layer.stride == 1 and layer.groups == 1
        return [m for m in (2, 4) if fits and layer.size >= m]

    def winograd(self, m: int) -> Iterator[tuple[str, Start]]:
        """Launches of F(m x m, 3 x 3), also such as the kernel refuses."""
        layer, extension = self.operands.layer, self.part.extension
        (step,) = self.steps
        x, y = self.part.ref(step.reads["x"], 1, 1), self.part.ref(step.writes["y"])
        residual = self.part.ref(step.reads["residual"]) if layer.residual else None
        params = self.operands.graph[LAYER].params
        bias = aligned_copy(params["bias"], self.device)
        shape = (self.part.plan.tiles, layer.size, layer.size, layer.channels, layer.out_channels)
        for config in winograd_configs(layer, m, extension):
            weight = aligned_copy(pack_winograd(params["weight"], m, config[2]), self.device)
            start = partial(_winograd, extension.winograd_f32, device_index(self.device), weight, bias, {
                "x": x, "weight": weight.data_ptr(), "bias": bias.data_ptr(), "y": y, "residual": residual, "shape": shape,
                "limits": (0.0, float("inf")), "config": config,
            })
            name = "{}x{} groups={}x{} chunk={}".format(*config[1:6])
            yield name, start


def _winograd(kernel: Callable[..., None], index: int, weight: Tensor, bias: Tensor, arguments: dict[str, Any], stream: int) -> None:
    kernel(index, stream, **arguments)  # the tensors live as long as their addresses


def register_tiles(own: ConvConfig, outputs: int, groups: int, lines: int) -> list[ConvConfig]:
    """``own`` first, then others: most outputs that the plan's rule would weigh for each number of pixels, and half of them."""
    found = [own]
    for pixels, most in lanes_select.CONV_CHANNELS.items():
        for limit in (most, most // 2, most // 4):
            channels = lanes_select.even_channels(outputs, limit)
            blocks = groups * -(-outputs // channels)
            warps = next(n for n in (4, 3, 2, 1) if blocks % n == 0)
            line = warps * -(-channels // 4) * 16
            resident = lines * line <= lanes_select.RESIDENT_BYTES
            parts = -(-lines // max(lanes_select.CHUNK_BYTES // line, 1))
            found.append(ConvConfig(pixels, channels, warps, lanes_select.CONV_WARPS // warps, lines if resident else -(-lines // parts)))
    return list(dict.fromkeys(found))[:TILES]


def winograd_configs(layer: FloatLayer, m: int, extension: ModuleType) -> list[tuple[int, ...]]:
    """(output, tiles, channels, channel_groups, tile_groups, chunk, blocks): all outputs in one thread block or as many as it
    holds; all inputs in one chunk, or a part of them. What does not fit shared memory is refused by the launch."""
    most, groups = extension.WINOGRAD_CHANNELS, extension.WINOGRAD_GROUPS[m]
    found = []
    for tiles in (2, 1):
        channels = lanes_select.even_channels(layer.out_channels, most[m, tiles])
        across = min(groups, -(-layer.out_channels // channels))
        for chunk in dict.fromkeys((layer.channels, min(layer.channels, 32), min(layer.channels, 8))):
            if tiles == 1 or chunk == layer.channels:
                found.append((m, tiles, channels, across, groups // across, chunk, 0))
    return found
