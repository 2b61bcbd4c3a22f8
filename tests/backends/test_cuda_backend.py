"""Whole quantized networks on the CUDA back end: bits of the reference, buckets, memory, errors, and the engine around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from hce_engine import Engine, _cuda_native
from hce_engine.artifact import Artifact
from hce_engine.backends import reference
from hce_engine.backends.cuda import backend as backends
from hce_engine.backends.cuda import gpu
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.program import Arena, Program
from hce_engine.capture import capture
from hce_engine.engine import check_tensor, choose_device
from hce_engine.errors import InputError, UnsupportedError
from hce_engine.graph import Graph, merge
from hce_engine.graph.passes import lower
from hce_engine.preprocess import InputSpec
from hce_engine.training.freeze import freeze
from hce_engine.training.models import resolve
from hce_engine.training.quantize import QuantModule, calibrate
from tests.backends.graphs import GraphBuilder, pixels
from tests.training.float_graphs import GRAPHS, pictures, residual

SHAPE = (3, 8, 8)


def quantized(graph: Graph, bits: int) -> Graph:
    images = torch.from_numpy(pictures(8, graph.input.spec.shape, seed=5))
    module = QuantModule(graph, bits, bits)
    calibrate(module, images if graph.input.spec.dtype == "u8" else images / 255, method="lsq")
    return freeze(module.eval())


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.dtype == np.uint8 else images


def check(graph: Graph, images: np.ndarray, device: str, **keys: int) -> CudaBackend:
    """The back end after a run that gave the reference's bits."""
    backend = CudaBackend(graph, device, poison=True, **keys)
    got, want = backend.run(images), reference.run(graph, planes(images))
    assert {name: got[name].tobytes() for name in want} == {name: z.tobytes() for name, z in want.items()}
    assert len(np.unique(want[graph.members[0].name])) > 3
    return backend


@pytest.fixture(scope="module")
def resnet20() -> Graph:
    torch.manual_seed(0)
    module, arch = resolve("resnet20")
    return capture(module.eval(), InputSpec(arch.input.kind, (3, 10, 10), arch.input.mean, arch.input.std))


@pytest.mark.parametrize("bits", [4, 3])
def test_resnet20(resnet20: Graph, bits: int, cuda_device: str) -> None:
    graph = quantized(resnet20, bits)
    backend = check(graph, pixels((3, 10, 10), 3), cuda_device)
    kernels = [s.kernel for s in backend.plan(4).steps]
    assert len(kernels) == 23
    assert kernels.count(f"conv2d_u{bits}xs{bits}_u8+u{bits}") == 8


@pytest.mark.parametrize(("name", "bits"), [(name, 3 + i % 2) for i, name in enumerate(sorted(GRAPHS)) if name != "residual"])
def test_small_networks(name: str, bits: int, cuda_device: str) -> None:
    graph = GRAPHS[name]()
    check(quantized(graph, bits), pixels(graph.input.spec.shape, 2), cuda_device)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter computes with NaN in numpy
def test_float_images_and_rows_of_nan(cuda_device: str) -> None:
    b = GraphBuilder((2, 5, 4), dtype="f32", seed=4)
    x = b.add("quantize_input", ["image"], {"low": -0.1, "multiplier": 212.5}, dtype="u8", scale=0.004, zero_point=25)
    graph = b.finish(b.qconv(x, 3), b.qconv(x, 3, weight_dtype="s3"))
    images = np.random.default_rng(1).uniform(-0.2, 1.2, (5, 2, 5, 4)).astype(np.float32)
    backend = check(graph, images, cuda_device, max_batch=4)
    clean = backend.run(images)
    images[1, 1, 3, 3], images[4, 0, 0, 0] = np.nan, np.inf
    marked = backend.run(images)
    for name, logits in marked.items():
        assert np.isnan(logits[[1, 4]]).all()
        assert logits[[0, 2, 3]].tobytes() == clean[name][[0, 2, 3]].tobytes()
    images[1, 1, 3, 3], images[4, 0, 0, 0] = 0, 0
    assert np.isfinite(backend.run(images)["m0"]).all()


