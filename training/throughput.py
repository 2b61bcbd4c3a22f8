"""Images per second of several ways to do the same work, timed side by side.

Everything is timed in turns, in one process, and the median of each is taken: a machine that slows down or is shared
slows all of them alike, so that the ratios stand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

WARM_UP_CALLS = 2


def interleaved(
    work: Mapping[str, Callable[[], object]], images: int, rounds: int = 9, seconds: float = 0.25
) -> dict[str, float]:
    """Median images/s of each callable, which handles ``images`` images per call.

    In every round each one is called repeatedly for about ``seconds``, after calls that are not timed.
    """
    repeats = {}
    for name, call in work.items():
        for _ in range(WARM_UP_CALLS):
            call()
        started = time.perf_counter()
        call()
        repeats[name] = max(1, round(seconds / max(1e-9, time.perf_counter() - started)))
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            call()  # the caches now hold this one's data, not its predecessor's
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            rates[name].append(images * repeats[name] / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}
