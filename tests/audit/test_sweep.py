"""The networks of a sweep, the lines through its points, and the names by which peers call layers."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.audit.peers import longest_name_in
from hce_engine.audit.running import Setting, dispatch_seconds, engine_call, measure
from hce_engine.audit.sweep import lines
from hce_engine.audit.variants import flops, pruned, quantized
from hce_engine.backends import reference
from hce_engine.preprocess import to_nchw


def test_pruned_networks_cost_at_most_what_was_asked(small: Artifact) -> None:
    original = small.graph.only("o")
    found = pruned(original, ratios=(0.2, 0.5, 0.99), multiples=(1, 4))
    assert {(v.value, v.multiple) for v in found} == {(0.2, 1), (0.5, 1), (0.2, 4), (0.5, 4)}, "0.99 is more than can go"
    assert len({(v.multiple, flops(v.graph)) for v in found}) == len(found)
    for variant in found:
        assert flops(variant.graph) <= (1 - variant.value) * flops(original)
        widths = [n.params["weight"].shape[0] for n in variant.graph.nodes if n.name.endswith("first")]
        assert all(w % variant.multiple == 0 for w in widths)


def test_quantized_networks_run_as_the_reference_does(small: Artifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    original = small.graph.only("o")
    for variant in quantized(original, small.input, images, bits=(8, 3)):
        assert flops(variant.graph) / flops(original) == pytest.approx(8 / 23, abs=0.25)
        logits = engine_call(variant.graph, images, Setting())()
        assert np.array_equal(logits, reference.run(variant.graph, to_nchw(images, small.input))["o"])


def test_the_ensemble_is_the_mean(small: Artifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    graphs = {name: small.graph.only(*name.split(",")) for name in ("q", "s", "q,s")}
    logits = {name: engine_call(graph, images, Setting())() for name, graph in graphs.items()}
    assert np.array_equal(logits["q,s"], reference.mean_logits([logits["q"], logits["s"]]))


def test_times_are_ratios_of_rounds() -> None:
    counts = {"a": 0, "b": 0}

    def busy(name: str, steps: int) -> None:
        counts[name] += 1
        for _ in range(steps):
            pass

    calls = {"a": lambda: busy("a", 2000), "b": lambda: busy("b", 20_000)}
    times, restless = measure(calls, {"a": "a", "b": "a"}, Setting(rounds=6, seconds=0.01))
    assert times["a"].ratio == 1 and times["a"].interval == (1, 1)
    assert times["b"].ratio > 3 and times["b"].interval is not None
    assert times["b"].interval[0] <= times["b"].ratio <= times["b"].interval[1]
    assert counts["a"] and counts["b"] and restless >= 0


def test_a_step_costs_something_but_little() -> None:
    assert 0 <= dispatch_seconds(None, repeats=5) < 1e-4


def _point(engine: str, flops_ratio: float, time_ratio: float, multiple: int = 1, axis: str = "pruning") -> dict:
    return {"engine": engine, "axis": axis, "multiple": multiple, "flops_ratio": flops_ratio, "time_ratio": time_ratio,
            "realised_share": (1 - time_ratio) / (1 - flops_ratio)}


def test_lines_go_through_any_widths_alone() -> None:
    points = [_point("hce", f, 0.1 + 0.9 * f) for f in (0.2, 0.5, 0.8)] + [_point("hce", 0.5, 0.9, multiple=8), _point("hce", 0.3, 0.4, axis="bits")]
    points += [_point("other", 0.5, 0.6), _point("other", 0.4, 0.6)]
    found = lines(points)
    assert list(found) == ["hce"]
    assert found["hce"]["slope"] == pytest.approx(0.9) and found["hce"]["fixed"] == pytest.approx(0.1)
    assert found["hce"]["largest_distance"] == pytest.approx(0, abs=1e-12) and found["hce"]["least_share"] == pytest.approx(0.9)
    points[1] = _point("hce", 0.5, 0.55 + 0.03)
    assert lines(points)["hce"]["largest_distance"] == pytest.approx(0.02)


def test_layers_are_found_in_the_names_of_peers() -> None:
    names = ("o.conv1", "o.layer1.0.conv1", "o.layer1.0.conv10")
    assert longest_name_in("o.layer1.0.conv1_nchwc_reorder", names) == "o.layer1.0.conv1"
    assert longest_name_in("fused o.layer1.0.conv10 + relu", names) == "o.layer1.0.conv10"
    assert longest_name_in("Reorder_17", names) is None
