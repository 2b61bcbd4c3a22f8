"""From series of seconds to figures and verdicts. Pure functions.

A *round* is one turn of every row, so rounds are pairs: what disturbs a round disturbs both sides of a ratio. A verdict
rests on the ratio of each round's medians and on the interval of order statistics around the ratio's median, which
supposes nothing about how times are distributed: with n rounds, [x(k), x(n+1-k)] holds the true median with probability
1 - 2 P(Binomial(n, 1/2) < k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

FASTER, SLOWER, SAME, UNCLEAR = "FASTER", "SLOWER", "SAME", "UNCLEAR"
CONFIDENCE = 0.95
SAME_WITHIN = 0.02
NOISY = 0.05  # interquartile range over median

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Summary:
    """Seconds per call over all rounds. samples: how many values; one value is the mean of a few calls if they are short."""

    median: float
    quartiles: tuple[float, float]
    minimum: float
    samples: int

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        return (self.quartiles[1] - self.quartiles[0]) / self.median


def summarize(rounds: Rounds) -> Summary:
    values = np.array([value for series in rounds for value in series])
    low, median, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return Summary(median, (low, high), float(values.min()), len(values))


@dataclass(frozen=True)
class Comparison:
    """How many times as fast ours is as theirs. interval: of ``CONFIDENCE`` or more, None with too few rounds for one."""

    ratio: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Ours against theirs: SAME if the interval lies within +-2 %, FASTER or SLOWER if it leaves 1 out, else UNCLEAR."""
        if self.interval is None:
            return UNCLEAR
        low, high = self.interval
        if low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
            return SAME
        return FASTER if low > 1 else SLOWER if high < 1 else UNCLEAR


def compare(ours: Rounds, theirs: Rounds) -> Comparison:
    """Paired by rounds; both have the same number of them."""
    ratios = [float(np.median(b) / np.median(a)) for a, b in zip(ours, theirs, strict=True)]
    return Comparison(float(np.median(ratios)), median_interval(ratios))


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The narrowest [x(k), x(n+1-k)] that holds the median with at least this probability; None if even [min, max] does not."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # P(Binomial(n, 1/2) < k)
    while k < n // 2 and 2 * (outside + comb(n, k) / 2**n) <= 1 - confidence:
        outside += comb(n, k) / 2**n
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None
