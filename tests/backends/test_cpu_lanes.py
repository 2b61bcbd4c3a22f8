"""Batches of every size give the bytes of full tiles: a lane may be a block of an image, and kernels do not notice."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend, compile_plan
from hce_engine.graph import Graph
from hce_engine.plan.cpu import SIZES, Plan, build_plan, tiles
from hce_engine.plan.cpu.caches import Caches, machine_caches
from tests.backends.graphs import GraphBuilder, pixels
from tests.backends.random_graphs import RandomGraph

ISAS = _native.supported_isas()
COUNTS = (*range(1, 18), 31, 33)


def run_plan(plan: Plan, graph: Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """All images in tiles of a plan, in a poisoned arena."""
    program = compile_plan(plan, graph.input.spec.shape, graph.input.spec.dtype == "f32")
    outputs = [np.empty((len(images), graph[graph.member(name).output].spec.shape[0]), np.float32) for name in plan.members]
    _native.extension().Executor(plan.isa, 1).run([(program, outputs, 0, len(images))], images, True)
    return dict(zip(plan.members, outputs, strict=True))


def run_in_tiles(graph: Graph, isa: str, images: np.ndarray, size: int) -> dict[str, np.ndarray]:
    return run_plan(build_plan(graph, isa, images=size), graph, images)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_tiles_of_every_size_give_the_same_bytes(first: int, isa: str) -> None:
    for seed in range(first, first + 10):
        case = RandomGraph(seed)
        images = case.images(17)
        want = run_in_tiles(case.graph, isa, images, 16)
        for size in range(1, 16):
            got = run_in_tiles(case.graph, isa, images, size)
            for name, logits in want.items():
                assert got[name].tobytes() == logits.tobytes(), f"seed {seed}, {size} images, {name}\n{case.graph}"


def resnet(shape: tuple[int, int, int], quantized: bool, seed: int = 0) -> Graph:
    """Two stages with a shortcut that slices and pads, as in ResNet-20, over any size of image."""
    b = GraphBuilder(shape, seed=seed)
    conv = (lambda x, oc, **k: b.qconv(x, oc, weight_dtype="s4", out="u4", **k)) if quantized else (
        lambda x, oc, **k: b.conv(x, oc, low=0.0, **k))
    x = conv("image" if quantized else b.normalize(), 8)
    x = conv(conv(x, 8), 8, residual=x)
    _, h, w = b.specs[x].shape
    short = b.add("channel_pad", [b.add("strided_slice", [x], {"h": (0, h, 2), "w": (0, w, 2)})], {"before": 4, "after": 4})
    x = conv(conv(x, 16, stride=(2, 2)), 16, residual=short)
    x = b.add("max_pool2d", [x], {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})
    x = conv(conv(x, 16, kernel=(1, 1), padding=(0, 0)), 24, groups=8, kernel=(5, 3), padding=(2, 1))
    return b.finish(x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("quantized", [True, False], ids=["codes", "floats"])
@pytest.mark.parametrize("size", [(32, 32), (17, 23), (9, 40), (50, 5), (1, 33)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_every_batch_size_gives_the_same_bytes(size: tuple[int, int], quantized: bool, isa: str) -> None:
    graph = resnet((3, *size), quantized)
    images = pixels((3, *size), max(COUNTS))
    backends = [CpuBackend(graph, isa=isa, threads=threads, poison=True) for threads in (1, 2)]
    want = run_in_tiles(graph, isa, images, 16)["m0"]
    if quantized:
        np.testing.assert_array_equal(want, reference.run(graph, images.transpose(0, 3, 1, 2))["m0"])
    for count in COUNTS:
        for backend in backends:
            assert backend.run(images[:count])["m0"].tobytes() == want[:count].tobytes(), f"{count} images"


def test_lanes_are_full_with_one_image() -> None:
    """What this is for: a step computes a sixteenth of a map, and not a whole one in one lane of sixteen."""
    for quantized in (True, False):
        plan = build_plan(resnet((3, 32, 32), quantized), ISAS[0], images=1)
        convolutions = [s.writes["y"] for s in plan.steps if s.macs]
        assert all(y.lanes.used == 16 and y.h * y.w == 64 for y in convolutions if y.size == (32, 32))
        assert all(y.lanes.used == 16 and y.h * y.w == 16 for y in convolutions if y.size == (16, 16))


@pytest.mark.parametrize("isa", ISAS)
def test_heads_of_few_images_give_the_same_bytes(isa: str) -> None:
    """Averages of maps in blocks, and float layers with channels in lanes."""
    images = pixels((3, 9, 7), 16)
    for outputs in (1, 3, 63, 64, 65, 130):
        b = GraphBuilder((3, 9, 7), seed=outputs)
        x = b.add("global_avg_pool", [b.conv(b.normalize(), 13)])
        weight = b.rng.normal(0, 1, (outputs, 13)).astype(np.float32)
        y = b.add("linear", [b.add("flatten", [x])], {"min": None, "max": 1.0},
                  {"weight": weight, "bias": b.rng.normal(0, 1, outputs).astype(np.float32)}, dtype="f32")
        codes = b.qconv("image", outputs, weight_dtype="s4")
        z = b.add("qglobal_avg_pool", [codes], {"multiplier": 1 / 64, "qmin": 0, "qmax": 255}, dtype="u8", scale=0.1, zero_point=3)
        graph = b.finish(y, z)
        want = run_in_tiles(graph, isa, images, 16)
        for size in (1, 2, 3, 4, 5, 7, 8, 15):
            plan = build_plan(graph, isa, images=size)
            kernels = {step.kernel for step in plan.steps}
            assert "dense_f32" in kernels and (size > 8 or {"averages_f32", "averages_u8"} <= kernels)
            got = run_plan(plan, graph, images)
            assert all(got[name].tobytes() == logits.tobytes() for name, logits in want.items()), f"{outputs} outputs, {size} images"


def test_maps_whose_padding_differs_do_not_share_a_halo() -> None:
    """A convolution pads with the zero point, a maximum with what never wins: one map cannot serve both."""
    for dtype in ("u8", "f32"):
        b = GraphBuilder((3, 12, 12), seed=5)
        if dtype == "u8":
            x = b.qconv("image", 8, weight_dtype="s4", out="u4", zero_point=7)
            y = b.qconv(x, 8, weight_dtype="s4", out="u4", zero_point=7)
        else:
            x = b.conv(b.normalize(), 8)
            y = b.conv(x, 8)
        z = b.add("max_pool2d", [x], {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)})
        graph = b.finish(y, z)
        images = pixels((3, 12, 12), 5)
        for isa in ISAS:
            want = run_in_tiles(graph, isa, images, 16)
            for size in (1, 2, 4):
                got = run_in_tiles(graph, isa, images, size)
                assert all(got[name].tobytes() == want[name].tobytes() for name in want)


@pytest.mark.parametrize("isa", ISAS)
def test_stages_give_the_same_bytes(isa: str) -> None:
    """Caches of any size: groups join one or several times, with maps of any age, in full and in partly filled tiles."""
    several = 0
    for seed in (*range(36), 1006, 1041):  # the last two: members whose logits leave in another order than they were named
        case = RandomGraph(seed)
        images = case.images(37)
        want = run_in_tiles(case.graph, isa, images, 16)
        for l2, l3 in ((3000, 9000), (12000, 24000), (40000, 40000)):
            for size in (16, 12, 8):
                plan = build_plan(case.graph, isa, images=size, caches=Caches(l2, l3, "test"))
                several += len({step.images for step in plan.steps}) > 1
                got = run_plan(plan, case.graph, images)
                for name, logits in want.items():
                    assert got[name].tobytes() == logits.tobytes(), f"seed {seed}, {name}\n{plan}\n{case.graph}"
    assert several > 20


def test_large_maps_go_through_the_network_in_small_groups() -> None:
    graph = resnet((3, 96, 96), quantized=False)
    plan = build_plan(graph, "avx2" if "avx2" in ISAS else ISAS[0], caches=Caches(1 << 18, 1 << 22, "test"))
    order = [step.images for step in plan.steps]
    assert order == sorted(order) and order[0] < order[-1] == plan.images
    text = str(plan)
    assert f" {order[0]} image" in text and f" {order[-1]} images at a time:" in text  # stages, lanes and reasons can be read
    assert "L2 256 KiB, L3 4096 KiB (test)" in text and "with 16" in text and "blocks of" in text and "whole maps" in text
    roomy = build_plan(graph, plan.isa, caches=Caches(1 << 28, 1 << 29, "test"))
    assert roomy.arena_bytes > 2 * plan.arena_bytes
    images = pixels((3, 96, 96), 5)
    assert run_plan(roomy, graph, images)["m0"].tobytes() == run_plan(plan, graph, images)["m0"].tobytes()


def test_caches_are_what_the_system_says(tmp_path: Path) -> None:
    assert machine_caches().l2 <= machine_caches().l3
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (2, "Unified", "2048K"), (2, "Instruction", "1K"), (3, "Unified", "32M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert machine_caches(tmp_path) == Caches(2 << 20, 32 << 20, str(tmp_path))
    assert "assumed" in str(machine_caches(tmp_path / "none"))


def test_batches_are_cut_into_tiles_that_cover_them() -> None:
    times = tuple((n, n + 0.5) for n in SIZES)
    for threads in (1, 2, 3, 8):
        for some in range(1, len(SIZES) + 1):
            for count in (*range(70), 128, 1000):
                runs = tiles(count, threads, times[:some])
                covered = sorted((first, images) for _, first, images in runs)
                assert sum(images for _, images in covered) == count
                assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(covered))
                assert all(size <= SIZES[some - 1] and size in SIZES and images > 0 for size, _, images in runs)
    assert tiles(1, 2, times) == ((1, 0, 1),)
    assert tiles(16, 1, times) == ((16, 0, 16),)
    assert tiles(16, 2, times) == ((8, 0, 8), (8, 8, 8))  # both threads have work
    assert tiles(128, 2, times) == ((16, 0, 128),)
    assert [size for size, _, _ in tiles(11, 1, times)] == [8, 2, 1]
    assert [size for size, _, _ in tiles(11, 1, tuple((n, n + 4.0) for n in SIZES))] == [16]  # one tile, partly empty


def test_programs_of_small_tiles_are_built_once_by_whoever_needs_them() -> None:
    graph = resnet((3, 8, 8), True)
    backend = CpuBackend(graph, threads=2)
    images = pixels((3, 8, 8), 16)
    want = run_in_tiles(graph, backend.isa, images, 16)["m0"]
    assert [p.images for p in backend.plans] == [16]
    wrong: list[int] = []

    def work(index: int) -> None:
        for count in range(1, 9):
            if backend.run(images[:count])["m0"].tobytes() != want[:count].tobytes():
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert backend.plans[0].images == 16 and len(backend.plans) > 1
    layers = [[s for s in p.steps if "packed" in s.arguments] for p in backend.plans]
    pairs = [(a, b) for plan in layers[1:] for a, b in zip(plan, layers[0], strict=True) if a.kernel == b.kernel]
    assert len(pairs) > 3 and all(a.arguments["packed"] is b.arguments["packed"] for a, b in pairs)  # one copy of the weights


def test_steps_of_lanes_are_refused_where_they_do_not_fit() -> None:
    program = _native.extension().Program("portable", 64 * 64, [8, 8, 3], False)
    program.stage(1)
    ref = (0, 256, 64)
    for lanes in [(1, 4, 8, 2, 1), (2, 4, 4, 2, 2), (1, 4, 4, 1, 2), (1, 0, 4, 2, 2), (1, 1, 1, 8, 7), (2, 2, 2, 4, 4)]:
        with pytest.raises(ValueError, match="lanes"):
            program.load_codes(ref, lanes)
    program.load_codes(ref, (1, 4, 4, 2, 2))
    pattern = np.zeros(1, np.uint32)
    with pytest.raises(ValueError, match="arena"):
        program.halo(ref, (1, 4, 4, 2, 2), [8, 8], [1, 1, 1, 1], pattern)
    with pytest.raises(ValueError, match="groups"):
        program.regroup(x=ref, y=(1024, 256, 64), lanes=(2, 2, 2, 4, 4), to=(2, 1, 1, 8, 8), extent=[8, 8, 1])
    with pytest.raises(ValueError, match="arena"):
        program.regroup(x=ref, y=(1024, 512, 64), lanes=(1, 4, 4, 2, 2), to=(16, 1, 1, 8, 8), extent=[8, 8, 1])
    with pytest.raises(ValueError, match="stages"):
        program.stage(17)
