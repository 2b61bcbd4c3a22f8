"""What a measurement ran beside: threads that a call keeps busy, load of the machine, time that others took.

Thread counts are not believed but counted, from the processor time of each thread of this process (Linux). Counting threads
and not processor time finds the second one even where both share the only core that the process may use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_BUSY = 0.1  # share of the busiest thread's time from which on a thread counts
MARGIN = 0.15  # of a processor


@dataclass(frozen=True)
class ThreadUse:
    """threads: how many did a noticeable part of the work.  processors: processor time over wall time."""

    threads: int
    processors: float

    def within(self, threads: int) -> bool:
        return self.threads <= threads and self.processors <= threads + MARGIN


def in_turns(uses: Sequence[ThreadUse], whole: ThreadUse) -> ThreadUse:
    """The use of sessions that run one after the other. They may have different threads, so that each is counted by itself; that
    they do not overlap is seen from the processor time of the whole."""
    return ThreadUse(max(use.threads for use in uses), max(whole.processors, *(use.processors for use in uses)))


def thread_use(call: Callable[[], object], seconds: float) -> ThreadUse:
    """Runs ``call`` for so long and counts who worked."""
    call()  # pools start, memory is touched
    before, start = _thread_seconds(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
    wall, after = time.perf_counter() - start, _thread_seconds()
    used = [spent - before.get(thread, 0.0) for thread, spent in after.items()]
    return ThreadUse(sum(1 for u in used if u > _BUSY * max(used)), sum(used) / wall)


def _thread_seconds() -> dict[str, float]:
    found = {}
    for task in _TASKS.iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[0]) * 1e-9
        except FileNotFoundError:  # the thread ended meanwhile
            continue
    return found


class Watch:
    """What happened on the machine between its making and :meth:`read`."""

    def __init__(self) -> None:
        self._load, self._start = os.getloadavg()[0], time.perf_counter()
        self._own, self._machine, self._steal = time.process_time(), *_machine_seconds()

    def read(self, threads: int) -> dict[str, Any]:
        """load: one-minute averages before and after.  other_processors: cores' worth that other processes used.
        steal: share of the cores' time that the hypervisor gave to others.  crowded: whether others used more than what ``threads``
        threads leave free; then runtimes whose threads spin or are bound to cores suffer most, and no verdict is fair."""
        wall = time.perf_counter() - self._start
        own = time.process_time() - self._own
        busy, stolen = (now - then for now, then in zip(_machine_seconds(), (self._machine, self._steal), strict=True))
        others, cores = max(0.0, (busy - own) / wall), os.cpu_count() or 1
        return {
            "load": [round(self._load, 2), round(os.getloadavg()[0], 2)], "other_processors": round(others, 3),
            "steal": round(stolen / wall / cores, 4), "crowded": crowded(others, threads, cores),
        }


def crowded(others: float, threads: int, cores: int) -> bool:
    """Whether ``threads`` threads and others' ``others`` processors' worth of work do not fit on the cores."""
    return others > cores - threads + MARGIN


def _machine_seconds() -> tuple[float, float]:
    """(busy, stolen) seconds of all processors since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick
