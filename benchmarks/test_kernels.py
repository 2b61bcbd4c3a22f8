"""Every CPU kernel over the layers of benchmarks/kernel_shapes.py, one thread, one tile of 16 images.

    make bench PYTEST_ARGS="-k 'kernels and resnet50 and u4xs4' --benchmark-json=kernels.json"
    python -m benchmarks.kernel_table kernels.json

``extra_info`` holds products and bytes per second, and both as shares of this machine's measured peaks. Time is that of the step
alone: the benchmark's clock stands still while the small network around it runs. Products are the layer's own, so a Winograd
kernel may pass 100 % of the peak; ``executed`` are the operations of the kernel, padding and transforms included.
"""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.kernel_shapes import LAYERS, MAP_STEPS, Layer, MapStep
from benchmarks.kernel_steps import TimedStep
from hce_engine.peaks import Peaks
from hce_engine.plan.cpu.lanes import LANES

SECONDS = 0.1  # per case, the network around the step included


class StepClock:
    """A timer that moves only by what steps took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = StepClock()
CASES = [(layer, kind) for layer in LAYERS for kind in layer.kinds]


def measure(benchmark: BenchmarkFixture, timed: TimedStep) -> float:
    """Runs the benchmark and returns the step's median seconds."""

    def run() -> None:
        CLOCK.now += timed()

    start = time.perf_counter()
    run()
    rounds = min(200, max(5, int(SECONDS / (time.perf_counter() - start))))
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)
    return float(benchmark.stats.stats.median) if benchmark.stats else timed()


def describe(benchmark: BenchmarkFixture, timed: TimedStep, peaks: Peaks, seconds: float) -> None:
    work = timed.work
    place = peaks.place_of(work.working_set)
    rate = LANES / work.images * work.bytes / seconds
    benchmark.extra_info.update(
        isa=peaks.isa, kernel=timed.step.kernel, place=place, bytes_per_second=rate,
        bandwidth_share=rate / max(peaks.read[place], peaks.triad[place]),
    )
    if work.kind:
        benchmark.extra_info.update(
            macs_per_second=LANES * work.macs / seconds, peak_share=LANES * work.macs / seconds / peaks.macs[work.kind],
            executed_share=LANES * work.executed / seconds / peaks.macs[work.kind],
        )


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("layer", "kind"), CASES, ids=[f"{layer.name}-{kind}" for layer, kind in CASES])
def test_products(benchmark: BenchmarkFixture, peaks: Peaks, layer: Layer, kind: str) -> None:
    timed = TimedStep.of_layer(layer, kind, peaks.isa)
    describe(benchmark, timed, peaks, measure(benchmark, timed))
    assert timed.work.macs > 0


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("case", MAP_STEPS, ids=lambda case: f"{case.name}-{'u8' if case.codes else 'f32'}")
def test_maps(benchmark: BenchmarkFixture, peaks: Peaks, case: MapStep) -> None:
    timed = TimedStep.of_map(case, peaks.isa)
    describe(benchmark, timed, peaks, measure(benchmark, timed))
    assert timed.work.bytes > 0
