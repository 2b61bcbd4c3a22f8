"""The ways in which float members run on the CUDA back end, by name: the one place that knows its options and its insides.

Each is a plan of its own. ``plain`` is what a user gets without asking; ``direct`` is what bounds of fused multiply-adds are
stated for. Compensated modes multiply sums of two short numbers on tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from hce_engine.backends.cuda import backend as backends
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.gpu import GpuRuntime
from hce_engine.backends.cuda.modes import AUTO, MODES, SEQUENTIAL, Prepared
from hce_engine.graph import Graph
from hce_engine.plan.cuda.split_weights import step_count

from . import names
from .names import DIRECT, NHWC, PLAIN

__all__ = ["AUTO", "CHOSEN_MODES", "COMPENSATED", "DIRECT", "IEEE", "MODES", "NHWC", "PLAIN", "SEQUENTIAL", "VARIANTS", "backend", "eager", "error_factor",
           "prepared"]

IEEE = {
    DIRECT: {"convolution": "direct", "arithmetic": "ieee", "layout": "lanes"},
    NHWC: {"convolution": "direct", "arithmetic": "ieee", "layout": "nhwc"},
    PLAIN: {"convolution": "auto", "arithmetic": "ieee", "layout": "auto"},
}
COMPENSATED = {name: {"convolution": "auto", "arithmetic": name, "layout": "auto"} for name in names.COMPENSATED}
VARIANTS = IEEE | COMPENSATED
CHOSEN_MODES = tuple(mode for mode in MODES if mode != AUTO)

# docs/NUMERICS.md, convolutions with split operands: l, e, and the terms of a step. The error of a tensor core's sum of K terms counts as
# 2 (K + 2) roundings.
SPLIT = {"tf32x3": (2.0**-11, 2.0**-23, 8), "fp16x3": (2.0**-11, 2.0**-23, 16), "bf16x3": (2.0**-8, 2.0**-17, 16)}


def gamma(n: float) -> float:
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def error_factor(variant: str, taps: int, inputs: int) -> float:
    """A bound of the error of one output of a direct sum over ``taps`` pixels of ``inputs`` channels, in parts of |bias| + sum |w||x| +
    |residual|: docs/NUMERICS.md, in float32 with one more rounding for the residual; what fp16x3 adds is 2^-35 for values of order one."""
    if variant in IEEE:
        return gamma(taps * inputs + 2)
    high, both, terms = SPLIT[variant]
    roundings = step_count(taps, inputs, variant) * 2 * (terms + 2)
    if variant == "bf16x3":
        summed = (1 + high) ** 4 * gamma(3 * roundings)
    else:
        summed = (1 + high) ** 2 * (gamma(roundings) + 2 * high * gamma(2 * roundings))
    return (2 * both + high**2) * (1 + 4 * high) + summed + gamma(3) * (1 + 4 * high)


def backend(
    graph: Graph, batch: int, variant: str, mode: str = AUTO, device: str = "cuda", extension: ModuleType | None = None,
) -> CudaBackend:
    """On poisoned memory, for calls of up to ``batch`` images, a power of two."""
    options: dict[str, Any] = VARIANTS[variant]
    made = CudaBackend(graph, device, max_batch=batch, poison=True, extension=extension, mode=mode, **options)
    if made.max_batch < batch:
        raise MemoryError(f"{batch} images take more memory than the back end uses; it runs {made.max_batch} at a time")
    return made


def prepared(made: CudaBackend, batch: int) -> Prepared:
    """The bucket of ``batch`` images: what replays it, how it runs, and its program, which has static ``images`` and ``logits``; of
    float ``parts`` of it, ``plan.steps`` and ``launches`` stand side by side."""
    made.warm_up([batch])
    return made._buckets[(made.members, batch)]


class EagerRuntime(GpuRuntime):
    """Launches one by one instead of a graph of them: a report of a tool then names the kernel, and no graph's memory stands
    between."""

    def graph(self, run: Callable[[], None], stream: Any) -> Callable[[], None]:
        return run


def eager() -> None:
    """From now on back ends of this process run without CUDA graphs."""
    backends.gpu.GpuRuntime = EagerRuntime  # type: ignore[misc]
