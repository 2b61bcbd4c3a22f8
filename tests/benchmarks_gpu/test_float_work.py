"""Float layers and ensembles as they are measured: shapes, graphs, bounds, items of stages. Their launches: tests/cuda/test_measured_kernels.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import (
    accuracy,
    ensemble,
    ensemble_cases,
    ffma,
    float_graphs,
    float_layers,
    float_shapes,
    names,
    repeats,
    sanitizer,
    stage,
    variants,
)
from hce_engine import artifact
from hce_engine.ledger import node_macs
from hce_engine.plan.cuda.ensemble_plan import build_ensemble_plan, largest_ensemble_bucket
from tests.cuda import split_error


def test_layers_are_those_of_networks() -> None:
    dense = float_shapes.cifar("resnet20", 20)
    assert sum(layer.count for layer in dense) == 20 and float_shapes.total_macs(dense) == 40_550_400 + 640
    for depth in (20, 56):
        whole, cut = float_shapes.cifar("x", depth), float_shapes.uniform("x", depth)
        assert 0.41 < float_shapes.total_macs(cut) / float_shapes.total_macs(whole) <= 0.435
    graph = artifact.load(float_shapes.SHIPPED).graph.only("s")
    shipped = float_shapes.of_member(graph, "s")
    assert float_shapes.total_macs(shipped) == sum(map(node_macs, graph.nodes))


def test_every_shape_has_a_name_and_a_plan() -> None:
    layers = float_shapes.layers()
    assert len({layer.shape for layer in layers}) == len({layer.name for layer in layers}) == len(layers)
    assert {layer.network for layer in layers} >= {"resnet20-s43.5", "resnet20", "shipped s", "resnet50", "mobilenet_v2"}
    kernels = set()
    for layer in layers:
        batch = max(float_shapes.batches(layer))
        (part,) = build_ensemble_plan(float_graphs.of_layer(layer), batch).parts
        steps = [step for step in part.steps if float_graphs.LAYER in step.nodes]
        assert sum(step.cost.macs for step in steps) == batch * layer.macs
        kernels |= {step.kernel for step in steps}
    assert len(kernels) > 2


@pytest.mark.parametrize("case", [name for name, case in names.CASES.items() if case.arch == "resnet20"])
def test_cases_have_members_for_every_batch(case: str) -> None:
    made = ensemble_cases.make(names.CASES[case])
    assert {m.name: m.role for m in made.graph.members} == {"q": "vote", "s": "vote", "o": "reference"}
    assert made.flops_ratio("o") == 1 and made.flops_ratio("q", "s") == pytest.approx(0.567, abs=0.002)
    assert {name: logits.shape for name, logits in made.expected.items()} == dict.fromkeys("qso", (ensemble_cases.CHECKED, 10))
    for members, _, _ in ensemble.rows().values():
        if members != ("q",):
            assert largest_ensemble_bucket(build_ensemble_plan(made.only(*members), 1), 8192) == 8192


def test_every_stage_has_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCE_DATA", str(tmp_path))
    stages = {
        "float_layers": float_layers.items(tmp_path), "ensemble": ensemble.items(tmp_path), "sanitizer": sanitizer.items(stage.Deadline(0)),
        "repeats": repeats.items(stage.Document(tmp_path, "repeats", {})), "accuracy": accuracy.items(),
    }
    for items in stages.values():
        assert len({item.key for item in items}) == len(items) > 2 and all(item.seconds < 300 for item in items)
    assert stages["float_layers"][0].key.startswith("resnet20-s43.5 32x32") and stages["float_layers"][0].key.endswith("batch 4096")
    case = next(iter(names.CASES))
    assert stages["ensemble"][0].key == names.plain_key(case, 4096)
    assert stages["ensemble"][1].key == names.compiled_key(case, 4096, "compile-default", "fp32+tf32")
    assert len(stages["accuracy"]) == 3
    monkeypatch.delenv("HCE_DATA")
    assert [item.key for item in accuracy.items()] == ["logits"]
    assert {row[2] for row in ensemble.rows().values()} == {"auto", *variants.CHOSEN_MODES}


def test_turns_are_counted_and_checked(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ffma.check(64, 4, 2, 2, device)
    turned = ffma.turned
    monkeypatch.setattr(ffma, "turned", lambda x, y, turns: turned(x, y, turns + 1))
    with pytest.raises(ArithmeticError, match="not timed"):
        ffma.check(64, 4, 2, 2, device)


def test_bounds_of_compensated_modes_are_those_of_the_split_kernels() -> None:
    assert variants.error_factor("direct", 9, 16) == pytest.approx(146 * 2.0**-24, rel=1e-4)
    assert set(variants.SPLIT) == set(names.COMPENSATED)
    for name, (high, both, terms) in variants.SPLIT.items():
        assert (high, both) == (split_error.HIGH[name], split_error.BOTH[name])
        one, none = np.ones(1), np.zeros(1)
        bound = split_error.split_bound(name, 9, 16, one, (none, none), one, 1.0, 2.0 * (terms + 2))  # bias and residual weigh less than products
        assert bound[0] == pytest.approx(variants.error_factor(name, 9, 16), rel=0.01)
