"""Float members and whole ensembles on the CUDA back end: the extension's kernels on a GPU, or built for the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hce_engine import _cuda_native, _native
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.backends.cuda import modes
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.lanes_program import LanesArena, current_stream, with_blocks
from hce_engine.capture import capture
from hce_engine.errors import InputError, UnsupportedError
from hce_engine.graph import Graph, merge, verify
from hce_engine.graph.passes import lower
from hce_engine.plan.cpu import build_plan
from hce_engine.plan.cuda.ensemble_plan import CODES, LANES, paths
from hce_engine.plan.cuda.lanes_lowering import LanesLowering, lanes_runnable
from hce_engine.preprocess import InputSpec
from hce_engine.training.models import resolve
from tests.backends.graphs import GraphBuilder, pixels
from tests.backends.random_graphs import RandomGraph
from tests.backends.test_cpu_float import CONVS, EPS, _sums, direct_bound
from tests.training.float_graphs import GRAPHS, mobile

from .lanes_runs import DEVICE, planes, program_of, run

SHAPE = (3, 8, 8)
# CPU kernels that round as these do: once per tap.
FUSED_ISA = next((isa for isa in _native.supported_isas() if isa != "portable"), None)
SEEDS = (0, 5, 8, 11, 23, 26, 41)  # between them every float operation

MIXED_SEEDS = (2, 9, 14)  # graphs with members of both kinds


def same_bits_as_cpu(graph: Graph, images: np.ndarray, got: dict[str, np.ndarray]) -> bool:
    """Checks bits of direct kernels where the CPU's plan has no others either; says whether it could."""
    if FUSED_ISA is None or any("winograd" in s.kernel for s in build_plan(graph, FUSED_ISA).steps):
        return False
    want = CpuBackend(graph, isa=FUSED_ISA, threads=1).run(images)
    assert {name: got[name].tobytes() for name in want} == {name: z.tobytes() for name, z in want.items()}
    return True


@pytest.mark.parametrize("case", CONVS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}x{c[3]}")
def test_convolutions_keep_to_their_bound(case: tuple, extension: ModuleType) -> None:
    c, oc, h, w, options = case
    b = GraphBuilder((c, h, w), seed=c + oc)
    x = b.normalize()
    inner = b.conv(x, oc, **options)
    y = b.conv(x, oc, **options, residual=inner)
    graph = b.finish(y)
    images = pixels((c, h, w), 3)
    values = reference.evaluate(graph, planes(images))
    got = run(graph, images, extension, "direct")
    node, data = graph[y], values[x].astype(np.float64)
    bound = direct_bound(node, data) + 4 * EPS * (_sums(node, data, node.params["weight"].astype(np.float64)) + 1)
    bound = bound + direct_bound(graph[inner], data) + 2 * EPS * np.abs(values[inner])
    assert (np.abs(got["m0"].reshape(values[y].shape) - values[y]) <= bound).all()
    same_bits_as_cpu(graph, images, got)


def float_part(case: RandomGraph) -> Graph:
    names = [m.name for m in case.graph.members if all(map(lanes_runnable, case.graph.only(m.name).nodes))]
    return case.graph.only(*names)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs_equal_the_cpu(seed: int, extension: ModuleType) -> None:
    case = RandomGraph(seed)
    graph, images = float_part(case), case.images(33 if seed == SEEDS[0] else 1 + seed % 5)
    values = reference.evaluate(graph, planes(images))
    largest = max(1.0, *(float(np.abs(v).max()) for n, v in values.items() if graph[n].spec.type.is_float))
    for convolution in ("auto", "direct"):
        got = run(graph, images, extension, convolution)
        for member in graph.members:
            assert np.abs(got[member.name] - values[member.output]).max() <= 3e-5 * largest, str(graph)
    assert FUSED_ISA is None or same_bits_as_cpu(graph, images, got)


def test_the_seeds_use_every_float_operation() -> None:
    used = {n.op for seed in SEEDS for n in float_part(RandomGraph(seed)).nodes}
    assert used == {*LanesLowering.HANDLERS, "input"}


