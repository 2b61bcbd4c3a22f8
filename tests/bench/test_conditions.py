"""Threads are counted, whoever claims what, and also where they share one core."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable

import pytest

from hce_engine.bench.conditions import ThreadUse, Watch, _core_seconds, crowded, in_turns, thread_use

DATA = bytes(1 << 22)


def work(threads: int) -> Callable[[], None]:
    """A call that computes on so many threads that live as long as it does not: on the caller's and on one-off ones."""
    pool = [threading.Event() for _ in range(threads - 1)]

    def serve(ready: threading.Event, done: threading.Event) -> None:
        while ready.wait() and not stop:
            ready.clear()
            zlib.crc32(DATA)
            done.set()

    stop: list[bool] = []
    finished = [threading.Event() for _ in pool]
    for ready, done in zip(pool, finished, strict=True):
        threading.Thread(target=serve, args=(ready, done), daemon=True).start()

    def call() -> None:
        for ready in pool:
            ready.set()
        zlib.crc32(DATA)
        for done in finished:
            done.wait()
            done.clear()

    def end() -> None:
        stop.append(True)
        for ready in pool:
            ready.set()

    call.end = end  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_busy_threads_are_counted(threads: int) -> None:
    call = work(threads)
    use = thread_use(call, 0.2)
    call.end()  # type: ignore[attr-defined]
    assert use.threads == threads
    assert 0 < use.processors < threads + 0.2
    assert not use.within(threads - 1)


def test_what_is_within_a_number_of_threads() -> None:
    assert ThreadUse(1, 1.1).within(1)
    assert not ThreadUse(1, 1.2).within(1)
    assert not ThreadUse(2, 0.9).within(1)
    assert ThreadUse(1, 0.5).within(2)


def test_sessions_in_turns_may_have_different_threads() -> None:
    assert in_turns([ThreadUse(2, 1.9), ThreadUse(2, 1.5)], ThreadUse(3, 1.7)) == ThreadUse(2, 1.9)
    assert not in_turns([ThreadUse(1, 1.0), ThreadUse(1, 1.0)], ThreadUse(2, 1.8)).within(1)


def test_the_watch_reads_the_machine() -> None:
    watch = Watch()
    zlib.crc32(bytes(1 << 24))
    values = watch.read(1)
    assert set(values) == {"load", "other_processors", "beside_us", "steal", "crowded"}
    assert len(values["load"]) == 2
    assert values["other_processors"] >= values["beside_us"] >= 0
    assert 0 <= values["steal"] <= 1


def test_cores_are_told_apart() -> None:
    stat = "cpu  300 0 0 900 0 0 0 30 0 0\ncpu0 100 20 30 400 50 6 7 8 0 0\ncpu11 200 0 0 500 0 0 0 22 0 0\nintr 1 2 3\n"
    tick = os.sysconf("SC_CLK_TCK")
    assert _core_seconds(stat) == {0: (163 / tick, 8 / tick), 11: (200 / tick, 22 / tick)}


def test_others_may_use_what_is_left() -> None:
    assert not crowded(1.1, threads=1, cores=2)
    assert crowded(1.2, threads=1, cores=2)
    assert crowded(0.5, threads=2, cores=2)
    assert not crowded(30.0, threads=2, cores=64)


def test_freed_memory_is_kept() -> None:
    """In a process of its own, because it lasts: blocks that are freed and allocated again cost no new page faults."""
    program = """
import resource
from hce_engine.bench.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = bytearray(8 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
assert faults() < 100
"""
    subprocess.run([sys.executable, "-c", program], check=True)
