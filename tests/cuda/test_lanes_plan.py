"""Plans of float members for the GPU: fusions, halos, memory, configurations, costs and bounds; no kernel runs."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from hce_engine import _cuda_native
from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.plan.cuda import GPUS
from hce_engine.plan.cuda import ensemble_plan as ensembles
from hce_engine.plan.cuda.arena import ARENA_LIMIT
from hce_engine.plan.cuda.ensemble_plan import (
    build_ensemble_plan,
    ensemble_bound,
    largest_ensemble_bucket,
    part_bounds,
    paths,
)
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan, lanes_runnable
from hce_engine.plan.cuda.lanes_plan import TILE, LaneMap, LaneSlot, LanesPlan
from hce_engine.plan.cuda.lanes_select import (
    CONV_CHANNELS,
    CONV_WARPS,
    RESIDENT_BYTES,
    ConvConfig,
    conv_config,
    even_channels,
    walked_macs,
)
from hce_engine.plan.cuda.nhwc_lowering import build_nhwc_plan
from hce_engine.plan.cuda.plan import Plan
from tests.backends.graphs import GraphBuilder
from tests.backends.random_graphs import RandomGraph
from tests.training.float_graphs import GRAPHS, residual

SHAPE = (3, 8, 8)


def quantized_member(seed: int = 1) -> Graph:
    b = GraphBuilder(SHAPE, seed=seed)
    return b.finish(b.qconv(b.qconv("image", 8, weight_dtype="s8", out="u4"), 2, stride=(4, 4)))


def float_member(seed: int = 2) -> Graph:
    b = GraphBuilder(SHAPE, seed=seed)
    return b.finish(b.conv(b.conv(b.normalize(), 9), 2, stride=(4, 4)))


def float_members(case: RandomGraph) -> Graph | None:
    names = [m.name for m in case.graph.members if all(map(lanes_runnable, case.graph.only(m.name).nodes))]
    return case.graph.only(*names) if names else None


@pytest.fixture(scope="module")
def plans() -> list[LanesPlan]:
    graphs = [lower(make()) for make in GRAPHS.values()]
    graphs += [g for g in (float_members(RandomGraph(seed)) for seed in range(60)) if g is not None]
    return [build(graph, 37) for graph in graphs for build in (build_lanes_plan, build_nhwc_plan)]


def test_what_is_fused() -> None:
    plan = build_lanes_plan(lower(residual()), 64, convolution="direct")
    assert [s.kernel for s in plan.steps] == [
        "load_images", *["conv2d_f32"] * 4, "copy_f32", "conv2d_f32", "conv2d_f32", "conv2d_f32", "conv2d_f32", "pool_f32",
        "linear_f32", "store_logits",
    ]
    assert sum("residual" in s.reads for s in plan.steps) == 3
    copy = next(s for s in plan.steps if s.kernel == "copy_f32")
    assert (len(copy.nodes), copy.arguments["to"], copy.arguments["pixels"]) == (2, (2, 12), (0, 2, 0, 2))
    text = str(plan)
    assert "slice and zero maps in one" in text and "64 images in 2 tiles" in text


def test_a_head_over_a_map_and_a_flatten_that_others_read() -> None:
    b = GraphBuilder((2, 4, 4), seed=3)
    x = b.conv(b.normalize(), 3, stride=(2, 2))
    flat = b.add("flatten", [x])
    weight = np.ones((12, 12), np.float32)
    head = b.add("linear", [flat], {"min": None, "max": None}, {"weight": weight, "bias": np.zeros(12, np.float32)})
    alone, shared = (build_lanes_plan(g, 1) for g in (b.finish(head), b.finish(head, flat)))
    assert [s.kernel for s in alone.steps] == ["load_images", "conv2d_f32", "conv2d_f32", "store_logits"]
    assert alone.steps[2].arguments["window"][:2] == (2, 2)
    assert [s.kernel for s in shared.steps][2:4] == ["flatten_f32", "linear_f32"]


def test_a_map_of_one_pixel_with_a_halo_is_no_vector() -> None:
    """A padded convolution gives the map a halo, so its neighbours in memory are not the next tile's features."""
    b = GraphBuilder((2, 3, 3), seed=3)
    x = b.add("global_avg_pool", [b.normalize()])
    plan = build_lanes_plan(b.finish(x, b.conv(x, 2)), 2)
    assert [s.kernel for s in plan.steps] == ["load_images", "pool_f32", "conv2d_f32", "flatten_f32", "store_logits", "store_logits"]
    assert all(not any(s.reads["x"].halo) for s in plan.steps if s.kernel == "store_logits")