def resnet20(width: Callable[[int], int] = lambda c: c) -> Graph:
    """ResNet-20 on tiny images; with other widths inside its blocks, as pruning leaves them."""
    torch.manual_seed(0)
    module, arch = resolve("resnet20")
    graph = lower(capture(module.eval(), InputSpec(arch.input.kind, (3, 5, 4), arch.input.mean, arch.input.std)))
    cut: dict[str, int] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "conv2d":
            weight, bias = node.params["weight"], node.params["bias"]
            if node.inputs[0] in cut:
                weight = weight[:, : cut[node.inputs[0]]]
            spec = node.spec
            if node.name.endswith(".conv1"):
                kept = cut[node.name] = width(len(weight))
                weight, bias, spec = weight[:kept], bias[:kept], replace(spec, shape=(kept, *spec.shape[1:]))
            node = replace(node, params={"weight": np.ascontiguousarray(weight), "bias": bias.copy()}, spec=spec)
        nodes.append(node)
    return verify(graph.with_nodes(nodes))


@pytest.mark.parametrize("name", ["dense", "pruned", "mobile", "concatenated", "preactivated", "plain"])
def test_networks(name: str, extension: ModuleType) -> None:
    if name in ("dense", "pruned"):
        graph = resnet20() if name == "dense" else resnet20(lambda c: c * 9 // 16 - (c > 16))
    else:
        graph = lower(GRAPHS[name]())
    images = pixels(graph.input.spec.shape, 2)
    (got,), values = run(graph, images, extension).values(), reference.evaluate(graph, planes(images))
    want = values[graph.members[0].output]
    largest = max(float(np.abs(v).max()) for v in values.values())
    assert np.abs(got - want).max() <= 3e-5 * largest
    assert len(np.unique(want)) > 3
    if name == "pruned":
        assert {len(n.params["weight"]) % 2 for n in graph.nodes if n.op == "conv2d"} == {0, 1}
        assert min(len(n.params["weight"]) for n in graph.nodes if n.op == "conv2d") == 9


def test_halos_stay_zero_and_lanes_do_not_mix(extension: ModuleType) -> None:
    graph = lower(mobile())
    images = pixels(graph.input.spec.shape, 35)
    program = program_of(graph, images, extension)
    with_halo = 0
    for slot, memory in zip(program.arena.slots, program.arena.memory, strict=True):
        inner = LanesArena.inner(slot, memory)
        assert torch.isfinite(inner).all()
        inner.zero_()
        assert not memory.any()
        with_halo += any(slot.halo)
    assert with_halo == 2
    whole = program.logits["o"].cpu().numpy()
    assert run(graph, images[30:35], extension)["o"].tobytes() == whole[30:35].tobytes()


def test_float_images_and_rows_of_nan(extension: ModuleType) -> None:
    b = GraphBuilder((2, 5, 4), dtype="f32", seed=4)
    raw = b.conv("image", 3, low=0.0)
    graph = b.finish(raw, b.conv(b.normalize(), 3))
    images = np.random.default_rng(1).uniform(-0.2, 1.2, (5, 2, 5, 4)).astype(np.float32)
    same_bits_as_cpu(graph, images, run(graph, images, extension, "direct"))
    clean = run(graph, images, extension)
    images[1, 1, 3, 3], images[4, 0, 0, 0] = np.nan, np.inf
    for name, z in run(graph, images, extension).items():
        assert np.isnan(z[[1, 4]]).all()
        assert z[[0, 2, 3]].tobytes() == clean[name][[0, 2, 3]].tobytes()


# -- ensembles --------------------------------------------------------------------------------------------------------


def ensemble_graph() -> Graph:
    """A quantized member and two float ones, of which one does not vote."""
    q, s, r = (GraphBuilder(SHAPE, seed=i) for i in (1, 2, 3))
    x = q.qconv("image", 8, weight_dtype="s8", pad_code=[3, 2, 1])
    y = s.conv(s.normalize(), 9, low=0.0)
    return merge({
        "q": q.finish(q.qconv(q.codes("u4", source=x), 2, stride=(4, 4))),
        "s": s.finish(s.conv(s.conv(y, 9, residual=y), 2, stride=(4, 4))),
        "r": r.finish(r.conv(r.normalize(), 2, stride=(4, 4))),
    }, roles={"r": "reference"})


def backend_of(graph: Graph, extension: ModuleType, layout: str = "lanes", **keys: object) -> CudaBackend:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return CudaBackend(graph, device, extension=extension, poison=True, layout=layout, **keys)  # type: ignore[arg-type]


def test_an_ensemble_equals_the_cpu(extension: ModuleType) -> None:
    graph, images = ensemble_graph(), pixels(SHAPE, 7)
    backend = backend_of(graph, extension, max_batch=4, convolution="direct")  # 4 + 3
    got = backend.run(images)
    want = CpuBackend(graph, threads=1).run(images)
    assert got["q"].tobytes() == want["q"].tobytes()
    for name in ("s", "r"):
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * np.abs(want[name]).max())
    same_bits_as_cpu(graph.only("s", "r"), images, got)
    mean = reference.mean_logits([got["q"], got["s"]])
    assert got["ensemble"].tobytes() == mean.tobytes()
    alone = backend.run(images[:5], ensemble_only=True)
    assert list(alone) == ["ensemble"]
    assert alone["ensemble"].tobytes() == mean[:5].tobytes()
    tensor = backend.run(torch.from_numpy(images[:3]).to(DEVICE))
    assert {k: v.cpu().numpy().tobytes() for k, v in tensor.items()} == {k: v[:3].tobytes() for k, v in got.items()}
    assert backend.run(images[:0])["ensemble"].shape == (0, 8)
    assert "image lanes" in str(backend.plan(4))


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter computes with NaN in numpy
def test_an_ensemble_on_float_images(extension: ModuleType) -> None:
    """Each part marks rows of NaN itself."""
    b = GraphBuilder((2, 5, 4), dtype="f32", seed=4)
    codes = b.add("quantize_input", ["image"], {"low": -0.1, "multiplier": 212.5}, dtype="u8", scale=0.004, zero_point=25)
    graph = b.finish(b.qconv(codes, 3), b.conv(b.normalize(), 3))
    images = np.random.default_rng(1).uniform(-0.2, 1.2, (3, 2, 5, 4)).astype(np.float32)
    backend, want = backend_of(graph, extension, max_batch=4), reference.run(graph, images)
    got = backend.run(images)
    assert got["m0"].tobytes() == want["m0"].tobytes()
    np.testing.assert_allclose(got["m1"], want["m1"], rtol=0, atol=1e-5 * np.abs(want["m1"]).max())
    images[1, 0, 2, 2] = np.inf
    for name, z in backend.run(images).items():
        assert np.isnan(z[1]).all()
        assert z[[0, 2]].tobytes() == got[name][[0, 2]].tobytes()


