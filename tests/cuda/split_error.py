"""Errors of convolutions with split operands: their bound (docs/NUMERICS.md), and what they are on the layers of a network.

    python -m tests.cuda.split_error [--json FILE]

measures maximum and mean error against float64 on the kernels built for the host, where the sum of each product of matrices is
the correctly rounded one. A tensor core cuts sums in ways that are not documented: ``measure`` takes the extension of a GPU too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from hce_engine.arithmetic import ARITHMETICS, IEEE
from hce_engine.backends.cuda.lanes_program import LanesArena, LanesConstants, LanesProgram
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan
from hce_engine.plan.cuda.split_weights import step_count
from tests.backends.graphs import GraphBuilder

U = 2.0**-24
APART = ("tf32x3", "fp16x3")  # corrections have accumulators of their own
HIGH = {"tf32x3": 2.0**-11, "fp16x3": 2.0**-11, "bf16x3": 2.0**-8}
"""|v - high| of |v|."""
BOTH = {"tf32x3": 2.0**-23, "fp16x3": 2.0**-23, "bf16x3": 2.0**-17}
"""|v - high - low| of |v|."""
LEAST = 2.0**-36  # the same of fp16x3, where its numbers are subnormal


def gamma(n: float) -> float:
    return n * U / (1 - n * U)


def split_bound(
    arithmetic: str, taps: int, inputs: int, sums: np.ndarray, magnitudes: tuple[np.ndarray, np.ndarray], others: np.ndarray,
    factor: float, mma_roundings: float = 1.0,
) -> np.ndarray:
    """Of |y - y*|. sums: sum |w||x| of each output.  magnitudes: sum |w| and sum |x| of each.  others: |bias| + |residual|.
    mma_roundings: relative error of a product of matrices and its sum, in units of 2^-24: 1 where it is correctly rounded."""
    high, both, steps = HIGH[arithmetic], BOTH[arithmetic], step_count(taps, inputs, arithmetic)
    dropped = (2 * both + high * high) * (1 + 4 * high)
    size = (1 + high) ** 2  # of sum |w_high x_high|
    if arithmetic in APART:
        rounded = gamma(steps * mma_roundings) * size + gamma(2 * steps * mma_roundings) * 2 * high * size
    else:
        rounded = gamma(3 * steps * mma_roundings) * (1 + high) ** 4
    bound = (dropped + rounded + gamma(3) * (1 + 4 * high)) * sums + gamma(3) * others
    if arithmetic == "fp16x3":  # weights are scaled by 1 / factor before they are split
        bound = bound + 2 * LEAST * (magnitudes[0] + factor * magnitudes[1])
    return bound


@dataclass(frozen=True)
class LayerError:
    """Of one layer. Errors are absolute; rms is that of the results."""

    inputs: int
    outputs: int
    arithmetic: str
    maximum: float
    mean: float
    rms: float
    bound_share: float


RESNET20 = ((16, 16), (32, 32), (64, 64))
PRUNED = ((9, 16), (16, 9), (20, 32), (32, 20), (36, 64), (64, 36))


def measure(
    extension: ModuleType, device: str, layers: Sequence[tuple[int, int]] = RESNET20 + PRUNED, images: int = 32, size: int = 1,
    mma_roundings: float = 1.0,
) -> Iterator[LayerError]:
    """Errors of 3 x 3 layers in each arithmetic. Inputs are as after a ReLU, weights as a network begins with.
    size: output pixels in each dimension.  mma_roundings: as of :func:`split_bound`; of the bound_share alone."""
    for inputs, outputs in layers:
        rng = np.random.default_rng(inputs * 1000 + outputs)
        b = GraphBuilder((inputs, size + 2, size + 2), dtype="f32", seed=outputs)
        conv = b.conv("image", outputs, padding=(0, 0))
        graph = b.finish(conv)
        params = graph[conv].params
        weight, bias = params["weight"], params["bias"]
        weight *= np.float32(np.sqrt(2 / (9 * inputs)) / 0.5)  # of a standard deviation of 0.5
        bias *= np.float32(0.1)
        x = np.maximum(rng.normal(0, 1, (images, inputs, size + 2, size + 2)), 0).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(2, 3))
        wide = weight.astype(np.float64)
        exact = np.einsum("nchwab,ocab->nohw", windows, wide) + bias[:, None, None]
        sums = np.einsum("nchwab,ocab->nohw", windows, np.abs(wide))
        magnitudes = (np.abs(wide).sum((1, 2, 3))[:, None, None], windows.sum((1, 4, 5))[:, None])
        for arithmetic in ARITHMETICS:
            plan = build_lanes_plan(graph, images, convolution="direct", arithmetic=arithmetic)
            program = LanesProgram(plan, LanesArena(plan, device, poison=True), LanesConstants(extension, device),
                                   torch.from_numpy(x).to(device), poison=True)
            program()
            (got,) = (z.cpu().numpy().reshape(exact.shape) for z in program.logits.values())
            error = np.abs(got - exact)
            if arithmetic == IEEE:
                bound = gamma(9 * inputs + 1) * (sums + np.abs(bias)[:, None, None])
            else:
                factor = plan.steps[1].arguments["factor"]
                bound = split_bound(arithmetic, 9, inputs, sums, magnitudes, np.abs(bias)[:, None, None], factor, mma_roundings)
            yield LayerError(inputs, outputs, arithmetic, float(error.max()), float(error.mean()),
                             float(np.sqrt((exact**2).mean())), float((error / bound).max()))


def main() -> None:
    from tests.cuda.host_extension import build_host_extension

    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(build_host_extension(Path(folder)), "cpu"))
    print("layer      arithmetic  max / rms  mean / rms  of the bound")
    for r in rows:
        print(f"{r.inputs:3} -> {r.outputs:3}  {r.arithmetic:10}  {r.maximum / r.rms:9.2e}  {r.mean / r.rms:10.2e}  "
              f"{r.bound_share:12.3f}")
    if path is not None:
        path.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
