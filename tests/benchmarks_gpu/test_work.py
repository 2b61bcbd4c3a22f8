"""What is measured: shapes, configurations, operands and their references, statistics."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import candidates, equality, measure, networks, shapes, stage, tune
from benchmarks.gpu.operands import Convolution, Product, Weights
from hce_engine import artifact
from hce_engine.kernels.configurations import GemmConfig, default_conv_config
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.layer import layer_arrays
from hce_engine.plan.cuda import build_plan, tuned
from hce_engine.training.models import resolve

ROOT = Path(__file__).resolve().parents[2]


def test_statistics() -> None:
    result = measure.summary([3.0, 1.0, 2.0, 100.0, 2.0])
    assert (result["median_us"], result["q1_us"], result["q3_us"], result["least_us"]) == (2, 2, 3, 1)
    assert measure.summary([1.23456789])["series_us"] == [1.2346]
    assert measure.digits(0.0) == 0 and measure.digits(123456.7) == 123460 and math.isinf(measure.digits(math.inf))


def test_copies_keep_a_cache_cold() -> None:
    assert measure.copies(1 << 30) == 1 and measure.copies(64 << 20) == 4 and measure.copies(1) == measure.MOST_COPIES


def test_contenders_take_turns() -> None:
    order: list[str] = []

    class Contender:
        def __init__(self, name: str) -> None:
            self.name = name

        def microseconds(self) -> float:
            order.append(self.name)
            return 1.0

    timed = measure.interleave({name: Contender(name) for name in "ab"}, 10.0, rounds=6)  # type: ignore[misc]
    assert order == list("ab" + "abba" * 3) and len(timed["a"]["series_us"]) == 6
    assert len(measure.interleave({"a": Contender("a")}, 0.0)["a"]["series_us"]) == measure.LEAST_ROUNDS  # type: ignore[dict-item]
    assert measure.interleave({}, 1.0) == {}


def test_bounds_come_from_what_was_measured(tmp_path: Path) -> None:
    assert measure.ceilings(tmp_path) == {} and measure.bound_us({}, 1) == {} and measure.percent({}, 1.0) == {}
    document = stage.Document(tmp_path, "machine", {})
    document.add("copy_gb_s", {"value": 4000.0})
    document.add("int8_tops", {"value": 1000.0})
    document.save()
    known = measure.ceilings(tmp_path)
    assert measure.bound_us(known, 4_000_000) == {"bound_us": 1.0, "bound_by": "memory"}
    bound = measure.bound_us(known, 4_000_000, 2_000_000_000)
    assert bound == {"bound_us": 2.0, "bound_by": "int8_tops"} and measure.percent(bound, 4.0) == {"percent_of_bound": 50.0}


def test_an_anchor_beyond_its_bound_is_not_timed() -> None:
    right = torch.tensor([3.0, 4.0])
    assert measure.check_close("x", right, right.double(), 0.0) == {"error": 0.0, "bound": 0.0}
    for wrong in (torch.tensor([3.0, 4.1]), torch.tensor([math.nan, 4.0]), torch.tensor([3.0])):
        with pytest.raises(ArithmeticError, match="not timed"):
            measure.check_close("x", wrong, right, 1e-3)


def test_the_layers_are_those_of_the_plan() -> None:
    """Shapes, storage and names in tables of tuned configurations: of a real member, and counts of both networks."""
    graph = artifact.load(ROOT / "models/hce-resnet20-cifar10.hce").graph.only("q")
    inner = [node for node in graph.nodes if node.op == "qconv2d"][1]
    bits, activations = int(inner.attrs["weight_dtype"][1:]), graph[inner.inputs[0]].spec.type.bits
    keys = [step.shape for step in build_plan(graph, 64).steps if step.launcher == "conv2d"]
    layers = shapes.resnet20(bits, activations)
    assert {layer.key(64): layer.count for layer in layers} == {key: keys.count(key) for key in keys}
    assert sum(layer.macs * layer.count for layer in shapes.resnet20()) == 40_550_400
    assert sum(layer.count for layer in shapes.resnet50()) == 53
    assert 4.08e9 < sum(layer.macs * layer.count for layer in shapes.resnet50()) < 4.10e9


def test_every_check_can_be_sent_to_a_worker() -> None:
    checks = candidates.checks()
    keys = [check.key for check in checks]
    assert len(keys) == len(set(keys)) and [check.rank for check in checks] == sorted(check.rank for check in checks)
    for check in checks[::40]:
        sent = candidates.Check.of_message(json.loads(json.dumps(check.message())))
        assert (sent.key, sent.shape, sent.config) == (check.key, check.shape, check.config)
    layers = {check.shape for check in checks if check.kind == "conv2d" and check.rank == 0}
    assert layers == set(candidates.layers()) and len({layer.name for layer in layers}) == len(layers)
    for (n, k), m, precision in product(shapes.GEMM_NK, (1, 4096), shapes.PRECISIONS):
        configs = candidates.of_product(n, k, m, precision)
        assert configs and {config.weight_bits for config in configs} == {precision.weight_bits}
    assert not {check.config.num_warps for check in checks if check.kind == "conv2d" and not check.config.unroll} - {4}


@pytest.mark.parametrize(("bits", "x_bits"), [*product((8, 4, 3), (8, 4, 3))])
def test_packing_on_the_device_is_that_of_the_kernels(bits: int, x_bits: int) -> None:
    for shape in ((20, 33, 3, 3), (40, 64, 1, 1)):
        x = MapFormat(shape[1], 9, 9, x_bits)
        weights = Weights.random(shape, bits, x, 15, "cpu", 3)
        got = weights.cut(bits, 32, 16)
        arrays = layer_arrays(weights.weight.numpy(), weights.bias.numpy(), weights.multiplier.numpy(), weights.offset.numpy(), x,
                              (1 << x_bits) - 1, bits, 32, 16)
        assert np.array_equal(got.weight.numpy().view(np.uint8), arrays.weight)
        assert np.array_equal(got.bias.numpy(), arrays.bias) and np.array_equal(got.multiplier.numpy(), arrays.multiplier)
        assert np.array_equal(got.offset.numpy(), arrays.offset)
        assert (got.arrays.form, got.arrays.magic, got.arrays.macs_per_pixel) == (arrays.form, arrays.magic, arrays.macs_per_pixel)
        assert math.isclose(got.arrays.largest_value, arrays.largest_value, rel_tol=1e-6)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_convolution_equals_its_reference_and_a_wrong_byte_shows(index: int, device: str) -> None:
    layer = replace(shapes.resnet20()[index], size=6)
    work = Convolution(layer, 2, device, exact=True)
    config = default_conv_config(layer.shape, layer.x, 2 * 36)
    assert work.differing(config) == 0
    work.expected[-1][-1] ^= 1  # a byte of the halo
    assert work.differing(config) == 1
    assert [copy.weights is work.weights for copy in work.copies(2)] == [True, True]


@pytest.mark.parametrize("precision", shapes.PRECISIONS, ids=lambda precision: precision.name)
def test_a_product_equals_its_reference(precision: shapes.Precision, device: str) -> None:
    work = Product(48, 256, 5, precision, device)
    assert work.differing(GemmConfig(16, 16, 32, precision.weight_bits, 1, False, 1, 3)) == 0
    work.expected[2, 3] += 1
    assert work.differing(GemmConfig(16, 16, 32, precision.weight_bits, 1, False, 1, 3)) == 2  # two runs


def test_a_check_reports_what_it_found(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(equality, "IMAGES", {"resnet20": 1})
    if device == "cpu":
        monkeypatch.setattr(equality, "Convolution", lambda shape, images, exact: Convolution(shape, images, "cpu", exact=exact))
    layer = replace(shapes.resnet20()[-1], size=3)
    config = default_conv_config(layer.shape, layer.x, 9)
    message = candidates.Check("conv2d", layer, config, 0).message()
    assert equality.answer(message) == {"held": True, "differing": 0}
    message["config"]["num_warps"] = 8
    message["config"]["unroll"] = False
    refused = equality.answer(message)
    assert not refused["held"] and "at most 4 warps" in refused["error"]


def test_only_verified_configurations_are_timed(tmp_path: Path) -> None:
    layer = shapes.resnet20()[1]
    configs = candidates.of_layer(layer, 4096)
    document = stage.Document(tmp_path, equality.NAME, {})
    for config, differing in zip(configs, (0, 5), strict=False):
        document.add(candidates.check_key(layer, config), {"held": differing == 0, "differing": differing})
    document.add("too large", {"held": True, "excluded": "out of resources"})
    document.save()
    assert equality.verified(tmp_path) == {candidates.check_key(layer, configs[0])}
    assert tune.tune_layer(shapes.resnet20()[2], 4096, tmp_path) == {"why": "no configuration was verified"}


def test_the_table_of_tuned_configurations_is_what_plans_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = artifact.load(ROOT / "models/hce-resnet20-cifar10.hce").graph.only("q")
    step = next(step for step in build_plan(graph, 64).steps if step.launcher == "conv2d")
    layer = shapes.resnet20(3, 3)[0]
    config = replace(step.config, num_warps=8, unroll=True)
    document = stage.Document(tmp_path, tune.NAME, {"gpu": "Some GPU"})
    document.add("a layer", {"kernel": "conv2d", "shape": layer.key(64), "best": vars(config), "median_us": 3.0})
    for bits, time in ((8, 2.0), (4, 5.0)):
        key = shapes.gemm_key(64, 128, 16, shapes.Precision(bits, 8))
        document.add(f"w{bits}", {"kernel": "gemm", "shape": key, "best": vars(GemmConfig(weight_bits=bits)), "median_us": time})
    document.add("none", {"why": "no configuration was verified"})
    document.save()
    table = tune.table(tmp_path)
    path = tuned.user_table("Some GPU")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(table))
    planned = next(step for step in build_plan(graph, 64, "Some GPU").steps if step.launcher == "conv2d")
    assert (planned.config, planned.source) == (config, "cached")
    gemms = table["kernels"]["gemm"]["configs"]
    assert gemms["x8[128x1x1] s4[64x1x1] logits images16"]["weight_bits"] == 8  # unpacked weights were faster
    assert tune.best(tmp_path, "a layer") == vars(config) and tune.best(tmp_path, "none") is None


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("resnet20-b", 32), ("resnet50", 32)])
def test_folded_networks_compute_what_their_originals_do(name: str, size: int) -> None:
    torch.manual_seed(0)
    module, _ = resolve(name)
    images = torch.randn(2, 3, size, size)
    networks.with_statistics(module, torch.randn(4, 3, size, size))
    with torch.no_grad():
        expected = module(images)
        assert measure.relative_error(networks.Folded(module)(images), expected) < 1e-4
        assert 0.01 < float(expected.abs().max()) < 1000


def test_kinds_put_everything_back() -> None:
    kinds = {kind.name: kind for kind in networks.KINDS}
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    for name, expected in (("fp32", False), ("tf32", True)):
        with networks.precision(kinds[name]):
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (expected, expected)
            assert torch.backends.cudnn.benchmark
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark)


def test_a_plain_convolution_of_the_rivals() -> None:
    conv, x = torch.nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 5, 5)
    residual = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(networks.convolve(x, conv, False, residual=residual), F.relu(conv(x) + residual))
        assert torch.equal(networks.convolve(x, conv, False, relu=False), conv(x))