def shared_trunk() -> Graph:
    b = GraphBuilder(SHAPE, seed=1)
    trunk = b.qconv("image", 8, weight_dtype="s8", pad_code=[3, 2, 1])
    codes = b.codes("u4", source=trunk)
    return b.finish(b.qconv(codes, 4, stride=(2, 2)), b.qconv(codes, 4, stride=(2, 2), weight_dtype="s3"))


def test_members_share_a_trunk_and_vote(cuda_device: str) -> None:
    images = pixels(SHAPE, 3)
    backend = check(shared_trunk(), images, cuda_device)
    got = backend.run(images)
    mean = reference.mean_logits([got["m0"], got["m1"]])
    assert got["ensemble"].tobytes() == mean.tobytes()
    alone = backend.run(images, ensemble_only=True)
    assert list(alone) == ["ensemble"]
    assert alone["ensemble"].tobytes() == mean.tobytes()


def test_batches_run_in_buckets(cuda_device: str) -> None:
    images = pixels(SHAPE, 7)
    backend = check(shared_trunk().only("m0"), images, cuda_device, max_batch=4)  # 4 + 3
    assert [backend.bucket_of(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 4]
    whole = backend.run(images)["m0"]
    for count in (0, 1, 2, 3):
        got = backend.run(images[:count])
        assert got["m0"].tobytes() == whole[:count].tobytes()
        assert got["ensemble"].shape == (count, whole.shape[1])
    assert len(backend._buckets) == 3
    assert len(backend._arenas) == 1  # smaller buckets lie in the memory of the largest


def test_tensors_stay_where_they_are(cuda_device: str) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device, max_batch=2)
    images = pixels(SHAPE, 3)
    tensor = torch.from_numpy(images).to(backend.runtime.device)
    got = backend.run(tensor)
    assert got["m0"].device == tensor.device
    assert {k: v.cpu().numpy().tobytes() for k, v in got.items()} == {k: v.tobytes() for k, v in backend.run(images).items()}
    assert backend.run(tensor[:0])["ensemble"].shape == (0, backend.classes)


def test_a_call_in_inference_mode_leaves_memory_that_others_can_use(cuda_device: str) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device, max_batch=2)
    images = torch.from_numpy(pixels(SHAPE, 2)).to(backend.runtime.device)
    with torch.inference_mode():
        first = backend.run(images)["ensemble"]
    assert not first.is_inference()
    assert backend.run(images)["ensemble"].equal(first)


def test_launches_cost_what_the_plan_says(cuda_device: str) -> None:
    graph = quantized(residual(), 4)
    backend = CudaBackend(graph, cuda_device)
    backend.warm_up([3])
    (bucket,) = backend._buckets.values()
    program = bucket.program
    assert len(program.launches) == program.plan.launches
    for launch, step in zip(program.launches, program.step_of, strict=True):
        want = (step.cost.read, step.cost.written, step.cost.macs)
        assert (launch.cost.read, launch.cost.written, launch.cost.macs) == want, step.kernel
        assert launch.cost.walked == step.cost.walked or step.launcher == "head"


def test_nothing_is_built_after_warming_up(cuda_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device, max_batch=4)
    backend.warm_up([6])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("built after warm-up")

    for owner, name in ((Program, "__init__"), (Arena, "__init__"), (backends, "build_plan")):
        monkeypatch.setattr(owner, name, fail)
    assert backend.run(pixels(SHAPE, 6))["m0"].shape[0] == 6


