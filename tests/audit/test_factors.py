"""The factors of a layer: their product is exact, whatever the layers are, and each means what it says."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from hce_engine.audit.factors import CODES, charged_seconds, efficiency, factors
from hce_engine.audit.reasons import Machine
from hce_engine.ledger import Cost
from tests.audit.conftest import made_up, random_layer


@pytest.mark.parametrize("seed", range(20))
def test_they_multiply_to_the_time_ratio(seed: int, machine: Machine) -> None:
    rng = np.random.default_rng(seed)
    original, layer = random_layer(rng), random_layer(rng)
    found = factors(original, layer, machine.peaks)
    ratio = layer.cost.flops_paper / original.cost.flops_paper
    assert tuple(found) == CODES
    assert ratio * prod(found.values()) == pytest.approx(layer.seconds / original.seconds, rel=1e-12)
    seconds = charged_seconds(layer.seconds, ratio * original.seconds, found)
    assert sum(seconds.values()) == pytest.approx(layer.seconds - ratio * original.seconds, rel=1e-9, abs=1e-18)
    assert all((found[c] > 1) == (seconds[c] > 0) for c in CODES)
    assert charged_seconds(1.0, 1.0, {"a": 2.0, "b": 0.5}) == pytest.approx({"a": np.log(2), "b": -np.log(2)}), "and where nothing is lost"


def test_a_layer_that_costs_what_its_flops_say_has_factors_of_one(machine: Machine) -> None:
    original = made_up(10e-6)
    half = made_up(5e-6, macs=500_000, executed=500_000, unpadded=5e5, cost=Cost(macs=500_000, flops_paper=5e5))
    assert factors(original, half, machine.peaks) == pytest.approx(dict.fromkeys(CODES, 1.0))
    assert efficiency(half, machine.peaks) == pytest.approx(1.0)


def test_each_factor_alone(machine: Machine) -> None:
    original = made_up(10e-6)
    peaks = machine.peaks
    cheap = Cost(macs=1_000_000, flops_paper=1e6 * 4 / 23)
    codes = replace(original, kind="u4", cost=cheap, seconds=2.5e-6, product_seconds=2.5e-6)
    assert factors(original, codes, peaks) == pytest.approx(dict.fromkeys(CODES, 1.0) | {"unit": 23 / 16})
    winograd = replace(original, unpadded=4e5, executed=400_000, seconds=4e-6, product_seconds=4e-6)
    assert factors(winograd, original, peaks) == pytest.approx(dict.fromkeys(CODES, 1.0) | {"algorithm": 2.5})
    padded = replace(original, executed=1_330_000, seconds=13.3e-6, product_seconds=13.3e-6)
    assert factors(original, padded, peaks) == pytest.approx(dict.fromkeys(CODES, 1.0) | {"padding": 1.33})
    slow = replace(original, seconds=20e-6, product_seconds=20e-6)
    assert factors(original, slow, peaks) == pytest.approx(dict.fromkeys(CODES, 1.0) | {"rate": 2.0})
    busy = replace(original, seconds=12e-6)
    assert factors(original, busy, peaks) == pytest.approx(dict.fromkeys(CODES, 1.0) | {"overhead": 1.2})