@pytest.mark.parametrize("seed", MIXED_SEEDS)
def test_random_ensembles(seed: int, extension: ModuleType) -> None:
    case = RandomGraph(seed)
    kinds: dict[str, str] = {}
    for member in case.graph.members:
        try:
            kinds |= paths(case.graph.only(member.name))
        except UnsupportedError:
            continue
    assert set(kinds.values()) == {CODES, LANES}
    graph, images = case.graph.only(*kinds), case.images(3)
    got, want = backend_of(graph, extension).run(images), reference.run(graph, planes(images))
    for name, kind in kinds.items():
        if kind == CODES:
            assert got[name].tobytes() == want[name].tobytes()
        else:
            assert np.abs(got[name] - want[name]).max() <= 1e-5 * max(1.0, float(np.abs(want[name]).max()))
    assert got["ensemble"].tobytes() == reference.mean_logits([got[m.name] for m in graph.voters]).tobytes()


def test_a_float_member_alone(extension: ModuleType) -> None:
    graph, images = ensemble_graph().only("s"), pixels(SHAPE, 2)
    got = backend_of(graph, extension).run(images)
    assert got["ensemble"].tobytes() == got["s"].tobytes() == run(graph, images, extension)["s"].tobytes()


def test_members_alike_do_not_share_maps(extension: ModuleType) -> None:
    """They run at the same time."""
    members = {}
    for name in ("a", "b"):
        b = GraphBuilder(SHAPE, seed=2)
        members[name] = b.finish(b.conv(b.normalize(), 2, stride=(4, 4)))
    backend = backend_of(merge(members), extension, max_batch=2)
    got = backend.run(pixels(SHAPE, 3))
    assert got["a"].tobytes() == got["b"].tobytes() == got["ensemble"].tobytes()
    (bucket,) = {id(b): b for b in backend._buckets.values() if b.program.plan.batch == 2}.values()
    first, second = bucket.program.parts  # type: ignore[union-attr]
    assert not {m.data_ptr() for m in first.arena.memory} & {m.data_ptr() for m in second.arena.memory}
    small = backend._buckets[(("a", "b"), 1)].program
    assert small.parts[0].arena is first.arena  # type: ignore[union-attr]


