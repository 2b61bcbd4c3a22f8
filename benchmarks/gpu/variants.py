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

# Unit roundoff of the type in which compensated modes multiply; an operand is the sum of two such numbers.
ROUNDOFF = {"tf32x3": 2.0**-11, "fp16x3": 2.0**-11, "bf16x3": 2.0**-8}


def error_factor(variant: str, taps: int) -> float:
    """A bound of the error of one output of a direct sum, in parts of |bias| + sum |w||x| + |residual|.

    ieee: gamma of a rounding per tap, the residual, and the bias. Compensated: representing both operands as sums of two
    numbers and leaving out the product of the small parts are three errors of (2 u)^2 at most, where the split truncates;
    each of three times ``taps`` additions errs by 2^-23 at most, where an accumulator truncates.
    """
    if variant in IEEE:
        n = (taps + 2) * 2.0**-24
        return n / (1 - n)
    n = (3 * taps + 3) * 2.0**-23
    return 3 * (2 * ROUNDOFF[variant]) ** 2 + n / (1 - n)


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
