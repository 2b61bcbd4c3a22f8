"""What benchmarks/gpu measures of float members and ensembles, on a GPU or on the extension built for the host: the launches, what they
are checked against, and that a wrong result is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import (
    ensemble,
    float_layers,
    float_operands,
    measure,
    names,
    repeats,
    small_shapes,
    stage,
    variants,
)
from benchmarks.gpu.ensemble_cases import CHECKED, Made
from benchmarks.gpu.float_operands import AT, BT, Operands, Planned, register_tiles, winograd_bound, winograd_configs
from benchmarks.gpu.float_shapes import FloatLayer
from hce_engine import _cuda_native
from hce_engine.backends import reference
from hce_engine.graph import merge
from hce_engine.plan.cuda.lanes_select import CONV_CHANNELS, CONV_WARPS, conv_config
from tests.backends.graphs import GraphBuilder

from . import test_winograd

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def extension(host_cuda: ModuleType) -> ModuleType:
    return _cuda_native.extension() if torch.cuda.is_available() else host_cuda


@pytest.fixture
def device(cuda_device: str) -> str:
    return cuda_device


def test_configurations_fit_the_kernels(host_cuda: ModuleType) -> None:
    own = conv_config(27, 1, 576, 2 * 8, 8)
    found = register_tiles(own, 27, 1, 576)
    assert found[0] == own and len(set(found)) == len(found) > 3
    for config in found:
        assert config.channels <= CONV_CHANNELS[config.pixels] and config.channel_warps * config.pixel_warps <= CONV_WARPS
    for m in (2, 4):
        configs = winograd_configs(FloatLayer("x", 64, 27, 8), m, host_cuda)
        assert {config[1] for config in configs} == {1, 2} and len(set(configs)) == len(configs)


def test_matrices_of_bounds_are_magnitudes_of_the_kernels_own() -> None:
    for m in (2, 4):
        assert np.array_equal(np.abs(test_winograd.BT[m]), BT[m]) and np.array_equal(np.abs(test_winograd.AT[m]), AT[m])


def test_a_wrong_output_or_a_missing_one_shows(extension: ModuleType, device: str) -> None:
    layer = FloatLayer("x", 4, 6, 5, residual=True)
    operands = Operands.of(layer, 32, device)
    assert operands.expected.shape == (6, 6 * 25) and (operands.magnitude >= operands.expected).all()
    direct = Planned(operands, variants.DIRECT, device, extension)
    right = direct.checked()
    assert 0 < right["mean_error"] < right["max_error"] < 1e-6 and right["share_of_bound"] < 1
    direct.poison()
    with pytest.raises(ArithmeticError, match="every output of every image"):
        direct.checked(lambda stream: None)
    bad = replace(operands, expected=operands.expected + 1e-5 * (operands.expected > 0))
    with pytest.raises(ArithmeticError, match="within their bound"):
        Planned(bad, variants.DIRECT, device, extension).checked()
    for m in direct.winograd_sizes():
        assert (winograd_bound(operands, m) > operands.magnitude * variants.error_factor("direct", 9, layer.channels) / 4).all()


def test_every_kernel_runs_on_small_shapes(extension: ModuleType, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_shapes, "LAYERS", small_shapes.LAYERS[:-2])  # those are for tiles of tensor cores; slow on the host
    monkeypatch.setattr(small_shapes, "BATCH", 32)
    monkeypatch.setattr(small_shapes, "IMAGES", 5)
    monkeypatch.setattr(float_operands, "TILES", 3)
    found = small_shapes.run_all(device, extension)
    assert found["wrong"] == [] and found["missing"] == [] and found["checks"] > 50
    assert {"conv2d_f32", "winograd_f32", "ensemble_mean", "pool_f32", "load_images"} <= set(found["started"])


def test_launchers_are_told_from_other_functions(host_cuda: ModuleType) -> None:
    found = small_shapes.launchers(host_cuda)
    assert "conv2d_f32" in found and not {"pack_conv_weights", "synchronize", "mem_get_info"} & found


def tiny_case() -> Made:
    q, s, o = (GraphBuilder(SHAPE, seed=i) for i in (1, 2, 3))
    x = q.qconv("image", 8, weight_dtype="s8", pad_code=[3, 2, 1])
    y = s.conv(s.normalize(), 9, low=0.0)
    graph = merge({
        "q": q.finish(q.qconv(q.codes("u4", source=x), 2, stride=(4, 4))),
        "s": s.finish(s.conv(s.conv(y, 9, residual=y), 2, stride=(4, 4))),
        "o": o.finish(o.conv(o.conv(o.conv(o.normalize(), 16, low=0.0), 16, low=0.0), 2, stride=(4, 4))),
    }, roles={"o": "reference"})
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = reference.run(graph, images[:CHECKED].transpose(0, 3, 1, 2))
    return Made(graph, None, images, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(ensemble.rows()))
def test_every_row_of_an_ensemble_is_right(name: str, extension: ModuleType, device: str) -> None:
    made, (members, variant, mode) = tiny_case(), ensemble.rows()[name]
    backend = variants.backend(made.only(*members), 4, variant, mode, device, extension)
    bucket = variants.prepared(backend, 4)
    program = bucket.program
    program.images.copy_(torch.from_numpy(made.images))
    bucket.replay()
    got = {key: logits.cpu().numpy().copy() for key, logits in program.logits.items()}
    ensemble.verdict(made, members, got)
    for member in (*members, "ensemble"):
        wrong = {key: logits.copy() for key, logits in got.items()}
        wrong[member][0, 0] += 1.0
        if len(members) > 1 or member != "ensemble":
            with pytest.raises(ArithmeticError, match="not timed"):
                ensemble.verdict(made, members, wrong)
    got[members[0]][3] = np.nan
    with pytest.raises(ArithmeticError, match="every image"):
        ensemble.verdict(made, members, got)


class Counted:
    """A contender whose times are made up: each call takes a microsecond more than the one before."""

    made = 0

    def __init__(self, calls: Any, warm: int = 0) -> None:
        self.calls: Sequence[Callable[[], object]] = calls if isinstance(calls, list) else [calls]
        for call in self.calls:
            call()
        Counted.made += 1
        self.time = 10.0 * Counted.made

    def microseconds(self) -> float:
        self.time += 1
        return self.time


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch, extension: ModuleType, device: str) -> None:
    """Contenders run, on the GPU or the host, but are not timed."""
    for name in ("Recording", "Replay", "Live"):
        monkeypatch.setattr(measure, name, Counted)
    monkeypatch.setattr(variants, "backend", partial(variants.backend, device=device, extension=extension))
    monkeypatch.setattr(float_layers, "Planned", partial(Planned, device=device, extension=extension))
    monkeypatch.setattr(float_layers, "operands_of", partial(Operands.of, device=device))


def ceilings(out: Path) -> None:
    document = stage.Document(out, "machine", {})
    document.add("ffma_tflops", {"value": 60.0})
    document.add("copy_gb_s", {"value": 3000.0})
    document.save()


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("layer", [FloatLayer("x", 4, 6, 5, residual=True), FloatLayer("x", 6, 6, 5, groups=6), FloatLayer("x", 12, 10, 1, 1)],
                         ids=lambda layer: layer.name)
def test_an_item_of_float_layers(layer: FloatLayer, tmp_path: Path) -> None:
    ceilings(tmp_path)
    result = float_layers.compare(layer, 32, tmp_path)
    told = result["contenders"]
    assert result["held"] and result["macs"] == 32 * layer.macs and result["walked"] >= result["macs"]
    assert "median_us" in told["direct"] and set(told) >= set(variants.VARIANTS)
    timed = {name for name, r in told.items() if "median_us" in r}
    assert set(result["percent_of_ffma"]) == timed and all("max_error" in told[name] for name in timed)
    assert timed & {"cuDNN fp32 NCHW", "cuBLAS fp32"} and result["speedup_over_cudnn"] > 0
    assert ("F(4x4)" in timed) == (layer.groups == 1 and not layer.linear)


@pytest.mark.usefixtures("no_clock")
def test_an_item_of_ensembles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings(tmp_path)
    case = next(iter(names.CASES.values()))
    monkeypatch.setattr(ensemble, "make", lambda case: tiny_case())
    monkeypatch.setattr(ensemble, "CALLS", 2)
    rows = {name: row for name, row in ensemble.rows().items() if row[1] not in variants.COMPENSATED}  # tensor cores are slow on the host
    monkeypatch.setattr(ensemble, "rows", lambda: rows)
    asked: list[str] = []
    monkeypatch.setattr(ensemble, "anchor", lambda made, batch, kind, variant, device, host, told: asked.append(f"{kind.name} {variant}"))
    result = ensemble.compare(case, 2, (), tmp_path)
    assert result["held"] and set(result["contenders"]) == set(rows)
    assert asked == ["fp32 fused", "tf32 fused", "fp16 fused", "bf16 fused"]
    assert set(result["overlap"]) == set(variants.CHOSEN_MODES) - {"sequential"} and set(result["realised"]) >= {"q", "s direct", "ensemble sequential"}
    direct = result["contenders"]["s direct"]
    assert direct["ffma_bound_us"] > 0 and direct["percent_of_ffma"] > 0 and direct["images_per_s"] > 0
    assert {"host", "host_several"} <= set(result["contenders"]["ensemble sequential"])
    compiled = ensemble.compare(case, 1, (("fp32", "compile"),), tmp_path)
    assert asked[4:] == ["fp32 compile"] and all(name.startswith("ensemble ") for name in compiled["contenders"])


@pytest.mark.usefixtures("no_clock")
def test_an_item_of_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "make", lambda case: tiny_case())
    monkeypatch.setattr(repeats, "REPEATS", 2)
    monkeypatch.setattr(repeats, "BATCH", 2)
    document = stage.Document(tmp_path, "repeats", {})
    items = repeats.items(document)
    assert len(items) == len(variants.MODES) + len(variants.COMPENSATED) * (1 + len(variants.CHOSEN_MODES))
    assert stage.measure(document, [*items[:2], items[-1]], stage.Deadline(1e12)) == stage.HELD
    assert all(result["differing"] == 0 and len(result["digests"]) == 3 for result in document.items.values())