def test_memory_is_counted_before_it_is_taken(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(ensemble_graph(), extension)
    monkeypatch.setattr(backend.runtime, "free_bytes", lambda: 1000)
    with pytest.raises(UnsupportedError, match=r"expected \d{5,} bytes of free GPU memory for 4 images, got 1000 bytes"):
        backend.run(pixels(SHAPE, 3))
    monkeypatch.undo()
    assert backend.run(pixels(SHAPE, 3))["s"].shape == (3, 8)


def test_errors_of_the_extension_end_the_engine(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(ensemble_graph().only("s"), extension, max_batch=2)
    images = pixels(SHAPE, 2)
    backend.run(images)
    (bucket,) = backend._buckets.values()

    def illegal() -> None:
        raise RuntimeError("conv2d_f32: cudaErrorIllegalAddress (700): an illegal memory access was encountered")

    backend._buckets = dict.fromkeys(backend._buckets, replace(bucket, replay=illegal))
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"cudaErrorIllegalAddress.*make a new engine"):
            backend.run(images)


def test_the_extension_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_native, "_extension", None)
    monkeypatch.setattr(_cuda_native, "_reason", "no nvcc that day")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(UnsupportedError, match=r"member 's'.*no nvcc that day"):
        CudaBackend(ensemble_graph(), device)
    assert CudaBackend(ensemble_graph().only("q"), device).members == ("q",)


# -- modes; test_order.py has what they do ---------------------------------------------------------------------------


def test_modes_have_names(extension: ModuleType) -> None:
    backend = backend_of(ensemble_graph(), extension, mode="sequential")
    assert backend.run(pixels(SHAPE, 1))["s"].shape == (1, 8)
    assert backend.timing(1) is None
    with pytest.raises(InputError, match="auto, sequential, streams, shares"):
        backend_of(ensemble_graph(), extension, mode="both")


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_a_share_of_the_grid_gives_the_same_bytes(share: float, extension: ModuleType) -> None:
    graph, images = ensemble_graph().only("s", "r"), pixels(SHAPE, 70)
    program = program_of(graph, images, extension)
    want = {name: z.cpu().numpy().tobytes() for name, z in program.logits.items()}
    for z in program.logits.values():
        z.fill_(float("nan"))
    work = program.work(share)
    for launch in work:
        launch.start()
    assert {name: z.cpu().numpy().tobytes() for name, z in program.logits.items()} == want
    assert [w.nodes for w in work] == [s.nodes for s in program.plan.steps]


def test_every_launch_takes_a_share(extension: ModuleType) -> None:
    """It reaches the kernel: one that does not exist is refused by each."""
    for case in map(RandomGraph, SEEDS):
        program = program_of(float_part(case), case.images(1), extension)
        for launch, step in zip(program.launches, program.plan.steps, strict=True):
            with pytest.raises(ValueError, match="expected"):
                with_blocks(launch, step.config, -extension.GRID_SHARES - 1)(current_stream(DEVICE))


def test_a_trace_of_real_launches(extension: ModuleType, tmp_path: Path) -> None:
    backend, images = backend_of(ensemble_graph(), extension, max_batch=4), pixels(SHAPE, 6)
    got, want = backend.trace(images, tmp_path / "trace.json"), backend.run(images)
    assert {k: v.tobytes() for k, v in got.items()} == {k: v.tobytes() for k, v in want.items()}
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    launches = backend.plan(4).launches + backend.plan(2).launches
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"the caller's stream", "stream of s", "stream of r", "upload", "download"} <= names
    copies = 2 + 2 * 4 + 2 * 4 + 2  # both chunks: up, down, and between the staging and the program
    assert len(spans) == (launches + copies) * len({e["pid"] for e in spans})
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    conv = next(e for e in spans if e["cat"] == "conv2d_f32")
    assert conv["args"]["macs"] > 0 and conv["args"]["bytes_read"] > 0 and "warps" in conv["args"]["config"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are of a GPU")
def test_every_mode_gives_the_same_bytes(extension: ModuleType) -> None:
    images = pixels(SHAPE, 40)
    results = []
    for mode in modes.MODES:
        backend = backend_of(ensemble_graph(), extension, mode=mode)
        results.append(backend.run(images))
        timing = backend.timing(40)
        assert (timing is not None) == (mode in (modes.AUTO, modes.SHARES))
        if timing is not None:
            assert all((c.seconds or 0) > 0 or c.way.kind == modes.CONTEXTS for c in timing.candidates), timing
            assert "other" not in " ".join(c.refused for c in timing.candidates)
    for got in results[1:]:
        assert {k: v.tobytes() for k, v in got.items()} == {k: v.tobytes() for k, v in results[0].items()}
