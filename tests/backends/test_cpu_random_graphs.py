"""Random graphs over every operation: the CPU back end against the reference, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.graph import OPS
from hce_engine.plan import components
from hce_engine.plan.cpu import build_plan, select
from tests.backends.random_graphs import RandomGraph

SEEDS = range(120)
LOW_BIT_SEEDS = range(60)
BLOCK = 20  # seeds per test case


def _quantized(case: RandomGraph) -> set[str]:
    """Nodes whose value depends on codes alone, heads included: these are exact."""
    exact: set[str] = set()
    for node in case.graph.nodes:
        if node.spec.type.is_activation_code or node.op == "qlinear" or (node.inputs and node.op == "clamp" and node.inputs[0] in exact):
            exact.add(node.name)
    return exact


@pytest.mark.parametrize("first", range(0, len(SEEDS), BLOCK))
def test_random_graphs_equal_the_reference(first: int) -> None:
    check(RandomGraph(seed) for seed in SEEDS[first : first + BLOCK])


@pytest.mark.parametrize("first", range(0, len(LOW_BIT_SEEDS), BLOCK))
def test_random_low_bit_networks_equal_the_reference(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With integer Winograd wherever it is exact, however little it saves."""
    monkeypatch.setattr(select, "WINOGRAD_MARGIN", 0.0)
    cases = [RandomGraph(seed, low_bit=True) for seed in LOW_BIT_SEEDS[first : first + BLOCK]]
    plans = [build_plan(part, "portable") for case in cases for part in components(case.graph)]
    assert sum(step.kernel.endswith("_winograd") and step.method == "conv_u8" for plan in plans for step in plan.steps) > BLOCK
    check(cases)


def check(cases: Iterable[RandomGraph]) -> None:
    """Every member of every case on every instruction set: codes and heads to the bit, floats within a bound."""
    for number, case in enumerate(cases):
        images = case.images(1 + number * 7 % 35)
        planes = images if case.float_images else images.transpose(0, 3, 1, 2)
        values = reference.evaluate(case.graph, planes)
        exact = _quantized(case)
        largest = max(1.0, *(float(np.abs(v).max()) for n, v in values.items() if case.graph[n].spec.type.is_float and v.size))
        for isa in _native.supported_isas():
            got = CpuBackend(case.graph, isa=isa, threads=2, poison=True).run(images)
            for member in case.graph.members:
                want = values[member.output]
                bound = 0.0 if member.output in exact else 3e-5 * largest
                error = np.abs(got[member.name] - want).max()
                assert error <= bound, f"case {number} on {isa}, {member.name}: off by {error}, allowed {bound}\n{case.graph}"


def test_random_graphs_use_every_operation() -> None:
    used = {node.op for seed in SEEDS for node in RandomGraph(seed).graph.nodes}
    assert used == set(OPS) - {"batch_norm"}  # which no lowered graph holds


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_results_do_not_depend_on_batch_threads_or_company(isa: str) -> None:
    for seed in range(0, 30, 3):
        case = RandomGraph(seed)
        images = case.images(37)
        whole = CpuBackend(case.graph, isa=isa, threads=3, poison=True).run(images)
        part = CpuBackend(case.graph, isa=isa).run(images[:21], concurrent=False)
        for member in case.graph.members:
            alone = CpuBackend(case.graph.only(member.name), isa=isa, poison=True).run(images[:5])
            assert whole[member.name][:21].tobytes() == part[member.name].tobytes()
            assert whole[member.name][:5].tobytes() == alone[member.name].tobytes(), f"seed {seed}, {member.name}"


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("low_bit", [False, True])
def test_threads_that_share_a_tile_change_no_bit(isa: str, low_bit: bool) -> None:
    for seed in range(0, 24, 2):
        case = RandomGraph(seed, low_bit=low_bit)
        images = case.images(4)
        want = CpuBackend(case.graph, isa=isa).run(images)
        for threads, count in ((2, 1), (3, 1), (4, 2), (5, 1)):
            got = CpuBackend(case.graph, isa=isa, threads=threads, poison=True, shared_work=0).run(images[:count])
            for name, logits in want.items():
                assert got[name].tobytes() == logits[:count].tobytes(), f"seed {seed}, {name}, {threads} threads"
