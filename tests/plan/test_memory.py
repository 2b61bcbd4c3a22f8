"""No two maps that are alive at the same step overlap, in any plan and in any random schedule."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hce_engine.plan.cpu import Map, Step, memory
from hce_engine.plan.split import split_evenly


@pytest.mark.parametrize("seed", range(20))
def test_maps_alive_together_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = [Map(f"m{i}", int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(1, 9)),
                halo=tuple(int(v) for v in rng.integers(0, 2, 4))) for i in range(30)]
    steps = []
    for i in range(1, 30):
        reads = {str(k): maps[k] for k in rng.choice(i, min(i, 3), replace=False)}
        steps.append(Step((f"s{i}",), "k", "", "", reads, {"y": maps[i]}))
    arena = memory.place(steps)
    lives = list(memory.lifetimes(steps).values())
    for (a, first_a, last_a), (b, first_b, last_b) in combinations(lives, 2):
        if first_a <= last_b and first_b <= last_a:
            assert a.start + a.bytes <= b.start or b.start + b.bytes <= a.start
    assert all(m.start >= 0 and m.start + m.bytes <= arena and m.start % 64 == 0 for m, _, _ in lives)
    peak = max(sum(m.bytes for m, f, l in lives if f <= i <= l) for i in range(len(steps)))
    assert arena <= 2 * peak


def test_split_evenly() -> None:
    assert [split_evenly(n, 6) for n in (1, 6, 7, 9, 16)] == [[1], [6], [3, 4], [4, 5], [5, 5, 6]]
    for n in range(1, 200):
        parts = split_evenly(n, 6)
        assert sum(parts) == n and max(parts) - min(parts) <= 1 and max(parts) <= 6
