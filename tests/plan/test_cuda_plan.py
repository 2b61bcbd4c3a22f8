"""Plans for the GPU: fusions, halos, storage, slots, costs, bounds, measured configurations and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.kernels.configurations import ConvConfig, conv_candidates, default_conv_config
from hce_engine.kernels.formats import MapFormat, step_tiles
from hce_engine.plan.cuda import GPUS, Map, Plan, arena, bound, build_plan, select, tuned
from hce_engine.plan.cuda.plan import Cost
from hce_engine.plan.cuda.roofline import LAUNCH_FLOOR, total
from hce_engine.plan.cuda.storage import map_bits
from tests.backends.graphs import GraphBuilder
from tests.backends.random_graphs import RandomGraph

SHAPE = (3, 8, 8)


def residual_network() -> Graph:
    """Stem, a block with an option-A shortcut, global pool and head, as quantized ResNets have them."""
    b = GraphBuilder(SHAPE, seed=1)
    x = b.qconv("image", 16, weight_dtype="s8", pad_code=[120, 110, 100])
    y = b.qconv(b.codes("u4", source=x), 16, out="u4")
    x = b.qconv(y, 16, residual=x)
    shortcut = b.add("strided_slice", [x], {"h": (0, 8, 2), "w": (0, 8, 2)})
    shortcut = b.add("channel_pad", [shortcut], {"before": 8, "after": 8})
    y = b.qconv(b.codes("u3", source=x), 32, out="u3", weight_dtype="s3", stride=(2, 2))
    x = b.qconv(y, 32, residual=shortcut)
    pooled = b.add("qglobal_avg_pool", [x], {"multiplier": 0.0625, "qmin": 0, "qmax": 255})
    return b.finish(pooled)


def deep_network() -> Graph:
    """Blocks of one shape, whose maps can take turns."""
    b = GraphBuilder(SHAPE, seed=1)
    x = b.qconv("image", 8)
    for _ in range(4):
        x = b.qconv(b.qconv(b.codes("u4", source=x), 8, out="u4"), 8, residual=x)
    return b.finish(x)


def runnable_graphs(count: int) -> list[Graph]:
    found = []
    for seed in range(200):
        graph = RandomGraph(seed).graph
        for member in graph.members:
            one = graph.only(member.name)
            try:
                build_plan(one, 2)
            except UnsupportedError:
                continue
            found.append(one)
        if len(found) >= count:
            break
    return found


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [build_plan(graph, 5) for graph in (deep_network(), residual_network(), *runnable_graphs(40))]


def test_what_is_fused() -> None:
    plan = build_plan(residual_network(), 64)
    assert [s.kernel for s in plan.steps] == [
        "load_pixels", "conv2d_u8xs8_u8+u4", "conv2d_u4xs4_u4", "conv2d_u4xs4_u8+u3", "gather", "conv2d_u3xs3_u3",
        "conv2d_u3xs4_u8", "head_u8xs8_f32",
    ]
    assert [len(s.nodes) for s in plan.steps] == [1, 2, 1, 2, 2, 1, 1, 3]
    assert plan.launches == 8
    assert "conv2d_u4xs4_u8+u3" in str(plan)
    assert all(s.reason in str(plan) for s in plan.steps)


def test_a_head_of_many_classes_pools_apart() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    pooled = b.add("qglobal_avg_pool", [b.qconv("image", 65)], {"multiplier": 2.0**-6, "qmin": 0, "qmax": 255})
    assert [s.launcher for s in build_plan(b.finish(pooled), 4).steps][-2:] == ["average_pool", "gemm"]


def test_what_a_plan_computes_is_counted_once() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    trunk = b.qconv("image", 16)
    plan = build_plan(b.finish(b.qconv(trunk, 4), b.qconv(trunk, 4)), 2)
    assert [s.launcher for s in plan.steps].count("load_pixels") == 1
    assert plan.members == ("m0", "m1")
    assert plan.steps[-1].launcher == "ensemble_mean"
    assert set(plan.outputs) == {"m0", "m1", "ensemble"}


def test_groups_are_depthwise_or_block_diagonal() -> None:
    b = GraphBuilder((8, 4, 4), seed=1)
    steps = build_plan(b.finish(b.qconv(b.qconv("image", 8, groups=8), 8, groups=2)), 2).steps
    assert [s.launcher for s in steps[1:3]] == ["depthwise_conv2d", "conv2d"]
    assert "2 groups" in steps[2].reason
    assert steps[2].weights is not None
    assert steps[2].cost.macs == 2 * 16 * (8 * 4 * 9)
    weight = steps[2].weights.layer.weight
    assert weight.shape == (8, 8, 3, 3)
    assert not weight[:4, 4:].any() and not weight[4:, :4].any()


def test_halos_hold_what_every_reader_needs(plans: list[Plan]) -> None:
    seen = 0
    for step in (s for plan in plans for s in plan.steps if s.launcher in ("conv2d", "depthwise_conv2d")):
        x = step.reads["x"]
        assert isinstance(x, Map) and step.geometry is not None
        needed = step.geometry.halo(x.height, x.width)
        assert all(has >= need for has, need in zip(x.halo, needed, strict=True))
        seen += any(needed)
    assert seen > 10


def test_images_with_other_pad_codes_are_loaded_again() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    some = [b.qconv("image", 4, pad_code=[7, 7, 7]), b.qconv("image", 4, pad_code=[9, 9, 9]), b.qconv("image", 4, padding=(0, 0), kernel=(1, 1))]
    loads = [s for s in build_plan(b.finish(*some), 2).steps if s.launcher == "load_pixels"]
    pads = [value.pad.tolist() for s in loads for value in s.writes.values() if isinstance(value, Map)]
    assert pads == [[7, 7, 7], [9, 9, 9]]


def test_slots_never_hold_two_live_maps_nor_two_formats(plans: list[Plan]) -> None:
    shared = 0
    for plan in plans:
        owners: dict[int, list[tuple[int, int]]] = {}
        for value, first, last in arena.lifetimes(plan.steps):
            slot = plan.slots[value.slot]
            assert (slot.form, slot.pad) == (value.form, value.pad.tobytes())
            assert all(last < f or l < first for f, l in owners.get(value.slot, []))
            owners.setdefault(value.slot, []).append((first, last))
        assert set(owners) == set(range(len(plan.slots)))
        shared += sum(len(o) > 1 for o in owners.values())
    assert shared > 3
    assert len(plans[0].slots) < len(arena.lifetimes(plans[0].steps)) / 2


def test_storage_rules() -> None:
    assert [map_bits("u8", 16, wide=False), map_bits("u4", 16, wide=False)] == [8, 4]
    assert [map_bits("u3", c, wide=False) for c in (16, 63, 64)] == [4, 4, 3]
    assert map_bits("u3", 256, wide=True) == 8


@pytest.mark.parametrize("x_bits", [8, 4, 3])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (16, 16, 3, 3), (64, 64, 3, 3), (33, 9, 1, 1), (512, 512, 3, 3), (10, 128, 4, 4)])
def test_default_configurations_depend_on_the_shape_alone(shape: tuple[int, int, int, int], x_bits: int) -> None:
    _, c, _, kw = shape
    x = MapFormat(c, 8, 8, x_bits, (1, 1, 1, 1))
    for pixels in (1, 64, 250, 10**6):
        config = default_conv_config(shape, x, pixels, (8, 4, 3))
        candidates = conv_candidates(shape, x, pixels, (8, 4, 3))
        assert candidates[0] == config == default_conv_config(shape, x, pixels, (8, 4, 3))
        assert len(set(candidates)) == len(candidates)
        for one in candidates:
            assert one.unroll or one.num_warps <= 4  # the form that Triton is known to miscompile
            run = kw * x.padded
            assert one.weight_bits != 3 or run % (step_tiles(x_bits, 3) * 32) == 0
            assert one.block_m >= 16 and one.block_n >= 16 and one.block_k >= 32
        assert config.weight_bits == 8 or pixels <= 256


def test_every_candidate_of_a_step_can_be_planned() -> None:
    plan = build_plan(residual_network(), 16)
    for step in plan.steps:
        options = select.candidates(step, 16)
        assert (step.weights is None) == (not options)
        for config in options:
            other = select.with_config(step, config, "cached", 16)
            assert (other.config, other.shape, other.cost.macs, other.cost.written) == (config, step.shape, step.cost.macs, step.cost.written)
            assert other.weights is not None and other.cost.walked >= other.cost.macs
            assert select.with_config(other, step.config, step.source, 16).cost == step.cost
    assert len({step.shape for step in plan.steps if step.weights}) == 6


def test_weights_of_sums_that_could_overflow_stay_wide() -> None:
    b = GraphBuilder((64, 1, 1), seed=1)
    graph = b.finish(b.qconv("image", 4, kernel=(1, 1), padding=(0, 0), weight_dtype="s4"))
    bias = np.full(4, 2**29, np.int32)
    huge = graph.map(lambda n: replace(n, params={**n.params, "bias": bias}) if n.op == "qconv2d" else n)
    assert build_plan(graph, 2).steps[1].weights.layer.storages == (8, 4)  # type: ignore[union-attr]
    assert build_plan(huge, 2).steps[1].weights.layer.storages == (8,)  # type: ignore[union-attr]


def test_float_nodes_are_refused_by_name() -> None:
    b = GraphBuilder(SHAPE, seed=1)
    q = b.finish(b.qconv("image", 4))
    f = GraphBuilder(SHAPE, seed=2)
    s = f.finish(f.conv(f.normalize(), 4))
    both = merge({"q": q, "s": s})
    with pytest.raises(UnsupportedError, match=r"member 's', normalize .*members=\('q',\)") as error:
        build_plan(both, 2)
    assert "cpu" in str(error.value)
    assert build_plan(both.only("q"), 2).members == ("q",)
    with pytest.raises(UnsupportedError, match="use device cpu"):
        build_plan(s, 2)


def test_bounds_are_the_largest_of_three() -> None:
    gpu = GPUS["h200"]
    assert bound(Cost(read=48_000_000), 1, gpu) == bound(Cost(written=48_000_000), 1, gpu)
    assert bound(Cost(read=48_000_000), 1, gpu).seconds == pytest.approx(1e-5)
    assert bound(Cost(walked=int(1979e12 * 1e-4) // 2), 1, gpu).seconds == pytest.approx(1e-4)
    assert bound(Cost(), 2, gpu).seconds == 2 * LAUNCH_FLOOR
    assert [bound(c, 1, gpu).by for c in (Cost(read=10**9), Cost(walked=10**12), Cost())] == ["memory", "tensor cores", "launch"]
    plan = build_plan(residual_network(), 4096)
    assert total(plan.steps, gpu) >= max(plan.cost.bytes / gpu.bandwidth, 2 * plan.cost.walked / gpu.int8)
    assert plan.cost.macs == 4096 * (64 * (16 * 27 + 2 * 16 * 144) + 16 * (32 * 144 + 32 * 288) + 32 * 32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def conv_step(graph: Graph) -> tuple[ConvConfig, str]:
    step = build_plan(graph, 64, "A GPU").steps[2]
    return step.config, step.source


def shape_of(graph: Graph) -> str:
    """The key under which the third step of the plan would be looked up."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned.Tuned, "find", lambda self, kernel, shape, kind: asked.append(shape))
        build_plan(graph, 64)
    return asked[1]


