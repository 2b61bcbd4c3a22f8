"""Timing in turns: every row has a turn in every round, in an order drawn anew for each.

A turn begins when the process is quiet, because a runtime's idle threads may spin for a while after its last call and
would take a core from whoever is next. Then come calls that are not timed, since caches and sleeping threads belong to
the row before, then calls that are. The garbage collector is off, and nothing is printed. What a turn is timed with is a
:class:`Timer`: the host's clock here, the events of a GPU in cuda_timer.py.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

Call = Callable[[], object]

_SAMPLE = 0.002  # seconds; shorter calls are timed several at a time
_LEAST_SAMPLES = 3
_MOST_SAMPLES = 16  # of a turn; more would fill reports, not narrow intervals
_UNTIMED = 0.2  # share of a turn


def order(names: Sequence[str], rounds: int, seed: int = 0) -> list[list[str]]:
    """One permutation of ``names`` per round, the same for the same seed."""
    draw = random.Random(seed)
    return [draw.sample(names, len(names)) for _ in range(rounds)]


class Timer(Protocol):
    """What calls are timed with."""

    def settle(self) -> bool:
        """Waits until nothing of what ran before still works; False if that did not happen."""

    def seconds(self, call: Call, count: int) -> float:
        """Seconds of ``count`` calls one after the other, with all the work that they start."""


class HostClock:
    """Wall-clock time of calls that return when their work is done."""

    def settle(self) -> bool:
        return settle()

    def seconds(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - start


def interleaved(
    calls: Mapping[str, Call], rounds: int, seconds: float, timer: Timer | None = None
) -> tuple[dict[str, list[list[float]]], int]:
    """Seconds per call: by name, one series per round. And how many turns began although the process was not quiet.

    seconds: what a turn takes, of which a fifth is not timed; slow calls take longer, since a turn times three.
    timer: by default the host's clock.
    """
    timer = timer or HostClock()
    series: dict[str, list[list[float]]] = {name: [] for name in calls}
    restless = 0
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for names in order(list(calls), rounds):
            for name in names:
                restless += not timer.settle()
                series[name].append(_turn(calls[name], seconds, timer))
    finally:
        if enabled:
            gc.enable()
    return series, restless


def _turn(call: Call, seconds: float, timer: Timer) -> list[float]:
    one = _untimed(call, seconds * _UNTIMED, timer)
    timed = seconds * (1 - _UNTIMED)
    per_sample = max(1, math.ceil(max(_SAMPLE, timed / _MOST_SAMPLES) / one))
    values: list[float] = []
    spent = 0.0
    while len(values) < _LEAST_SAMPLES or (spent < timed and len(values) < _MOST_SAMPLES):
        took = timer.seconds(call, per_sample)
        spent += took
        values.append(took / per_sample)
    return values


def _untimed(call: Call, seconds: float, timer: Timer) -> float:
    """Calls for so long, at least one; seconds per call of the last ones. Twice as many at a time, because reading a timer may
    mean waiting for a GPU."""
    count, one = 1, timer.seconds(call, 1)
    spent = one
    while spent < seconds:
        count = max(1, min(2 * count, math.ceil((seconds - spent) / one)))
        took = timer.seconds(call, count)
        spent, one = spent + took, took / count
    return one


def settle(limit: float = 0.25, window: float = 0.002, windows: int = 3, share: float = 0.2) -> bool:
    """Waits until no thread of this process computes: until it used less than ``share`` of a core in each of so many windows.

    window: seconds. More than one, because a thread that spins may be off its core for a while. False if that did not happen
    within ``limit`` seconds.
    """
    end, quiet = time.perf_counter() + limit, 0
    while quiet < windows and time.perf_counter() < end:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(window)
        quiet = quiet + 1 if time.process_time() - used < share * (time.perf_counter() - start) else 0
    return quiet == windows
