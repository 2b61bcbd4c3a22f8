"""How everything here is timed and checked.

Time per call comes from CUDA graphs: one graph holds enough calls, over enough distinct copies of their operands, that 256 MB
pass between two uses of the same bytes, several times the L2 of any GPU so far. One replay stands between two events, with
work queued ahead of it that writes another buffer, so that the first call finds a cold L2 and the host is done enqueuing
before the GPU arrives. Contenders take turns, round by round, and the raw series is kept. Operands are random, never zeros.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import stage

COLD_BYTES = 256 << 20
MOST_COPIES = 512
LEAD_CYCLES = 200_000  # about 0.1 ms, while the host enqueues a replay
LEAST_ROUNDS = 5

_flushed: list[torch.Tensor] = []


def copies(each: int) -> int:
    """Copies of ``each`` bytes of operands over which calls must rotate."""
    return max(1, min(MOST_COPIES, -(-COLD_BYTES // max(each, 1))))


def flush() -> None:
    """Writes a buffer of COLD_BYTES, and keeps the GPU busy a little longer."""
    if not _flushed:
        _flushed.append(torch.randint(0, 1 << 30, (COLD_BYTES // 4,), dtype=torch.int32, device="cuda"))
    _flushed[0].bitwise_not_()
    torch.cuda._sleep(LEAD_CYCLES)


class Recording:
    """A CUDA graph of some calls, each of which ran before it was captured. The calls stay alive with the operands that they
    hold, and so do their results: no two of them write the same memory."""

    def __init__(self, calls: Sequence[Callable[[], object]], warm: int = 2) -> None:
        self.calls = list(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm):
                calls[0]()
            for call in calls[1:]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # Not the context of torch.cuda.graph, which collects garbage and empties the cache: a tuner makes many of these.
        with torch.cuda.stream(side):
            self.graph.capture_begin()
            try:
                self.results = [call() for call in calls]
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
        self.graph.replay()
        torch.cuda.synchronize()

    def microseconds(self) -> float:
        """Per call, of one replay."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush()
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / len(self.calls)


class Replay:
    """What repeats work on the current stream by itself, the replay of a captured graph above all."""

    def __init__(self, replay: Callable[[], object], warm: int = 2) -> None:
        self.replay = replay
        for _ in range(warm):
            replay()
        torch.cuda.synchronize()

    def microseconds(self) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush()
        start.record()
        self.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000


class Live:
    """Calls that are no graph: copies from the host, and what a user of the back end calls."""

    def __init__(self, call: Callable[[], object], warm: int = 3) -> None:
        self.call = call
        for _ in range(warm):
            call()
        torch.cuda.synchronize()

    def microseconds(self) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6


Contender = Recording | Replay | Live


def interleave(contenders: Mapping[str, Contender], seconds: float, rounds: int = 21) -> dict[str, dict[str, Any]]:
    """Times contenders in turns: ``rounds`` of them, fewer (LEAST_ROUNDS at least) where they would take more than
    ``seconds``. Each round begins with another contender."""
    series: dict[str, list[float]] = {name: [] for name in contenders}
    names, end = list(contenders), time.monotonic() + seconds
    for name in names:
        contenders[name].microseconds()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > end:
            break
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            series[name].append(contenders[name].microseconds())
    return {name: summary(values) for name, values in series.items()}


def summary(series: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and least of microseconds, and all of them, to five digits."""
    quartiles = statistics.quantiles(series, n=4, method="inclusive") if len(series) > 1 else [series[0]] * 3
    return {
        "median_us": digits(statistics.median(series)), "q1_us": digits(quartiles[0]), "q3_us": digits(quartiles[2]),
        "least_us": digits(min(series)), "series_us": [digits(value) for value in series],
    }


def digits(value: float, count: int = 5) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, count - 1 - math.floor(math.log10(abs(value))))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """||got - expected|| / ||expected|| in float64; infinite where anything is not finite."""
    difference = torch.linalg.vector_norm(got.double() - expected.double()) / torch.linalg.vector_norm(expected.double())
    return float(difference) if bool(torch.isfinite(difference)) else math.inf


def check_close(name: str, got: torch.Tensor, expected: torch.Tensor, bound: float) -> dict[str, float]:
    """The error and its bound. Raises ArithmeticError beyond it."""
    if got.shape != expected.shape:
        raise ArithmeticError(f"{name}: expected {tuple(expected.shape)}, got {tuple(got.shape)}; it is not timed")
    error = relative_error(got, expected)
    if not error <= bound:
        raise ArithmeticError(f"{name}: expected an error of at most {bound}, got {error:.3g}; it is not timed")
    return {"error": digits(error, 3), "bound": bound}


def ceilings(out: Path) -> dict[str, float]:
    """What this machine reached (ceilings.py), by name; empty before that was measured."""
    return {key: result["value"] for key, result in stage.read(out, "machine").get("items", {}).items() if "value" in result}


def largest_and_mean(got: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """The largest and the mean error of ``got`` against float64, in parts of the largest expected magnitude."""
    scale = float(expected.abs().max())
    error = (got.double() - expected.double()).abs()
    return {"max_error": digits(float(error.max()) / scale, 3), "mean_error": digits(float(error.mean()) / scale, 3)}


def bound_us(known: Mapping[str, float], read_written: int, operations: int = 0, rate: str = "int8_tops") -> dict[str, Any]:
    """The least microseconds by the measured ceilings: bytes over copy bandwidth, operations over a matrix rate."""
    times = {}
    if "copy_gb_s" in known:
        times["memory"] = read_written / known["copy_gb_s"] / 1e3
    if operations and rate in known:
        times[rate] = operations / known[rate] / 1e6
    if not times:
        return {}
    by = max(times, key=lambda key: times[key])
    return {"bound_us": digits(times[by]), "bound_by": by}


def percent(bound: Mapping[str, Any], median_us: float) -> dict[str, float]:
    """How much of the bound a time reaches, in per cent."""
    return {"percent_of_bound": digits(100 * bound["bound_us"] / median_us, 3)} if bound else {}
