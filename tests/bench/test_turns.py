"""Rounds in which every row has its turn, on a quiet process, without the garbage collector."""

from __future__ import annotations

import gc
import time
from itertools import groupby

import pytest

from hce_engine.bench.turns import interleaved, order, settle


def test_every_round_is_a_permutation_and_rounds_differ() -> None:
    names = list("abcdef")
    rounds = order(names, 20)
    assert all(sorted(some) == names for some in rounds)
    assert len({tuple(some) for some in rounds}) > 10
    assert rounds == order(names, 20)
    assert rounds != order(names, 20, seed=1)


def test_rows_take_turns() -> None:
    log: list[str] = []

    def call(name: str) -> None:
        assert not gc.isenabled()
        log.append(name)
        time.sleep(0.001)

    assert gc.isenabled()
    series, restless = interleaved({name: lambda name=name: call(name) for name in "abc"}, 4, 0.02)  # type: ignore[misc]
    assert gc.isenabled()
    assert restless == 0
    turns = [name for name, _ in groupby(log)]
    joined = "".join(turns)
    expected = "".join(name for name, _ in groupby(name for some in order(list("abc"), 4) for name in some))
    assert joined == expected
    for rounds in series.values():
        assert len(rounds) == 4
        assert all(3 <= len(values) <= 16 for values in rounds)
        assert all(value >= 0.001 for values in rounds for value in values)


def test_short_calls_are_timed_several_at_a_time() -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    series, _ = interleaved({"a": count}, 1, 0.05)
    assert calls > 1000
    assert len(series["a"][0]) <= 16
    assert max(series["a"][0]) < 0.001


def test_the_collector_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0}, 1, 0.01)
    assert gc.isenabled()


def test_a_busy_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(limit=5.0)
    start = time.perf_counter()
    monkeypatch.setattr(time, "process_time", lambda: time.perf_counter() - start)  # one thread computes without end
    assert not settle(limit=0.05)
    monkeypatch.setattr(time, "process_time", lambda: min(time.perf_counter() - start, 0.2))  # until then
    assert settle(limit=5.0)
    assert time.perf_counter() - start > 0.2