def test_measured_configurations_come_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = residual_network()
    default, source = conv_step(graph)
    assert source == "default"
    shape = shape_of(graph)
    mine = replace(default, block_m=32)
    theirs = replace(default, block_m=256)
    path = tuned.remember("A GPU", "conv2d", {shape: mine})
    assert path == cache / "hce_engine" / "tuned" / "a-gpu.json"
    assert conv_step(graph) == (mine, "cached")
    shipped = cache / "shipped.json"
    monkeypatch.setattr(tuned, "shipped_table", lambda gpu: shipped)
    shipped.write_text(path.read_text().replace('"block_m": 32', '"block_m": 256'))
    assert conv_step(graph) == (mine, "cached")
    path.unlink()
    assert conv_step(graph) == (theirs, "shipped")
    assert build_plan(graph, 64).steps[2].source == "default"  # a plan for no GPU in particular
    monkeypatch.setattr(tuned, "kernel_digest", lambda kernel: "other sources")
    assert conv_step(graph) == (default, "default")
    tuned.remember("A GPU", "conv2d", {"another shape": mine})
    assert list(json.loads(path.read_text())["kernels"]["conv2d"]["configs"]) == ["another shape"]


def test_damaged_tables_are_ignored_with_a_warning(cache: Path) -> None:
    graph = residual_network()
    default, _ = conv_step(graph)
    path = tuned.user_table("A GPU")
    path.parent.mkdir(parents=True)
    for text in (b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"schema_version": 1, "kernels": {"conv2d": {"digest": 1}}}'):
        path.write_bytes(text)
        with pytest.warns(UserWarning, match="ignored"):
            assert conv_step(graph) == (default, "default")
    path.write_text(json.dumps({"schema_version": 2}))  # of another version: none of our business
    assert conv_step(graph) == (default, "default")
    tuned.remember("A GPU", "conv2d", {shape_of(graph): default})
    written = path.read_text()
    for wrong in ('"64"', "48", "0", "true", "4294967296", '64, "more": 1'):
        path.write_text(written.replace('"block_m": 64', f'"block_m": {wrong}'))
        with pytest.warns(UserWarning, match="ignored"):
            assert conv_step(graph) == (default, "default")
    for other in (replace(default, unroll=False, num_warps=8), replace(default, weight_bits=3)):
        tuned.remember("A GPU", "conv2d", {shape_of(graph): other})
        path.write_text(path.read_text().replace('"weight_bits": 3', '"weight_bits": 5'))
        assert conv_step(graph) == (default, "default")


def test_the_digest_follows_what_a_kernel_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("a", "from .b import x"), ("b", "from .configurations import y"), ("configurations", ""), ("c", "")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(tuned, "SOURCES", tmp_path)

    def digest() -> str:
        tuned.kernel_digest.cache_clear()
        return tuned.kernel_digest("a")

    try:
        before = digest()
        for name, changes in (("c", False), ("configurations", False), ("b", True), ("a", True)):
            with open(tmp_path / f"{name}.py", "a") as file:
                file.write("\n")
            assert (digest() != before) == changes, name
            before = digest()
    finally:
        tuned.kernel_digest.cache_clear()


def test_planning_needs_neither_torch_nor_triton() -> None:
    code = "import sys, hce_engine.plan.cuda; sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
