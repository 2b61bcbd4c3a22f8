"""Plans and programs of float members whose convolutions have split operands: layers, forms of maps, whole networks."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import hce_engine as hce
from hce_engine import artifact
from hce_engine.arithmetic import ARITHMETICS, SPLIT_ARITHMETICS
from hce_engine.backends import reference
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.lanes_program import LanesArena, LanesConstants, LanesProgram
from hce_engine.errors import InputError, UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.plan.cuda import GPUS
from hce_engine.plan.cuda.ensemble_plan import build_ensemble_plan, ensemble_bound, part_bounds
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan
from hce_engine.plan.cuda.lanes_plan import LaneMap, LaneSlot, LanesPlan
from hce_engine.plan.cuda.layout import build_float_plan
from hce_engine.plan.cuda.split_select import SPLIT_PIXELS, SplitConfig, split_config, walked_macs
from hce_engine.plan.cuda.split_weights import pack_split, packed_bytes, step_count
from tests.backends.graphs import GraphBuilder, pixels
from tests.training.float_graphs import GRAPHS

from .split_error import HIGH, measure

SHAPE = (3, 4, 3)
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"


def run(graph: Graph, images: np.ndarray, extension: ModuleType, arithmetic: str) -> dict[str, np.ndarray]:
    """Logits of a program that ran once on poisoned memory; halos stay zero."""
    plan = build_lanes_plan(graph, len(images), arithmetic=arithmetic)
    arena = LanesArena(plan, DEVICE, poison=True)
    program = LanesProgram(plan, arena, LanesConstants(extension, DEVICE), torch.from_numpy(images).to(DEVICE), poison=True)
    program()
    logits = {name: z.cpu().numpy() for name, z in program.logits.items()}
    for slot, memory in zip(arena.slots, arena.memory, strict=True):
        arena.inner(slot, memory).zero_()
        assert not memory.any()
    return logits


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.dtype == np.uint8 else images


def blocks() -> Graph:
    """Residual blocks, a shortcut that drops pixels and adds channels, grouped and depthwise layers, odd widths."""
    b = GraphBuilder(SHAPE, seed=3)
    x = b.conv(b.normalize(), 9, low=0.0)
    x = b.conv(b.conv(x, 7, low=0.0), 9, residual=x, low=0.0)
    x = b.conv(b.conv(x, 5, low=0.0), 9, residual=x, low=0.0, high=40.0)
    short = b.add("channel_pad", [b.add("strided_slice", [x], {"h": [0, 4, 2], "w": [0, 3, 2]})], {"before": 4, "after": 5})
    x = b.conv(b.conv(x, 10, stride=(2, 2)), 18, residual=short)
    x = b.conv(b.conv(x, 18, groups=18), 12, groups=6)
    return b.finish(b.conv(x, 4, kernel=(1, 1), padding=(0, 0)))


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_which_layers_and_which_forms(arithmetic: str) -> None:
    plan = build_lanes_plan(blocks(), 40, convolution="direct", arithmetic=arithmetic)
    layers = [s for s in plan.steps if s.weights is not None]
    split = f"conv2d_{arithmetic}"
    assert [s.kernel for s in layers] == ["conv2d_f32", *[split] * 6, "depthwise_f32", "conv2d_f32", split]
    reasons = [s.reason for s in layers]
    assert "ieee: 3 input channels" in reasons[0] and "ieee: 18 groups" in reasons[7] and "ieee: 6 groups" in reasons[8]
    forms = [("split" if s.reads["x"].split else "float32", *s.writes) for s in layers[1:7]]
    if arithmetic == "tf32x3":
        assert forms == [("float32", "y")] * 6
    else:
        # Inner maps are split alone; streams are read by convolutions, and by a residual or a copy; a depthwise layer reads float32.
        assert forms == [("float32", "split"), ("split", "y", "split"), ("split", "split"), ("split", "y", "split"),
                         ("split", "split"), ("split", "y")]
    assert not any(s.reads["residual"].split for s in layers if "residual" in s.reads)
    assert f"convolutions in {arithmetic}" in str(plan)
    assert "convolutions in" not in str(build_lanes_plan(blocks(), 40))


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_they_are_of_image_lanes(arithmetic: str) -> None:
    for batch in (1, 4096):
        plan = build_float_plan(blocks(), batch, chosen_for=4096, arithmetic=arithmetic)
        assert (plan.layout, plan.arithmetic, plan.why) == ("lanes", arithmetic, f"{arithmetic} is of image lanes")
    assert build_float_plan(blocks(), 1, "lanes", arithmetic=arithmetic).arithmetic == arithmetic
    with pytest.raises(UnsupportedError, match=f"layout nhwc: expected arithmetic ieee, got {arithmetic}"):
        build_float_plan(blocks(), 1, "nhwc", arithmetic=arithmetic)


def test_maps_of_pairs() -> None:
    value = LaneMap("x", 9, 3, 5, (1, 1, 1, 1), split=True)
    assert value.strides == (5 * 7 * 10 * 32, 7 * 10 * 32, 10 * 32)
    assert value.bytes == 15 * 10 * 128
    assert LaneSlot.of(value).tile_bytes == 4 * value.strides[0]
    assert LaneMap("x", 9, 3, 5).strides[2] == 9 * 32


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_no_two_living_maps_share_memory(arithmetic: str) -> None:
    in_place = 0
    for graph in (blocks(), *(lower(make()) for make in GRAPHS.values())):
        plan = build_lanes_plan(graph, 37, arithmetic=arithmetic)
        alive: dict[int, list] = {}
        for index, step in enumerate(plan.steps):
            for value in (*step.reads.values(), *step.writes.values()):
                alive.setdefault(id(value), [value, index, index])[2] = index
        for (a, a0, a1), (b, b0, b1) in itertools.combinations(alive.values(), 2):
            assert plan.slots[a.slot] == LaneSlot.of(a)
            if a.slot != b.slot or a1 < b0 or b1 < a0:
                continue
            step = plan.steps[b0]
            assert a1 == b0 and step.reads.get("residual") is a and step.writes["y"] is b and step.reads["x"] is not a
            in_place += 1
    assert in_place > 0


SHAPES = [(outputs, count) for outputs in (1, 7, 9, 16, 33, 64, 1000) for count in (1, 30, 8 * 64, 4096 * 32)]


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_every_configuration_is_one_that_the_kernel_has(arithmetic: str, host_cuda: ModuleType) -> None:
    assert host_cuda.SPLIT_PIXELS == SPLIT_PIXELS
    for outputs, count in SHAPES:
        for split in {False, arithmetic != "tf32x3"}:
            config = split_config(arithmetic, outputs, count, split=split)
            total = -(-outputs // 8)
            assert 1 <= config.octets <= 4 and host_cuda.conv_channels(total, config.octets) == config.octets
            assert config.channel_warps * config.pixel_warps <= 4 and -(-total // config.octets) % config.channel_warps == 0
            walked = walked_macs(arithmetic, outputs, 9, 9, count, config)
            assert walked >= 32 * count * outputs * 81
    assert split_config(arithmetic, 64, 1 << 20, split=False).octets == 4
    assert split_config(arithmetic, 9, 1 << 20, split=False) == SplitConfig(2, 1, 4)
    assert walked_macs(arithmetic, 9, 9, 9, 2, SplitConfig(2, 1, 4)) == 2 * 32 * 16 * (88 if arithmetic == "tf32x3" else 96)


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_packed_weights_have_the_size_that_plans_count(arithmetic: str) -> None:
    for shape in ((1, 4, 1, 1), (9, 7, 3, 3), (33, 16, 5, 1)):
        words = pack_split(np.ones(shape, np.float32), arithmetic)
        assert words.nbytes == packed_bytes(shape[0], shape[2] * shape[3], shape[1], arithmetic)
        assert words.dtype == np.uint32 and len(words) % (128 * step_count(shape[2] * shape[3], shape[1], arithmetic)) == 0


def test_bounds_are_of_the_tensor_cores() -> None:
    b = GraphBuilder((3, 8, 8), seed=1)
    graph = b.finish(b.conv(b.conv(b.conv(b.normalize(), 64), 64), 64))
    bounds = {}
    for arithmetic, rate in (("tf32x3", 495e12), ("fp16x3", 989e12), ("bf16x3", 989e12)):
        plan = build_lanes_plan(graph, 4096, arithmetic=arithmetic)
        step, bound = plan.steps[3], part_bounds(plan, GPUS["h200"])[3]
        assert step.cost.walked == step.cost.macs == 4096 * 64 * 64 * 64 * 9
        arithmetic_seconds = 6 * step.cost.walked / rate
        assert bound.seconds == pytest.approx(max(arithmetic_seconds, step.cost.bytes / 4.8e12))
        assert bound.by == ("memory" if step.cost.bytes / 4.8e12 > arithmetic_seconds else arithmetic)
        bounds[arithmetic] = bound.by
    assert bounds["tf32x3"] == "tf32x3"
    plans = [build_ensemble_plan(graph, 4096, convolution="direct", arithmetic=a) for a in ("ieee", "tf32x3")]
    ieee, tf32 = (ensemble_bound(plan, GPUS["h200"]).sequential for plan in plans)
    assert tf32 < ieee / 2
    assert isinstance(plans[1].parts[0], LanesPlan) and plans[1].parts[0].arithmetic == "tf32x3"


TOLERANCE = {"tf32x3": 3e-5, "fp16x3": 3e-5, "bf16x3": 1e-3}
"""Of the largest value: what tests of ieee allow, and as much more as bfloat16 has fewer bits."""


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_a_network(arithmetic: str, extension: ModuleType) -> None:
    graph, images = blocks(), pixels(SHAPE, 33)
    (got,), values = run(graph, images, extension, arithmetic).values(), reference.evaluate(graph, planes(images))
    want = values[graph.members[0].output]
    largest = max(float(np.abs(v).max()) for v in values.values())
    error = np.abs(got - want).max() / largest
    assert 0 < error <= TOLERANCE[arithmetic]
    # An image's logits are its own, in any batch and lane.
    assert run(graph, images[31:], extension, arithmetic)["m0"].tobytes() == got[31:].tobytes()


def test_values_beyond_binary16_are_noticed(extension: ModuleType) -> None:
    """In fp16x3 they make the logits of their image NaN, in the other arithmetics nothing happens."""
    b = GraphBuilder((4, 4, 4), dtype="f32", seed=2)
    graph = b.finish(b.conv(b.conv("image", 6), 3, kernel=(4, 4), padding=(0, 0)))
    images = np.random.default_rng(1).uniform(-1, 1, (3, 4, 4, 4)).astype(np.float32)
    clean = {a: run(graph, images, extension, a)["m0"] for a in SPLIT_ARITHMETICS}
    images[1] *= 1e6
    for arithmetic, before in clean.items():
        got = run(graph, images, extension, arithmetic)["m0"]
        assert got[[0, 2]].tobytes() == before[[0, 2]].tobytes()
        assert np.isnan(got[1]).all() if arithmetic == "fp16x3" else np.isfinite(got[1]).all()


@pytest.mark.parametrize("arithmetic", ["tf32x3", "fp16x3"])
def test_errors_are_those_of_float32(arithmetic: str, extension: ModuleType) -> None:
    rows = {r.arithmetic: r for r in measure(extension, DEVICE, ((9, 7),), mma_roundings=1 if DEVICE == "cpu" else 36)}
    assert list(rows) == list(ARITHMETICS)
    assert all(0 < r.bound_share <= 1 for r in rows.values())
    if DEVICE == "cpu":
        assert rows[arithmetic].mean <= 2 * rows["ieee"].mean
    assert rows["bf16x3"].mean > 4 * rows[arithmetic].mean
    assert rows["bf16x3"].maximum < HIGH["bf16x3"] ** 2 * 16 * rows["bf16x3"].rms


def test_a_backend_in_each_arithmetic(extension: ModuleType) -> None:
    q = GraphBuilder(SHAPE, seed=1)
    graph = merge({"q": q.finish(q.qconv("image", 4, weight_dtype="s8", stride=(2, 2), pad_code=[3, 2, 1])),
                   "s": (lambda s: s.finish(s.conv(s.conv(s.normalize(), 6), 4, stride=(2, 2))))(GraphBuilder(SHAPE, seed=2))})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = pixels(SHAPE, 2)
    results = {a: CudaBackend(graph, device, extension=extension, poison=True, max_batch=2, arithmetic=a).run(images)
               for a in ARITHMETICS}
    assert len({r["q"].tobytes() for r in results.values()}) == 1
    assert len({r["s"].tobytes() for r in results.values()}) == 4
    for result in results.values():
        np.testing.assert_allclose(result["s"], results["ieee"]["s"], rtol=0, atol=1e-3 * np.abs(result["s"]).max())
        assert result["ensemble"].tobytes() == reference.mean_logits([result["q"], result["s"]]).tobytes()
    with pytest.raises(InputError, match="ieee, tf32x3, fp16x3, bf16x3, got 'tf32'"):
        CudaBackend(graph, device, extension=extension, arithmetic="tf32")


def test_the_cpu_has_one_arithmetic(tmp_path: Path) -> None:
    b = GraphBuilder(SHAPE, seed=2)
    graph = b.finish(b.conv(b.normalize(), 4, stride=(2, 2)))
    path = tmp_path / "model.hce"
    artifact.save(path, hce.Artifact(graph, hce.InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)))
    with pytest.raises(UnsupportedError, match=r"arithmetic fp16x3: expected device cuda, .* got device cpu"):
        hce.load(path, device="cpu", arithmetic="fp16x3")
    with pytest.raises(InputError, match="got 'fp16'"):
        hce.load(path, device="cpu", arithmetic="fp16")
    assert hce.load(path, device="reference").only("m0").arithmetic == "ieee"
    with pytest.raises(InputError, match="got 'x'"):
        build_lanes_plan(graph, 1, arithmetic="x")
