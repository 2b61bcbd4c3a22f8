"""Float members on NHWC maps: the extension's kernels on a GPU, or built for the host, against the reference and image lanes.

Memory starts out as NaN, padding lanes included, so that a result which looks at them shows.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from hce_engine import numerics
from hce_engine.backends import reference
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.ensemble import EnsembleProgram
from hce_engine.backends.cuda.lanes_program import LanesArena, LanesProgram, current_stream
from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node, merge
from hce_engine.graph.passes import lower
from hce_engine.plan.cuda import layout as layouts
from hce_engine.plan.cuda import nhwc_lowering
from hce_engine.plan.cuda.ensemble_plan import EnsemblePlan
from hce_engine.plan.cuda.lanes_lowering import LanesLowering
from hce_engine.plan.cuda.lanes_plan import LANES, NHWC, LaneMap, LanesPlan, NhwcConfig
from hce_engine.plan.cuda.layout import build_float_plan
from hce_engine.plan.cuda.nhwc_select import SEGMENT_STEPS, STEP, Product, nhwc_config
from tests.backends.graphs import GraphBuilder, pixels
from tests.backends.random_graphs import RandomGraph
from tests.backends.test_cpu_float import CONVS, EPS, _sums, direct_bound
from tests.training.float_graphs import GRAPHS

from . import lanes_runs
from .lanes_runs import DEVICE, planes
from .test_lanes_backend import float_part
from .test_nhwc_plan import deep, wide

SEEDS = (5, 8, 11, 23, 26, 41)  # between them every float operation


def program_of(graph: Graph, images: np.ndarray, extension: ModuleType) -> LanesProgram:
    return lanes_runs.program_of(graph, images, extension, layout=NHWC)


def run(graph: Graph, images: np.ndarray, extension: ModuleType, layout: str = NHWC) -> dict[str, np.ndarray]:
    return lanes_runs.run(graph, images, extension, "direct", layout)


TWO_PER_INPUT = (4, 8, 6, 5, {"groups": 4})


@pytest.mark.parametrize("case", [*CONVS, TWO_PER_INPUT], ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}x{c[3]}")
def test_convolutions_keep_to_their_bound(case: tuple, extension: ModuleType) -> None:
    c, oc, h, w, options = case
    b = GraphBuilder((c, h, w), seed=c + oc)
    x = b.normalize()
    inner = b.conv(x, oc, **options)
    y = b.conv(x, oc, **options, residual=inner)
    graph, images = b.finish(y), pixels((c, h, w), 3)
    values, got = reference.evaluate(graph, planes(images)), run(graph, images, extension)
    node, data = graph[y], values[x].astype(np.float64)
    bound = direct_bound(node, data) + 4 * EPS * (_sums(node, data, node.params["weight"].astype(np.float64)) + 1)
    bound = bound + direct_bound(graph[inner], data) + 2 * EPS * np.abs(values[inner])
    assert (np.abs(got["m0"].reshape(values[y].shape) - values[y]) <= bound).all()
    assert np.array_equal(got["m0"], run(graph, images, extension, LANES)["m0"])


# -- whole networks ---------------------------------------------------------------------------------------------------


def gamma(n: int) -> float:
    return n * EPS / (1 - n * EPS)


def roundings(node: Node, *x: np.ndarray) -> np.ndarray | float:
    """How far the float32 result of one operation may lie from the reference's, given the same operands, which hold float32.

    gamma_n times the sum of magnitudes; n: roundings on the longest path, and one of the reference. What moves values is exact.
    """
    x = tuple(np.abs(v.astype(np.float64)) for v in x)
    if node.op in ("conv2d", "linear"):
        weight = np.abs(node.params["weight"].astype(np.float64))
        bias = np.abs(node.params["bias"]).reshape((1, -1) if node.op == "linear" else (1, -1, 1, 1))
        segments = -(-weight[0].size // (SEGMENT_STEPS * STEP))
        magnitude = (x[0] @ weight.T if node.op == "linear" else _sums(node, x[0], weight)) + bias + sum(x[1:])
        return gamma(weight[0].size + segments + 3) * magnitude
    if node.op == "normalize":
        scale, offset = (np.abs(node.params[k].astype(np.float64)).reshape(1, -1, 1, 1) for k in ("scale", "offset"))
        return gamma(3) * (x[0] * scale + offset)
    if node.op == "add":
        return gamma(2) * sum(x)
    if node.op == "avg_pool2d":
        a = node.attrs
        windows = numerics.patches(x[0], tuple(a["kernel"]), a["stride"], a["padding"], (1, 1), 0.0)
        return gamma(windows[0, 0, 0, 0].size + 2) * windows.max((-2, -1))
    if node.op == "global_avg_pool":
        return gamma(x[0][0, 0].size + 2) * x[0].mean((2, 3), keepdims=True)
    return 0.0


def written(program: LanesProgram, value: LaneMap) -> np.ndarray:
    """What a map holds now, ``(N, C, H, W)``, or ``(N, C)`` of a vector."""
    tile, row, pixel = value.strides
    memory = program.arena.memory[value.slot][value.first :]
    whole = memory.as_strided((program.plan.batch, value.height, value.width, value.channels), (tile, row, pixel, 1))
    return whole.permute(0, 3, 1, 2).cpu().numpy().copy()


def check_every_step(graph: Graph, images: np.ndarray, extension: ModuleType) -> LanesProgram:
    """Runs a program launch by launch, and compares what each node wrote with the reference on what its operands held."""
    program = program_of(graph, images, extension)
    values: dict[str, np.ndarray] = {graph.input.name: planes(images)}
    for step, launch in zip(program.plan.steps, program.launches, strict=True):
        launch(current_stream(DEVICE))
        for value in step.writes.values():
            if value.name in graph:
                values[value.name] = written(program, value).reshape(-1, *graph[value.name].spec.shape)
    for node in graph.nodes:
        if node.op == "input":
            continue
        operands = [values[name] for name in node.inputs]
        want = reference.OPERATIONS[node.op](node, [graph[name].spec for name in node.inputs], *operands)
        if node.name not in values:
            assert node.op in ("flatten", "strided_slice"), node.op  # fused
            values[node.name] = want
        assert (np.abs(values[node.name] - want) <= roundings(node, *operands)).all(), node.name
    for member in graph.members:
        assert program.logits[member.name].cpu().numpy().tobytes() == values[member.output].tobytes()
    return program


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_networks_keep_to_their_bounds_in_both_layouts(name: str, extension: ModuleType) -> None:
    """An option-A shortcut, depthwise layers, a concatenation of 6 + 6 + 8 channels, a head over a map."""
    graph = lower(GRAPHS[name]())
    images = pixels(graph.input.spec.shape, 5)
    got = check_every_step(graph, images, extension).logits["o"].cpu().numpy()
    assert np.array_equal(got, run(graph, images, extension, LANES)["o"])  # no sum of more than one segment
    one = [run(graph, images[n : n + 1], extension)["o"].tobytes() for n in (0, 4)]
    assert one == [got[0].tobytes(), got[4].tobytes()]


def test_segments_add_up_the_same_side_by_side(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, images = wide(), pixels((3, 6, 5), 5)
    program = check_every_step(graph, images, extension)
    assert sum(s.kernel == "sum_segments_f32" for s in program.plan.steps) == 1
    got = program.logits["m0"].cpu().numpy()
    lanes = run(graph, images, extension, LANES)["m0"]
    assert not np.array_equal(got, lanes)
    np.testing.assert_allclose(got, lanes, rtol=0, atol=1e-5 * np.abs(lanes).max())
    assert run(graph, images[2:3], extension)["m0"].tobytes() == got[2:3].tobytes()

    def serial(product: Product) -> NhwcConfig:
        return NhwcConfig(64, 64, nhwc_config(product).segments)

    monkeypatch.setattr(nhwc_lowering, "nhwc_config", serial)
    again = program_of(graph, images, extension)
    assert not any(s.kernel == "sum_segments_f32" for s in again.plan.steps)
    assert again.logits["m0"].cpu().numpy().tobytes() == got.tobytes()


def test_a_sum_of_segments_takes_the_residual_and_the_clamp(extension: ModuleType) -> None:
    b = GraphBuilder((3, 5, 4), seed=6)
    x = b.conv(b.normalize(), 72)
    y = b.conv(x, 40, low=0.0, residual=b.conv(x, 40, kernel=(1, 1), padding=(0, 0)))
    program = check_every_step(b.finish(y), pixels((3, 5, 4), 2), extension)
    (total,) = (s for s in program.plan.steps if s.kernel == "sum_segments_f32")
    assert total.reads["residual"].slot == total.writes["y"].slot  # in place
    assert (program.logits["m0"] == 0).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs_equal_image_lanes(seed: int, extension: ModuleType) -> None:
    case = RandomGraph(seed)
    graph, images = float_part(case), case.images(1 + seed % 4)
    got, want = (run(graph, images, extension, layout) for layout in (NHWC, LANES))
    for name in want:
        assert np.isfinite(want[name]).all()
        assert np.array_equal(got[name], want[name]), str(graph)


def test_the_seeds_use_every_float_operation() -> None:
    used = {n.op for seed in SEEDS for n in float_part(RandomGraph(seed)).nodes}
    assert used == {*LanesLowering.HANDLERS, "input"}


def test_a_vector_of_a_map_with_a_halo(extension: ModuleType) -> None:
    b = GraphBuilder((2, 3, 3), seed=3)
    x = b.add("global_avg_pool", [b.normalize()])
    graph, images = b.finish(x, b.conv(x, 2)), pixels((2, 3, 3), 2)
    got, want = (run(graph, images, extension, layout) for layout in (NHWC, LANES))
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_halos_stay_zero(extension: ModuleType) -> None:
    graph = lower(GRAPHS["mobile"]())
    program = program_of(graph, pixels(graph.input.spec.shape, 2), extension)
    with_halo = 0
    for slot, memory in zip(program.arena.slots, program.arena.memory, strict=True):
        LanesArena.inner(slot, memory).zero_()
        assert not memory.any()
        with_halo += any(slot.halo)
    assert with_halo == 1  # widths of 3, 8, 16 and 24 channels are one line, so all maps of this size take turns


def test_float_images_and_rows_of_nan(extension: ModuleType) -> None:
    b = GraphBuilder((2, 5, 4), dtype="f32", seed=4)
    graph = b.finish(b.conv("image", 3, low=0.0), b.conv(b.normalize(), 3))
    images = np.random.default_rng(1).uniform(-0.2, 1.2, (5, 2, 5, 4)).astype(np.float32)
    clean, lanes = (run(graph, images, extension, layout) for layout in (NHWC, LANES))
    assert all(np.array_equal(clean[name], lanes[name]) for name in clean)
    images[1, 1, 3, 3], images[4, 0, 0, 0] = np.nan, np.inf
    for name, z in run(graph, images, extension).items():
        assert np.isnan(z[[1, 4]]).all()
        assert z[[0, 2, 3]].tobytes() == clean[name][[0, 2, 3]].tobytes()


# -- the back end -----------------------------------------------------------------------------------------------------


def backend_of(graph: Graph, extension: ModuleType, **keys: object) -> CudaBackend:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaBackend(graph, device, extension=extension, poison=True, **keys)  # type: ignore[arg-type]


def test_the_back_end_takes_a_layout(extension: ModuleType) -> None:
    members = {}
    for name, channels in (("a", 9), ("b", 72)):
        b = GraphBuilder((3, 6, 5), seed=channels)
        members[name] = b.finish(b.conv(b.conv(b.normalize(), channels), 2, stride=(4, 4)))
    graph, images = merge(members), pixels((3, 6, 5), 5)
    got = {}
    for layout in ("auto", LANES, NHWC):
        backend = backend_of(graph, extension, max_batch=4, layout=layout, convolution="auto" if layout == "auto" else "direct")
        got[layout] = backend.run(images)
        alone = backend.run(images[4:])
        assert {k: z.tobytes() for k, z in alone.items()} == {k: z[4:].tobytes() for k, z in got[layout].items()}
        programs = [bucket.program for bucket in backend._buckets.values()]
        layouts = {part.layout for program in programs if isinstance(program, EnsembleProgram) for part in program.plan.parts}
        assert layouts == ({NHWC} if layout == "auto" else {layout})
        assert "modelled" in str(backend.plan(4)) or layout != "auto"
    assert np.array_equal(got[NHWC]["a"], got[LANES]["a"])
    np.testing.assert_allclose(got[NHWC]["b"], got[LANES]["b"], rtol=0, atol=1e-5 * np.abs(got[LANES]["b"]).max())
    with pytest.raises(InputError, match="auto, lanes, nhwc"):
        backend_of(graph, extension, layout="chw").run(images)


def layouts_of(backend: CudaBackend, batch: int, members: tuple[str, ...] | None = None) -> set[str]:
    plan = backend.plan(batch, members)
    assert isinstance(plan, EnsemblePlan)
    return {part.layout for part in plan.parts if isinstance(part, LanesPlan)}


def test_one_layout_for_all_buckets(extension: ModuleType) -> None:
    """Unless both give the same values."""
    assert [build_float_plan(deep(64), batch).layout for batch in (1, 1024)] == [NHWC, LANES]
    for largest, layout in ((1024, LANES), (8, NHWC)):
        backend = backend_of(deep(64), extension, max_batch=largest)
        assert [layouts_of(backend, batch) for batch in (1, largest)] == [{layout}, {layout}]
        assert f"for {largest} images" in str(backend.plan(1))
    direct = backend_of(deep(64), extension, max_batch=1024, convolution="direct")
    assert [layouts_of(direct, batch) for batch in (1, 1024)] == [{NHWC}, {LANES}]


def test_some_members_keep_the_layout_of_all(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(plan: LanesPlan) -> float:
        return float(len(plan.members) == 1) if plan.layout == LANES else 0.5

    monkeypatch.setattr(layouts, "modelled_seconds", seconds)
    b = GraphBuilder((3, 6, 5), seed=9)
    trunk = b.conv(b.normalize(), 4)
    graph, images = b.finish(b.conv(trunk, 2), b.conv(trunk, 2)), pixels((3, 6, 5), 2)
    backend = backend_of(graph, extension, max_batch=2)
    assert (layouts_of(backend, 2), layouts_of(backend, 2, ("m1",))) == ({LANES}, {LANES})
    assert layouts_of(backend_of(graph.only("m1"), extension, max_batch=2), 2) == {NHWC}
    assert backend.run(images)["ensemble"].tobytes() == backend.run(images, ensemble_only=True)["ensemble"].tobytes()
