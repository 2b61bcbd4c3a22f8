"""The least time that a step can take on a named GPU: a bound from its datasheet, never a measurement.

    time >= max(bytes / bandwidth, 2 * walked / int8 rate, launch floor)

Bytes count every operand once: maps that stay in the second-level cache between steps can be faster than this bound on
memory says. The launch floor is what a node of a CUDA graph costs at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Cost, Step

LAUNCH_FLOOR = 1e-6  # seconds; assumed


@dataclass(frozen=True)
class Gpu:
    """name: as the driver reports it.  bandwidth: bytes/s.  int8: operations/s, dense, 2 per multiply-accumulate."""

    name: str
    bandwidth: float
    int8: float
    source: str


GPUS = {
    "h200": Gpu("NVIDIA H200", 4.8e12, 1979e12, "datasheet, SXM: 4.8 TB/s, 1979 TOPS int8 dense"),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 3.35e12, 1979e12,
                "datasheet, SXM: 3.35 TB/s; dense 1979 TOPS int8, 989 TFLOPS bfloat16, 495 TF32; 67 float32"),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 2.039e12, 624e12, "datasheet, SXM 80 GB: 2039 GB/s, 624 TOPS int8 dense"),
    "b200": Gpu("NVIDIA B200", 8e12, 4500e12, "datasheet: 8 TB/s, 4500 TOPS int8 dense"),
}


@dataclass(frozen=True)
class Bound:
    """seconds, and what sets them: ``memory``, ``tensor cores`` or ``launch``."""

    seconds: float
    by: str


def bound(cost: Cost, launches: int, gpu: Gpu) -> Bound:
    """The bound of ``launches`` launches that together cost ``cost``."""
    times = {
        "memory": cost.bytes / gpu.bandwidth, "tensor cores": 2 * cost.walked / gpu.int8, "launch": launches * LAUNCH_FLOOR,
    }
    by = max(times, key=lambda key: times[key])
    return Bound(times[by], by)


def total(steps: Sequence[Step], gpu: Gpu) -> float:
    """Seconds of steps that run one after the other."""
    return sum(bound(step.cost, step.launches, gpu).seconds for step in steps)
