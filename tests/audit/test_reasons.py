"""Reasons: the right code for each cause, at its threshold, with the figures in its sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hce_engine.audit.reasons import ALL_CODES, DISPATCH, INSTRUCTIONS, MEMORY, Machine, charges, rate_cause, reasons
from hce_engine.ledger import Cost
from tests.audit.conftest import made_up, random_layer

HALF = Cost(macs=500_000, flops_paper=5e5)


def half(seconds: float, **changes: object):  # type: ignore[no-untyped-def]
    values = {"macs": 500_000, "executed": 500_000, "unpadded": 5e5, "cost": HALF, "product_seconds": seconds}
    return made_up(seconds, **(values | changes))


def test_nothing_is_explained_where_all_was_realised(machine: Machine) -> None:
    original = made_up(10e-6)
    assert reasons(original, half(5e-6), machine) == []
    assert reasons(original, half(4e-6), machine) == []
    assert reasons(original, made_up(20e-6), machine) == [], "a layer without a saving has none to explain"


def test_slow_products_are_told_apart(machine: Machine) -> None:
    """A working set of 20 kB lies in the first cache (1000 GB/s), one of 200 kB in the second (100 GB/s)."""
    assert rate_cause(half(8e-6, bytes=8e-6 * 20e9, working_set=200_000), machine) == INSTRUCTIONS
    assert rate_cause(half(8e-6, bytes=8e-6 * 25.1e9, working_set=200_000), machine) == MEMORY
    assert rate_cause(half(8e-6, bytes=8e-6 * 25.1e9, working_set=20_000), machine) == INSTRUCTIONS
    per_call = 10e-9 / 0.05
    assert rate_cause(half(per_call / 16 * 1.01), machine) == INSTRUCTIONS
    assert rate_cause(half(per_call / 16 * 0.99), machine) == DISPATCH


def test_sentences_hold_the_figures(machine: Machine) -> None:
    original = made_up(10e-6)
    (slow,) = reasons(original, half(8e-6, bytes=8e-6 * 50e9, working_set=200_000), machine)
    assert slow.code == MEMORY and slow.factor == pytest.approx(1.6) and slow.seconds == pytest.approx(3e-6)
    assert "50 GB/s" in slow.text and "50 % of what l2 gives" in slow.text and "62 % of the f32 peak, the original 100 %" in slow.text
    codes = replace(original, kind="u4", cost=Cost(macs=1_000_000, flops_paper=1e6 * 4 / 23), seconds=2.5e-6, product_seconds=2.5e-6)
    (unit,) = reasons(original, codes, machine)
    assert unit.code == "unit" and "4.0x the rate of f32" in unit.text and "save 75 %" in unit.text and "(83 %)" in unit.text
    winograd = replace(original, kernel="conv2d_f32_winograd", unpadded=4e5, executed=400_000, seconds=4e-6, product_seconds=4e-6)
    (algorithm,) = reasons(winograd, half(5e-6), machine)
    assert algorithm.code == "algorithm" and "0.40 operations per product (Winograd), this layer 1.00 (direct)" in algorithm.text
    (padding,) = reasons(original, half(7e-6, executed=700_000), machine)
    assert padding.code == "padding" and padding.text.startswith("1.40 operations")
    (overhead,) = reasons(original, replace(half(5e-6), seconds=6e-6), machine)
    assert overhead.code == "overhead" and "17 % of its time" in overhead.text


def test_what_costs_most_comes_first_and_small_factors_stay_away(machine: Machine) -> None:
    original = made_up(10e-6)
    found = reasons(original, half(9e-6, executed=550_000), machine)
    assert [r.code for r in found] == [INSTRUCTIONS, "padding"]
    assert [r.code for r in reasons(original, half(8e-6, executed=510_000), machine)] == [INSTRUCTIONS]
    (only,) = reasons(original, half(5.1e-6), machine)
    assert only.code == INSTRUCTIONS and only.factor == pytest.approx(1.02), "a loss is never without a reason"


@pytest.mark.parametrize("seed", range(20))
def test_charges_are_complete(seed: int, machine: Machine) -> None:
    rng = np.random.default_rng(seed)
    original, layer = random_layer(rng), random_layer(rng)
    found = charges(original, layer, machine)
    assert set(found) <= set(ALL_CODES)
    ratio = layer.cost.flops_paper / original.cost.flops_paper
    assert sum(seconds for _, seconds in found.values()) == pytest.approx(layer.seconds - ratio * original.seconds, rel=1e-9, abs=1e-18)
    lost = layer.seconds > ratio * original.seconds and ratio < 1
    assert bool(reasons(original, layer, machine)) == lost
