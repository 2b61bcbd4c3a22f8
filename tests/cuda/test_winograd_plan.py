"""Which layers of float members run by Winograd on a GPU, with which configurations, and what a plan says of it; no kernel runs."""

from __future__ import annotations

from types import ModuleType

import pytest

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.plan.cuda import GPUS
from hce_engine.plan.cuda import winograd_select as select
from hce_engine.plan.cuda.ensemble_plan import build_ensemble_plan, part_bounds
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan
from hce_engine.plan.cuda.lanes_plan import LanesPlan, WinogradConfig
from hce_engine.plan.cuda.lanes_select import even_channels
from tests.backends.graphs import GraphBuilder

RESNET20 = [(16, 16, 32), (32, 32, 16), (64, 64, 8)]
SHAPES = [(c, k, side, side) for c, k, side in RESNET20] + [
    (1, 1, 4, 4), (3, 16, 32, 32), (7, 16, 32, 32), (16, 9, 15, 15), (16, 16, 7, 7), (16, 16, 5, 3), (9, 9, 2, 3), (300, 33, 4, 4),
    (512, 512, 7, 7),
]  # fmt: skip


def network() -> Graph:
    """16 -> 16 -> 7 -> 16 + residual at 32 x 32; a 1 x 1 layer, a grouped and a strided one, a map of 2 x 2 pixels."""
    b = GraphBuilder((3, 32, 32), seed=1)
    x = b.conv(b.conv(b.normalize(), 16), 16, low=0.0)
    x = b.conv(b.conv(x, 7), 16, residual=x, low=0.0, high=6.0)
    x = b.conv(b.conv(b.conv(x, 16, kernel=(1, 1), padding=(0, 0)), 16, groups=2), 16, stride=(16, 16))
    return b.finish(b.conv(b.conv(x, 16), 4, padding=(0, 1), kernel=(2, 3)))


def outputs_of(plan: LanesPlan) -> list[int]:
    """m of each convolution, 0 for a direct one."""
    return [s.config.output if isinstance(s.config, WinogradConfig) else 0 for s in plan.steps if s.weights is not None]


@pytest.mark.parametrize(("shape", "m"), [
    *(((c, k, side, side), 4) for c, k, side in RESNET20),
    ((16, 7, 32, 32), 4), ((14, 32, 16, 16), 4), ((64, 28, 8, 8), 4), ((64, 64, 56, 56), 4),
    ((3, 16, 32, 32), 0),      # nothing to share an input transform with
    ((16, 2, 32, 32), 0), ((2, 16, 32, 32), 0),
    ((256, 256, 14, 14), 2),   # 4 x 4 tiles cover 16 x 16
    ((16, 16, 5, 3), 2),       # and do not fit here
    ((16, 16, 1, 9), 0),       # nor do 2 x 2
])  # fmt: skip
def test_the_algorithm_by_shape(shape: tuple[int, int, int, int], m: int) -> None:
    assert select.algorithm(*shape, False) == m


def test_winograd_must_be_worth_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    direct, small, large = select.estimates(16, 16, 32, 32, False).values()
    assert large < 0.8 * direct and small < direct
    for worth, m in ((large / direct * 1.01, 4), (large / direct * 0.99, 0)):
        monkeypatch.setattr(select, "WORTH", worth)
        assert select.algorithm.__wrapped__(16, 16, 32, 32, False) == m


def test_no_algorithm_is_faster_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.memory_cycles(3, 2, 5, 7) == 3 * 2 * 5 * 7 * 128 / select.MEMORY_BYTES_PER_CYCLE
    monkeypatch.setattr(select, "MEMORY_BYTES_PER_CYCLE", 1e-3)
    assert select.algorithm.__wrapped__(16, 16, 32, 32, False) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_configuration_is_one_that_the_kernel_has(shape: tuple[int, int, int, int], host_cuda: ModuleType) -> None:
    inputs, outputs, height, width = shape
    for m in (2, 4):
        for tiles in (1, 3, 128) if min(height, width) >= m else ():
            jobs = tiles * select.pixel_tiles(m, height, width)
            config = select.winograd_config(m, inputs, outputs, jobs, tiles == 3)
            assert config.output == m and 1 <= config.channels <= host_cuda.WINOGRAD_CHANNELS[m, config.tiles]
            assert even_channels(outputs, config.channels) == config.channels
            assert 1 <= config.channel_groups * config.tile_groups <= host_cuda.WINOGRAD_GROUPS[m]
            assert 1 <= config.chunk <= min(inputs, select.MOST_CHUNK) and (config.tiles == 1 or config.chunk == inputs)
            needed = host_cuda.winograd_shared_bytes(config.values(), inputs, outputs)
            assert needed == select.shared_bytes(config) <= select.SHARED_BYTES
            walked = select.walked_multiplications(inputs, outputs, jobs, config)
            assert walked >= jobs * (m + 2) ** 2 * inputs * outputs * 32


