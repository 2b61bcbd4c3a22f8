"""The microbenchmarks run on what they claim: a step of every kind of layer and map, and the table of a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import kernel_table
from benchmarks.kernel_shapes import CIFAR_RESNET, LAYERS, MAP_STEPS, MOBILENETV2, RESNET50, Layer, MapStep
from benchmarks.kernel_steps import TimedStep


def test_names_are_unique_and_depthwise_layers_are_square() -> None:
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)
    assert all(layer.groups in (1, layer.c) and (layer.groups == 1 or layer.c == layer.oc) for layer in LAYERS)


@pytest.mark.parametrize("layer", [CIFAR_RESNET[0], CIFAR_RESNET[-2], CIFAR_RESNET[-1], RESNET50[-3], MOBILENETV2[-3]], ids=lambda v: v.name)
def test_layers_are_timed(layer: Layer) -> None:
    for kind in layer.kinds:
        timed = TimedStep.of_layer(layer, kind, "portable")
        out = -(-layer.size // layer.stride)
        assert timed.work.macs == layer.kernel**2 * layer.c // layer.groups * layer.oc * out * out
        assert timed.work.kind == {"f32": "f32", "u8xs8": "u8"}.get(kind, "u4")
        assert 0 < timed() < 60


@pytest.mark.parametrize("case", [case for case in MAP_STEPS if case.c * case.size**2 < 20_000], ids=lambda v: f"{v.name}-{v.codes}")
def test_map_steps_are_timed(case: MapStep) -> None:
    timed = TimedStep.of_map(case, "portable")
    assert timed.step.kernel.startswith({"max_pool": "pool_max", "global_avg_pool": "pool_avg", "slice_and_pad": "copy",
                                         "concat": "copy"}.get(case.step, case.step))
    assert timed.work.bytes > 0 and timed() > 0


def test_the_table_holds_kernels_alone(tmp_path: Path) -> None:
    info = {"isa": "avx2", "kernel": "conv2d_f32", "place": "l2", "bytes_per_second": 5e9, "bandwidth_share": 0.02,
            "macs_per_second": 60e9, "peak_share": 0.94, "executed_share": 0.95}
    halo = {key: info[key] for key in ("isa", "place", "bytes_per_second", "bandwidth_share")} | {"kernel": "halo"}
    cases = [("a", info), ("b", {**info, "peak_share": 0.5}), ("c", halo)]
    document = {"benchmarks": [{"param": name, "extra_info": extra, "stats": {"median": 1e-5}} for name, extra in cases]
                + [{"param": None, "extra_info": {}, "stats": {"median": 1.0}}]}
    assert [row[0] for row in kernel_table.rows(document)] == ["a", "b", "c"]
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps(document))
    result = CliRunner().invoke(kernel_table.main, [str(path), "--sort", "share"])
    assert result.exit_code == 0, result.output
    assert result.output.index("b   ") < result.output.index("a   ")
    path.write_text(json.dumps({"benchmarks": []}))
    assert CliRunner().invoke(kernel_table.main, [str(path)]).exit_code != 0