def test_halos_hold_what_readers_reach(plans: list[LanesPlan]) -> None:
    windows = 0
    for plan in plans:
        for step in plan.steps:
            if step.kernel not in ("conv2d_f32", "depthwise_f32", "winograd_f32", "conv2d_nhwc_f32", "depthwise_nhwc_f32"):
                continue
            x, y, a = step.reads["x"], step.writes["y"], step.arguments
            (ph, pw), (kh, kw, sh, sw, dh, dw) = a["padding"], a.get("window", (3, 3, 1, 1, 1, 1))
            top, left, bottom, right = x.halo
            windows += 1
            assert top >= ph and left >= pw
            assert (y.height - 1) * sh + (kh - 1) * dh - ph < x.height + bottom
            assert (y.width - 1) * sw + (kw - 1) * dw - pw < x.width + right
    assert windows > 100


def test_no_two_living_maps_share_memory(plans: list[LanesPlan]) -> None:
    in_place = 0
    for plan in plans:
        alive: dict[int, list] = {}
        for index, step in enumerate(plan.steps):
            for value in (*step.reads.values(), *step.writes.values()):
                alive.setdefault(id(value), [value, index, index])[2] = index
        for (a, a0, a1), (b, b0, b1) in itertools.combinations(alive.values(), 2):
            assert plan.slots[a.slot] == LaneSlot.of(a)
            if a.slot != b.slot or a1 < b0 or b1 < a0:
                continue
            step = plan.steps[b0]
            assert a1 == b0 and step.reads.get("residual") is a and step.reads["x"] is not a
            in_place += 1
    assert in_place > 3


def test_maps_of_one_size_take_turns() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    x = b.conv(b.normalize(), 8)
    for _ in range(5):
        x = b.conv(b.conv(x, 8), 8, residual=x)
    plan = build_lanes_plan(b.finish(b.conv(x, 8, stride=(2, 2))), 5)
    assert len(plan.slots) == 5  # the image, two of the blocks, which write over their residual, the last map and its vector
    assert plan.arena_bytes_per_tile == sum(c * (h + t + b_) * (w + l + r) * 128 for (c, h, w), (t, l, b_, r) in
                                            ((s.form, s.halo) for s in plan.slots))


def test_strides_are_those_of_the_layout() -> None:
    value = LaneMap("x", 5, 4, 3, (1, 2, 3, 4))
    assert value.strides == (8 * 9 * 5 * TILE, 9 * 5 * TILE, 5 * TILE)
    assert value.first == (9 + 2) * 5 * TILE
    assert value.bytes == 4 * 3 * 5 * 128