def test_the_limits_are_those_of_the_sources(host_cuda: ModuleType) -> None:
    assert host_cuda.WINOGRAD_CHANNELS == select.CHANNELS and host_cuda.WINOGRAD_GROUPS == select.GROUPS


def test_few_tiles_get_small_blocks() -> None:
    few, many = (select.winograd_config(4, 64, 64, n * 4, False) for n in (1, 128))
    assert few.tiles * few.channels * few.channel_groups < many.tiles * many.channels * many.channel_groups


def test_what_runs_by_winograd() -> None:
    plan = build_lanes_plan(network(), 64)
    kernels = [s.kernel for s in plan.steps if s.weights is not None]
    assert kernels == ["conv2d_f32", *["winograd_f32"] * 3, *["conv2d_f32"] * 3, "winograd_f32", "conv2d_f32"]
    assert outputs_of(plan) == [0, 4, 4, 4, 0, 0, 0, 2, 0]
    with_residual = next(s for s in plan.steps if "residual" in s.reads)
    assert with_residual.kernel == "winograd_f32" and with_residual.arguments["limits"] == (0.0, 6.0)
    text = str(plan)
    assert "Winograd  [F(4x4, 3x3) " in text and "(0.25x walked)" in text
    direct = build_lanes_plan(network(), 64, convolution="direct")
    assert set(outputs_of(direct)) == {0} and "Winograd" not in str(direct)


@pytest.mark.parametrize("batch", [1, 32, 33, 500, 4096])
def test_the_algorithm_is_the_same_for_every_batch(batch: int) -> None:
    assert outputs_of(build_lanes_plan(network(), batch)) == outputs_of(build_lanes_plan(network(), 64))


def test_costs_are_those_of_the_kernel() -> None:
    plan = build_lanes_plan(network(), 40)
    step = next(s for s in plan.steps if s.kernel == "winograd_f32")
    assert step.weights is not None and isinstance(step.config, WinogradConfig)
    assert step.cost.macs == 40 * 1024 * 16 * 16 * 9
    assert step.cost.walked == 2 * 64 * 36 * 16 * 16 * 32  # two tiles of 32 images, 64 tiles of pixels each
    blocks = -(-16 // step.config.channels)
    assert step.weights.packed_bytes == 4 * blocks * 16 * 36 * (-(-step.config.channels // 4) * 4) + 16 * 4
    assert step.cost.read == 2 * 1024 * 16 * 128 + step.weights.packed_bytes
    assert step.cost.written == 2 * 1024 * 16 * 128


def test_the_bound_counts_the_products_that_are_computed() -> None:
    auto, direct = (build_lanes_plan(network(), 4096, convolution=c) for c in ("auto", "direct"))
    index = next(i for i, s in enumerate(auto.steps) if s.kernel == "winograd_f32")
    step, least = auto.steps[index], part_bounds(auto, GPUS["h200"])[index]
    assert least.seconds == max(2 * step.cost.walked / 67e12, step.cost.bytes / 4.8e12)
    assert least.seconds < 0.5 * 2 * step.cost.macs / 67e12 < part_bounds(direct, GPUS["h200"])[index].seconds


def test_the_switch() -> None:
    ensemble = build_ensemble_plan(network(), 8, convolution="direct")
    assert outputs_of(ensemble.parts[0]) == outputs_of(build_lanes_plan(network(), 8, convolution="direct"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="convolution auto or direct, got 'fast'"):
        build_lanes_plan(network(), 8, convolution="fast")


@pytest.mark.parametrize(("outer", "side"), [(16, 32), (32, 16), (64, 8)])
def test_blocks_of_small_width_are_bound_by_instructions(outer: int, side: int) -> None:
    """Why two convolutions are not one kernel, and a batch is not cut into chunks whose maps stay in the second-level cache: both
    save memory traffic alone, and what free traffic would gain at most is less than they cost (docs/LOG.md)."""
    for width in range(4, 17):
        layers = [min(select.estimates(*shape, side, side, residual).values())
                  for shape, residual in (((outer, width), False), ((width, outer), True))]
        moved = [select.memory_cycles(channels, side, side) for channels in (outer + width, width + 2 * outer)]
        assert sum(map(max, layers, moved)) < 1.05 * sum(layers)
