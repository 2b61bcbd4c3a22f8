"""Plans on NHWC maps: configurations, segments, costs, and which layout is taken; no kernel runs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from hce_engine.errors import InputError, UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.plan.cuda import layout as layouts
from hce_engine.plan.cuda.ensemble_plan import arena_bytes, build_ensemble_plan, largest_ensemble_bucket
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan
from hce_engine.plan.cuda.lanes_plan import LANES, NHWC, TILE, LaneMap, LanesPlan, NhwcConfig
from hce_engine.plan.cuda.layout import build_float_plan, modelled_seconds
from hce_engine.plan.cuda.nhwc_lowering import build_nhwc_plan
from hce_engine.plan.cuda.nhwc_select import SEGMENT_STEPS, SMALL_TILE, STEP, TILES, Product, nhwc_config
from hce_engine.plan.cuda.nhwc_weights import pack_depthwise_nhwc, pack_nhwc
from tests.backends.graphs import GraphBuilder
from tests.training.float_graphs import GRAPHS, concatenated, mobile, residual

from .test_lanes_plan import quantized_member

PRODUCTS = [
    Product(pixels, groups, outputs, inputs, taps) for pixels in (1, 49, 3136, 200_000) for groups in (1, 2)
    for outputs in (1, 33, 64, 512) for inputs, taps in ((3, 49), (6, 9), (64, 9), (512, 9), (2048, 1))
]


def wide(channels: int = 72) -> Graph:
    """A convolution whose sums have two segments from 65 channels on."""
    b = GraphBuilder((3, 6, 5), seed=2)
    return b.finish(b.conv(b.conv(b.conv(b.normalize(), channels), 40), 2, stride=(4, 4)))


def test_tiles_and_steps_are_those_of_the_sources(host_cuda: ModuleType) -> None:
    assert (tuple(TILES), STEP, TILE) == (host_cuda.NHWC_TILES, host_cuda.NHWC_STEP, host_cuda.TILE)
    assert list(TILES)[-1] == SMALL_TILE
    for (rows, columns), tile in TILES.items():
        assert rows * columns == tile.warps * 32 * tile.lane[0] * tile.lane[1]


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_every_configuration_is_one_that_the_kernel_has(product: Product) -> None:
    config = nhwc_config(product)
    assert (config.rows, config.columns) in TILES
    if product.groups > 1 and product.inputs % 4:
        assert (config.rows, config.columns) == SMALL_TILE
    assert 1 <= config.segments <= product.steps
    assert -(-product.steps // config.segments) <= SEGMENT_STEPS
    assert not config.parallel or config.segments > 1
    macs = product.pixels * product.groups * product.outputs * product.inputs * product.taps
    assert product.walked_macs(config) >= macs
    assert product.packed_bytes(config) >= 4 * product.groups * product.outputs * product.inputs * product.taps
    assert product.seconds(config) > 0


def test_segments_depend_on_the_layer_alone() -> None:
    found = {}
    for batch in (1, 5, 64, 4096):
        for step in build_nhwc_plan(wide(), batch).steps:
            if isinstance(step.config, NhwcConfig):
                found.setdefault(step.nodes, set()).add(step.config.segments)
    assert [len(s) for s in found.values()] == [1, 1, 1]
    assert sorted(max(s) for s in found.values()) == [1, 1, 2]


def test_few_pixels_compute_segments_side_by_side() -> None:
    few, many = (nhwc_config(Product(n * 49, 1, 512, 512, 9)) for n in (1, 256))
    assert (few.segments, few.parallel) == (many.segments, True) == (8, True)
    assert not many.parallel
    assert (many.rows, many.columns) == (128, 64)
    assert few.rows * few.columns < 128 * 64


def test_what_is_emitted() -> None:
    kernels = [s.kernel for s in build_nhwc_plan(lower(residual()), 4).steps]
    assert kernels == ["load_images_nhwc", *["conv2d_nhwc_f32"] * 4, "copy_channels_f32", *["conv2d_nhwc_f32"] * 4, "pool_f32",
                       "conv2d_nhwc_f32", "store_logits_nhwc"]
    assert [s.kernel for s in build_nhwc_plan(lower(mobile()), 4).steps].count("depthwise_nhwc_f32") == 3
    plan = build_nhwc_plan(wide(), 1)
    assert [s.kernel for s in plan.steps] == ["load_images_nhwc", "conv2d_nhwc_f32", "conv2d_nhwc_f32", "sum_segments_f32",
                                              "conv2d_nhwc_f32", "flatten_nhwc_f32", "store_logits_nhwc"]
    product, total = plan.steps[2:4]
    assert product.writes["y"] is total.reads["x"] and product.writes["y"].depth == 2 * total.writes["y"].depth
    assert product.arguments["limits"] == (-np.inf, np.inf)
    assert "2 segments side by side" in str(plan)


def test_whole_lines_are_copied_where_channels_keep_their_lanes() -> None:
    b = GraphBuilder((3, 4, 4), seed=3)
    x = b.normalize()
    left, right = b.conv(x, 32), b.conv(x, 9)
    both, crossed = b.add("concat", [left, right]), b.add("concat", [right, left])
    plan = build_nhwc_plan(b.finish(b.conv(both, 2), b.conv(crossed, 2)), 2)
    copies = [(s.kernel, s.arguments["channels"], s.arguments["to"]) for s in plan.steps if s.kernel.startswith("copy")]
    assert copies == [("copy_f32", 1, (0, 0)), ("copy_f32", 1, (1, 0)), ("copy_channels_f32", 9, (0, 0)),
                      ("copy_channels_f32", 32, (9, 0))]


def test_strides_are_those_of_the_layout() -> None:
    value = LaneMap("x", 70, 4, 3, (1, 2, 3, 4), line_channels=TILE)
    assert value.depth == 3
    assert value.strides == (8 * 9 * 3 * TILE, 9 * 3 * TILE, 3 * TILE)
    assert value.first == (9 + 2) * 3 * TILE
    assert value.bytes == 4 * 3 * 3 * 128


def test_costs_count_what_exists() -> None:
    b = GraphBuilder((3, 8, 8), seed=1)
    plan = build_nhwc_plan(b.finish(b.add("global_avg_pool", [b.conv(b.normalize(), 9, groups=3)])), 5)
    load, conv, pool, store = plan.steps
    assert (load.cost.read, load.cost.written) == (5 * 64 * 3, 5 * 64 * 32)  # a sector holds eight channels
    assert conv.cost.macs == 5 * 64 * 9 * 9
    assert conv.weights is not None and conv.cost.read == 5 * 64 * 32 + conv.weights.packed_bytes
    assert conv.cost.written == 5 * 64 * 64
    assert pool.cost.read == 5 * 64 * 128  # whole lines
    assert store.cost.written == 5 * 9 * 4
    assert plan.tiles == 5


def test_weights_are_packed_tap_by_tap() -> None:
    weight = np.arange(1, 2 * 5 * 6 * 2 + 1, dtype=np.float32).reshape(10, 6, 1, 2)
    packed = pack_nhwc(weight, 2, 32)
    assert packed.shape == (2, 1, 16, 32)  # 2 taps of 8 channels
    for g in range(2):
        for o in range(5):
            for tap in range(2):
                for c in range(6):
                    assert packed[g, 0, tap * 8 + c, o] == weight[g * 5 + o, c, 0, tap]
    assert np.count_nonzero(packed) == weight.size
    taps = pack_depthwise_nhwc(np.arange(1, 3 * 9 + 1, dtype=np.float32).reshape(3, 1, 3, 3))
    assert taps.shape == (3, 3, 1, 32) and taps[1, 2, 0, 1] == 9 + 1 * 3 + 2 + 1 and not taps[..., 3:].any()


# -- which layout -----------------------------------------------------------------------------------------------------


def deep(channels: int, size: int = 14) -> Graph:
    b = GraphBuilder((3, size, size), seed=1)
    x = b.conv(b.normalize(), channels)
    for _ in range(3):
        x = b.conv(x, channels, residual=x)
    return b.finish(b.add("global_avg_pool", [x]))


def test_one_image_is_faster_in_nhwc_and_many_are_not() -> None:
    graph = deep(64)
    assert [build_float_plan(graph, batch).layout for batch in (1, 1024)] == [NHWC, LANES]


@pytest.mark.parametrize("batch", [1, 32, 512])
def test_the_lesser_time_is_taken_and_said(batch: int) -> None:
    graph = lower(concatenated())
    plans = {name: build_float_plan(graph, batch, name) for name in (LANES, NHWC)}
    seconds = {name: modelled_seconds(plan) for name, plan in plans.items()}
    best = min(seconds, key=lambda name: seconds[name])
    chosen = build_float_plan(graph, batch)
    assert chosen.layout == best
    assert [s.kernel for s in chosen.steps] == [s.kernel for s in plans[best].steps]
    assert f"modelled {1e6 * seconds[best]:.1f} us, " in str(chosen)
    assert all(not plan.why and plan.layout == name for name, plan in plans.items())


def test_no_model_is_below_the_bound() -> None:
    for make in GRAPHS.values():
        for batch in (1, 300):
            for name in (LANES, NHWC):
                plan = build_float_plan(lower(make()), batch, name)
                bytes_alone, launches_alone = plan.cost.bytes / layouts.BANDWIDTH, plan.launches * layouts.LAUNCH_FLOOR
                least = max(bytes_alone, launches_alone, 2 * plan.cost.macs / 67e12)
                assert modelled_seconds(plan) >= 0.99 * least


def test_a_layout_can_be_named() -> None:
    graph = merge({"q": quantized_member(), "s": deep(8, 8)})
    for name in (LANES, NHWC):
        _, part = build_ensemble_plan(graph, 3, layout=name).parts
        assert isinstance(part, LanesPlan) and part.layout == name and not part.why
    with pytest.raises(InputError, match=r"auto, lanes, nhwc.*'chw'"):
        build_ensemble_plan(graph, 3, layout="chw")


def test_direct_convolution_gives_all_batches_the_same_values() -> None:
    short, long = deep(64), wide()
    assert {build_float_plan(short, batch, convolution="direct").layout for batch in (1, 1024)} == {NHWC, LANES}
    for batch in (1, 1024):
        plan = build_float_plan(long, batch, convolution="direct")
        assert (plan.layout, plan.why) == (LANES, "nhwc cuts sums")
    assert build_float_plan(long, 1).layout == NHWC
    for layout in (LANES, NHWC, "auto"):
        with pytest.raises(InputError, match="convolution auto or direct"):
            build_float_plan(short, 1, layout, convolution="fft")


def test_memory_follows_the_layout() -> None:
    plans = {name: build_ensemble_plan(deep(9, 8), 1, layout=name) for name in (LANES, NHWC)}
    image = {name: arena_bytes(plan, 32) / 32 for name, plan in plans.items()}
    assert image[LANES] < image[NHWC] < 4 * image[LANES]
    assert arena_bytes(plans[LANES], 1) == arena_bytes(plans[LANES], 32)
    assert 32 * arena_bytes(plans[NHWC], 1) == arena_bytes(plans[NHWC], 32)
    assert largest_ensemble_bucket(plans[NHWC], 64) == 64


def test_quantized_nodes_and_huge_maps_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="operations of float members"):
        build_nhwc_plan(quantized_member(), 1)
    b = GraphBuilder((1, 9000, 9000), seed=1)
    graph = b.finish(b.add("global_avg_pool", [b.normalize()]))
    with pytest.raises(UnsupportedError, match=r"layout nhwc.*floats for a tile"):
        build_nhwc_plan(graph, 1)
    with pytest.raises(UnsupportedError, match=r"layout lanes.*floats for a tile"):
        build_lanes_plan(graph, 1)


def test_plans_need_no_torch() -> None:
    code = ("import sys; import hce_engine.plan.cuda.layout; "
            "assert not {'torch', 'triton'} & set(sys.modules), sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