def test_an_error_ends_the_engine(cuda_device: str) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device, max_batch=2)
    images = pixels(SHAPE, 2)
    backend.run(images)
    (key,) = backend._buckets

    def illegal() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    backend._buckets[key] = replace(backend._buckets[key], replay=illegal)
    for call in (lambda: backend.run(images), lambda: backend.run(images), lambda: backend.warm_up([1])):
        with pytest.raises(UnsupportedError, match=r"illegal memory access.*make a new engine"):
            call()


def test_an_interruption_ends_the_turn_and_not_the_engine(cuda_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device, max_batch=2)
    images = pixels(SHAPE, 2)
    want = backend.run(images)["ensemble"]
    turns = []
    for name in ("begin", "end"):
        call = getattr(backend.runtime, name)
        monkeypatch.setattr(backend.runtime, name, lambda name=name, call=call: (turns.append(name), call()))

    for interruption in (KeyboardInterrupt, SystemExit):
        def interrupted(*_: object, kind: type[BaseException] = interruption) -> None:
            raise kind

        with monkeypatch.context() as patch:
            patch.setattr(backend.runtime, "copy", interrupted)
            with pytest.raises(interruption):
                backend.run(images)
    assert turns == ["begin", "end"] * 2
    assert backend.run(images)["ensemble"].tobytes() == want.tobytes()
    assert turns == ["begin", "end"] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs streams")
def test_a_bucket_warms_up_after_a_run_on_another_stream() -> None:
    runtime, other = gpu.GpuRuntime(), torch.cuda.Stream()
    memory, seen = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        runtime.begin()
        torch.cuda._sleep(200_000_000)
        memory.fill_(1)
        runtime.end()
    runtime.prepare(lambda: seen.copy_(memory))
    assert seen.item() == 1


def test_memory_is_counted_before_it_is_taken(cuda_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(shared_trunk(), cuda_device)
    monkeypatch.setattr(backend.runtime, "free_bytes", lambda: 1000)
    with pytest.raises(UnsupportedError, match=r"expected \d{5,} bytes of free GPU memory for 4 images, got 1000 bytes"):
        backend.run(pixels(SHAPE, 3))
    monkeypatch.undo()
    assert backend.run(pixels(SHAPE, 3))["m0"].shape[0] == 3  # no error of CUDA: the engine lives


def test_large_maps_make_small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "Interpreted", lambda: type("Nothing", (), {"device": "cpu", "gpu": None, "drain": lambda nothing: None})())
    b = GraphBuilder((64, 512, 512), seed=1)
    pooled = b.add("qglobal_avg_pool", [b.qconv("image", 64)], {"multiplier": 2.0**-18, "qmin": 0, "qmax": 255})
    assert CudaBackend(b.finish(pooled), "cpu").max_batch == 64
    with pytest.raises(InputError, match="power of two"):
        CudaBackend(shared_trunk(), "cpu", max_batch=3)


