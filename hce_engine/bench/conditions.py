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
        self._own, self._cores = time.process_time(), _core_seconds(_STAT.read_text())

    def read(self, threads: int) -> dict[str, Any]:
        """load: one-minute averages before and after.  other_processors: cores' worth that other programs used; beside_us: on those cores
        that this process may use.  steal: share of the cores' time that the hypervisor gave to others.  crowded: whether others
        used more of our cores than ``threads`` threads leave free; then runtimes whose threads spin or are bound to cores
        suffer most, and no verdict is fair."""
        wall, own = time.perf_counter() - self._start, time.process_time() - self._own
        spent = {core: (busy - self._cores[core][0], stolen - self._cores[core][1])
                 for core, (busy, stolen) in _core_seconds(_STAT.read_text()).items() if core in self._cores}
        ours = os.sched_getaffinity(0)
        everywhere = max(0.0, (sum(busy for busy, _ in spent.values()) - own) / wall)
        beside = max(0.0, (sum(busy for core, (busy, _) in spent.items() if core in ours) - own) / wall)
        return {
            "load": [round(self._load, 2), round(os.getloadavg()[0], 2)], "other_processors": round(everywhere, 3),
            "beside_us": round(beside, 3), "steal": round(sum(stolen for _, stolen in spent.values()) / wall / len(spent), 4),
            "crowded": crowded(beside, threads, len(ours)),
        }


def crowded(others: float, threads: int, cores: int) -> bool:
    """Whether ``threads`` threads and others' ``others`` processors' worth of work do not fit on the cores."""
    return others > cores - threads + MARGIN


def _core_seconds(stat: str) -> dict[int, tuple[float, float]]:
    """(busy, stolen) seconds of each core since the machine started, from the text of /proc/stat."""
    tick, found = os.sysconf("SC_CLK_TCK"), {}
    for line in stat.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, irq, softirq, steal = map(int, values[:8])
            found[int(name[3:])] = ((user + nice + system + irq + softirq) / tick, steal / tick)
    return found
