"""What float32 fused multiply-adds outside the tensor cores reach: the rate that float members are held against.

    (p, q) := (p - s q, q' = q + s p)     one fused multiply-add each, over and over, in registers

turns the point (p, q) on an ellipse by a fixed angle, so operands change all the time, stay bounded, and the end tells how often
the loop ran. It is compared with the same operations on the host before anything is timed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from hce_engine.plan.cuda.ensemble_plan import FFMA

from . import measure, stage

SINE = 0.3
REPEATS, UNROLL = 512, 16
# Points per program, warps: between 4 and 16 independent chains per thread.
VARIANTS = ((512, 4), (1024, 4), (2048, 4), (2048, 8))
PROGRAMS = 16  # per multiprocessor
BOUND = 1e-4  # of the largest coordinate: rounding does not grow, one turn more or less is 0.3
SECONDS = 0.3


@triton.jit
def turn_kernel(x, y, sine, out, REPEATS: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    """out[program] = (p, q) of BLOCK points after REPEATS * UNROLL turns; x, y: [BLOCK], sine: [1], out: [programs, 2, BLOCK]."""
    i = tl.arange(0, BLOCK)
    p, q, s = tl.load(x + i), tl.load(y + i), tl.load(sine)
    for _ in range(REPEATS):
        for _ in tl.static_range(UNROLL):
            p = tl.fma(-s, q, p)
            q = tl.fma(s, p, q)
    first = out + tl.program_id(0) * (2 * BLOCK) + i
    tl.store(first, p)
    tl.store(first + BLOCK, q)


def turned(x: np.ndarray, y: np.ndarray, turns: int) -> np.ndarray:
    """float32 ``[2, points]`` by the same operations: products of float32 are exact in float64."""
    p, q, s = x.astype(np.float32), y.astype(np.float32), np.float64(np.float32(SINE))
    for _ in range(turns):
        p = (p.astype(np.float64) - s * q).astype(np.float32)
        q = (q.astype(np.float64) + s * p).astype(np.float32)
    return np.stack([p, q])


def check(block: int, warps: int, programs: int, repeats: int, device: str) -> tuple[partial[Any], Any]:
    """(the call, the compiled kernel) after its result was compared. Raises ArithmeticError if it is wrong."""
    x, y = torch.randn(2, block, generator=torch.Generator().manual_seed(block))
    sine, out = torch.tensor([SINE], device=device), torch.full((programs, 2, block), float("nan"), device=device)
    call = partial(turn_kernel[(programs,)], x.to(device), y.to(device), sine, out, repeats, UNROLL, block, num_warps=warps)
    kernel = call()
    expected = torch.from_numpy(turned(x.numpy(), y.numpy(), repeats * UNROLL)).to(device)
    error = float((out - expected).abs().max() / expected.abs().max())
    if not error <= BOUND:
        raise ArithmeticError(f"turn_kernel: expected an error of at most {BOUND}, got {error:.3g}; it is not timed")
    return call, kernel


def rate() -> stage.Result:
    """TFLOP/s, two operations per fused multiply-add: the best of the variants."""
    gpu = torch.cuda.get_device_properties(0)
    programs, found = gpu.multi_processor_count * PROGRAMS, {}
    for block, warps in VARIANTS:
        call, kernel = check(block, warps, programs, REPEATS, "cuda")
        name = f"{block // (32 * warps)} chains per thread, {warps} warps"
        timed = measure.interleave({name: measure.Recording([call])}, SECONDS)[name]
        operations = 4 * programs * block * REPEATS * UNROLL  # two of each of two
        found[name] = {"tflops": measure.digits(operations / timed["median_us"] / 1e6), "median_us": timed["median_us"],
                       "fused_in_ptx": kernel.asm["ptx"].count("fma.rn")}
    datasheet = {"datasheet": FFMA[gpu.name] / 1e12} if gpu.name in FFMA else {}
    return {"value": max(result["tflops"] for result in found.values()), "unit": "TFLOP/s, float32 outside the tensor cores",
            "variants": found, **datasheet}