def test_threads_take_turns(cuda_device: str) -> None:
    backend = CudaBackend(shared_trunk().only("m0"), cuda_device, max_batch=2)
    images = pixels(SHAPE, 8)
    want = backend.run(images)["ensemble"]
    got: dict[int, np.ndarray] = {}
    threads = [Thread(target=lambda i=i: got.update({i: backend.run(images[2 * i : 2 * i + 2])["ensemble"]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.concatenate([got[i] for i in range(4)]).tobytes() == want.tobytes()


# -- the engine -------------------------------------------------------------------------------------------------------


def mixed() -> Artifact:
    """A quantized and a float member."""
    f = GraphBuilder(SHAPE, seed=2)
    s = f.finish(f.conv(f.normalize(), 2, stride=(4, 4)))
    b = GraphBuilder(SHAPE, seed=2)
    q = b.finish(b.qconv("image", 2, stride=(4, 4)))
    return Artifact(lower(merge({"q": q, "s": s})), InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3))


def test_the_engine_runs_chosen_members(as_if_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, images = mixed(), pixels(SHAPE, 3)
    want = Engine(artifact, "reference").members(images)["q"]
    engine = Engine(artifact, "cuda", members=("q",))
    assert engine.device == "cuda"
    assert engine.member_names == ("q",)
    assert engine(images).tobytes() == want.tobytes()
    assert engine.members(torch.from_numpy(images))["q"].numpy().tobytes() == want.tobytes()
    assert "on cuda" in engine.plan
    assert engine.only("q")(images[:0]).shape == (0, 8)
    monkeypatch.setattr(_cuda_native, "available", lambda: (False, "it was not built"))
    with pytest.raises(UnsupportedError, match=r"member 's'.*it was not built"):
        Engine(artifact, "cuda")
    with pytest.raises(InputError, match="q, s"):
        Engine(artifact, "cuda", members=())
    if torch.cuda.is_available():
        assert engine(torch.from_numpy(images).cuda()).cpu().numpy().tobytes() == want.tobytes()


def test_the_engine_traces_and_reports(as_if_on_a_gpu: None, tmp_path: Path) -> None:
    engine, images = Engine(mixed(), "cuda", members=("q",)), pixels(SHAPE, 3)
    got, want = engine.trace(images, tmp_path / "trace.json"), engine.members(images)
    assert {k: z.tobytes() for k, z in got.items()} == {k: z.tobytes() for k, z in want.items()}
    spans = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert [s["cat"] for s in spans if "load" in s["name"]] and {"upload", "download"} < {s["cat"] for s in spans}
    assert engine.report() == [{"members": ["q"], "images": 4, "mode": "sequential", "timing": None}]
    with pytest.raises(InputError, match="uint8"):
        engine.trace(images.astype(np.float32), tmp_path / "other.json")
    on_cpu = Engine(mixed(), "cpu", threads=1)
    assert on_cpu.report() is None
    with pytest.raises(UnsupportedError, match="trace: expected device cuda, got device cpu"):
        on_cpu.trace(images, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
    with pytest.raises(InputError, match="concurrency auto, sequential, members, got 'shares'"):
        Engine(mixed(), "cpu", concurrency="shares")
    assert Engine(mixed(), "cuda", members=("q",), concurrency="shares")(images).tobytes() == want["ensemble"].tobytes()


def test_auto_takes_the_gpu_only_where_every_member_runs(as_if_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = mixed().graph
    monkeypatch.setattr(_cuda_native, "available", lambda: (True, ""))
    assert choose_device(graph) == "cuda"
    monkeypatch.setattr(_cuda_native, "available", lambda: (False, "it was not built"))
    assert choose_device(graph) == "cpu"
    assert choose_device(graph.only("q")) == "cuda"
    assert Engine(mixed(), members=("q",)).device == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given() -> None:
    assert choose_device(mixed().graph.only("q")) == "cpu"
    with pytest.raises(UnsupportedError, match="use device cpu"):
        Engine(mixed(), "cuda", members=("q",))


@pytest.mark.parametrize("change", [lambda t: t[0], lambda t: t.float(), lambda t: t[:, :4], lambda t: t[:, :, ::2].repeat(1, 1, 2, 1)[:, :, ::2]])
def test_tensors_that_do_not_fit_are_refused(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    images = torch.from_numpy(pixels(SHAPE, 2))
    check_tensor(images, mixed().input)
    with pytest.raises(InputError, match="contiguous tensor"):
        check_tensor(change(images), mixed().input)


@pytest.mark.parametrize(
    ("capability", "release", "reason"),
    [((7, 5), "3.7.1", "compute capability (7, 5)"), ((10, 0), "3.6.0", "fuses multiply-adds"), ((9, 0), "3.6.0", None),
     ((10, 0), "3.7.1", None), ((12, 0), "3.10.0", None)],
)
def test_gpus_whose_results_would_not_be_exact_are_refused(
    capability: tuple[int, int], release: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    from hce_engine.kernels import launch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(triton, "__version__", release)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    found = gpu.missing()
    assert found is None if reason is None else found is not None and reason in found
