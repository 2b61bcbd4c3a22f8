"""Medians, intervals and verdicts of known series."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.bench.statistics import (
    FASTER,
    SAME,
    SLOWER,
    UNCLEAR,
    Comparison,
    compare,
    median_interval,
    summarize,
)


def test_a_summary_is_over_all_rounds() -> None:
    summary = summarize([[1.0, 2.0], [3.0], [4.0, 5.0]])
    assert (summary.median, summary.quartiles, summary.minimum, summary.samples) == (3.0, (2.0, 4.0), 1.0, 5)
    assert summary.spread == pytest.approx(2 / 3)


@pytest.mark.parametrize(("count", "ranks"), [(6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (11, (2, 10)), (20, (6, 15)), (100, (40, 61))])
def test_intervals_are_those_of_the_sign_test(count: int, ranks: tuple[int, int]) -> None:
    values = np.random.default_rng(0).permutation(count) + 1.0
    assert median_interval(values.tolist()) == ranks


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_values_give_no_interval(count: int) -> None:
    assert median_interval([1.0] * count) is None


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    draws = np.random.default_rng(1).exponential(size=(4000, 9))
    held = [low <= np.log(2) <= high for low, high in (median_interval(row) for row in draws)]  # type: ignore[misc]
    assert 0.95 <= np.mean(held) < 0.975  # exactly 0.9609


@pytest.mark.parametrize(("interval", "verdict"), [
    ((1.01, 1.05), FASTER), ((0.9, 0.97), SLOWER), ((0.985, 1.015), SAME), ((1.005, 1.015), SAME), ((0.98, 1.02), SAME),
    ((0.97, 1.01), UNCLEAR), ((0.5, 2.0), UNCLEAR), ((1.0, 1.5), UNCLEAR), (None, UNCLEAR),
])
def test_verdicts(interval: tuple[float, float] | None, verdict: str) -> None:
    assert Comparison(1.0, interval).verdict == verdict


def test_a_comparison_is_paired_by_rounds() -> None:
    # The machine is three times slower in every other round: no spread of either side tells, the ratio of a round does.
    slow = [1.0, 3.0] * 5
    ours, theirs = [[1.0 * f, 1.1 * f, 0.9 * f] for f in slow], [[1.5 * f] for f in slow]
    comparison = compare(ours, theirs)
    assert comparison.ratio == pytest.approx(1.5)
    assert comparison.interval == pytest.approx((1.5, 1.5))
    assert comparison.verdict == FASTER
    assert compare(theirs, ours).verdict == SLOWER
    assert compare(ours, ours).verdict == SAME
    assert compare(ours[:5], theirs[:5]).verdict == UNCLEAR