SHAPES = [(o, g, lines, rows, width) for o in (1, 7, 9, 16, 33, 64, 1000) for g in (1, 3) for lines in (1, 27, 144, 4608)
          for rows, width in ((1, 1), (8, 7), (4096, 32))]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_configuration_is_one_that_the_kernel_has(shape: tuple[int, int, int, int, int]) -> None:
    outputs, groups, lines, rows, width = shape
    config = conv_config(*shape)
    assert 1 <= config.channels <= CONV_CHANNELS[config.pixels]
    assert even_channels(outputs, config.channels) == config.channels
    assert config.channel_warps * config.pixel_warps <= CONV_WARPS
    stride = -(-config.channels // 4) * 4
    buffers = 1 if config.chunk_lines >= lines else 2
    assert 1 <= config.chunk_lines <= lines
    assert buffers * config.channel_warps * config.chunk_lines * stride * 4 <= max(RESIDENT_BYTES, 2 * 4 * stride * 4)
    macs = rows * width * groups * outputs * lines * TILE
    walked = walked_macs(*shape, config)
    assert macs <= walked
    if rows * width >= 4096:
        assert walked <= 1.02 * macs


def test_large_launches_get_large_tiles_and_small_ones_do_not() -> None:
    assert conv_config(16, 1, 144, 256 // 32 * 32, 32) == ConvConfig(2, 8, 2, 2, 144)
    assert conv_config(9, 1, 81, 8192, 32).pixels == 2
    assert conv_config(9, 1, 81, 8192, 1).pixels == 1  # an odd width wastes half of two
    small, large = conv_config(64, 1, 576, 8, 8), conv_config(64, 1, 576, 1024, 8)
    assert small.pixels * small.channels < large.pixels * large.channels


def test_the_configurations_are_those_of_the_sources(host_cuda: object) -> None:
    assert host_cuda.CONV_CHANNELS == CONV_CHANNELS and host_cuda.CONV_WARPS == CONV_WARPS and host_cuda.TILE == TILE  # type: ignore[attr-defined]
    for outputs in range(1, 70):
        for limit in range(1, 17):
            assert host_cuda.conv_channels(outputs, limit) == even_channels(outputs, limit)  # type: ignore[attr-defined]


def test_costs_add_up() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    plan = build_lanes_plan(b.finish(b.conv(b.conv(b.normalize(), 9), 9, residual=None)), 40, convolution="direct")
    first = plan.steps[1]
    assert first.cost.macs == 40 * 64 * 9 * 27
    assert first.cost.walked == 64 * 64 * 9 * 27  # two tiles of 32 images
    assert first.cost.written == 64 * 64 * 9 * 4
    assert first.cost.read == 64 * 64 * 3 * 4 + first.weights.packed_bytes  # type: ignore[union-attr]
    assert plan.cost.macs == sum(s.cost.macs for s in plan.steps)
    bounds = part_bounds(plan, GPUS["h200"])
    assert {b.by for b in bounds} == {"launch"}
    b = GraphBuilder(SHAPE, seed=1)
    large = build_lanes_plan(b.finish(b.conv(b.conv(b.normalize(), 64), 64)), 4096, convolution="direct")
    assert large.steps[2].cost.macs == 4096 * 64 * 64 * 64 * 9
    assert part_bounds(large, GPUS["h200"])[2].by == "FFMA"
    assert part_bounds(large, GPUS["h200"])[2].seconds == pytest.approx(2 * large.steps[2].cost.walked / 67e12)


def test_every_gpu_has_all_rates() -> None:
    assert {gpu.name for gpu in GPUS.values()} == set(ensembles.FFMA) == set(ensembles.TENSOR_CORES)
    h100, h200 = GPUS["h100"], GPUS["h200"]  # one processor, two memories
    assert (h100.int8, ensembles.FFMA[h100.name]) == (h200.int8, ensembles.FFMA[h200.name]) and h100.bandwidth < h200.bandwidth


def test_the_bound_of_an_ensemble() -> None:
    plan = build_ensemble_plan(merge({"q": quantized_member(), "s": float_member()}), 256)
    assert [type(part) for part in plan.parts] == [Plan, LanesPlan]
    assert all(s.launcher != "ensemble_mean" for s in plan.parts[0].steps)  # type: ignore[union-attr]
    least = ensemble_bound(plan, GPUS["h200"])
    assert least.sequential > least.perfect_overlap > max(least.parts)
    assert plan.launches == sum(p.launches for p in plan.parts) + 1
    assert "ensemble_mean of q, s" in str(plan)


def test_members_that_share_nodes_are_one_part() -> None:
    trunk = GraphBuilder(SHAPE, seed=4)
    x = trunk.qconv("image", 4)
    both = trunk.finish(trunk.qconv(x, 2), trunk.qconv(x, 2))
    plan = build_ensemble_plan(both, 4)
    assert [part.members for part in plan.parts] == [("m0", "m1")]
    assert plan.launches == plan.parts[0].launches + 1
    assert all(s.launcher != "ensemble_mean" for s in plan.parts[0].steps)  # type: ignore[union-attr]


def test_what_no_path_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder(SHAPE, seed=5)
    mixed = b.finish(b.add("clamp", [b.probe(b.qconv("image", 2, stride=(4, 4)))], {"min": None, "max": 0.5}))
    graph = merge({"q": quantized_member(), "s": float_member(), "x": mixed})
    with pytest.raises(UnsupportedError, match=r"member 'x'.*got clamp .* and .*members=\('q', 's'\)"):
        paths(graph)
    with pytest.raises(UnsupportedError, match="image lanes"):
        build_lanes_plan(quantized_member(), 1)
    good = graph.only("q", "s")
    monkeypatch.setattr(_cuda_native, "available", lambda: (False, "nvcc was not there"))
    with pytest.raises(UnsupportedError, match=r"member 's'.*nvcc was not there.*--members q"):
        ensembles.require_runnable(good)
    ensembles.require_runnable(good.only("q"))
    build_ensemble_plan(good, 1)  # a plan needs no extension
    monkeypatch.setattr(_cuda_native, "available", lambda: (True, ""))
    ensembles.require_runnable(good)


def test_buckets_keep_to_the_memory() -> None:
    small = build_ensemble_plan(merge({"q": quantized_member(), "s": float_member()}), 1)
    assert largest_ensemble_bucket(small, 64) == 64
    b = GraphBuilder((8, 512, 512), seed=1)
    large = build_ensemble_plan(b.finish(b.add("global_avg_pool", [b.conv(b.normalize(), 8)])), 1)
    size = largest_ensemble_bucket(large)
    assert 32 <= size < 4096
    assert ensembles.arena_bytes(large, size) <= ARENA_LIMIT < ensembles.arena_bytes(large, 2 * size)


def test_plans_need_no_torch() -> None:
    code = ("import sys; import hce_engine.plan.cuda.ensemble_plan; "
            "assert not {'torch', 'triton'} & set(sys.modules), sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
