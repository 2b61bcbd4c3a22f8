"""Runtimes that are not installed here, as modules that compute with ONNX Runtime on the CPU: are they asked for the right thing?"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hce_engine.artifact import Artifact
from hce_engine.bench.peers import CUDA_PEERS
from hce_engine.bench.peers.cuda_onnx_runtime import PROVIDER, OnnxRuntimeCuda
from hce_engine.bench.peers.cuda_torch import float32_products
from hce_engine.bench.sample import Sample
from hce_engine.bench.subject import Subject
from tests.bench.fake_gpu import FakeRuntime

pytestmark = pytest.mark.filterwarnings("ignore")  # other projects' warnings are not ours to fail on


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that lies there."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Stream:
    cuda_stream = 77

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def fake_tensorrt(seen: dict[str, Any]) -> ModuleType:
    ort = pytest.importorskip("onnxruntime")

    class Context:
        def __init__(self, model: bytes) -> None:
            self.session, self.places, self.shape = ort.InferenceSession(model, providers=["CPUExecutionProvider"]), {}, ()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
            self.shape = shape

        def set_tensor_address(self, name: str, address: int) -> None:
            self.places[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            seen["stream"] = stream
            (logits,) = self.session.run(None, {"input": at(self.places["input"], self.shape)})
            at(self.places["logits"], logits.shape)[:] = logits
            return True

    class Parser:
        num_errors = 1

        def __init__(self, network: dict[str, bytes], logger: object) -> None:
            self.network = network

        def parse(self, model: bytes) -> bool:
            self.network["model"] = model
            return not seen.get("refuse")

        def get_error(self, index: int) -> str:
            return "no such operator"

    class Config:
        def clear_flag(self, flag: str) -> None:
            seen["cleared"] = flag

        def set_flag(self, flag: str) -> None:
            seen["set"] = flag

        def add_optimization_profile(self, profile: Any) -> None:
            seen["profile"] = profile.shapes

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            self.shapes = (name, *shapes)

    class Builder:
        def __init__(self, logger: object) -> None: ...

        def create_network(self, flags: int) -> dict[str, bytes]:
            return {}

        create_builder_config, create_optimization_profile = staticmethod(Config), staticmethod(Profile)

        def build_serialized_network(self, network: dict[str, bytes], config: Config) -> bytes:
            return network["model"]

    module: Any = ModuleType("tensorrt")
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.BuilderFlag = SimpleNamespace(TF32="TF32", FP16="FP16")
    module.Builder, module.OnnxParser = Builder, Parser
    module.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda plan: SimpleNamespace(create_execution_context=lambda: Context(plan)))
    return module


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16"])
def test_tensorrt_is_built_for_one_batch(name: str, ensemble: Artifact, noise: Sample, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(seen))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream([], "current"))
    peer, subject = CUDA_PEERS[name](runtime), Subject(ensemble, noise, None)
    session = peer.build(subject.network("o"), 4, 1)
    assert subject.check_peer(session, "o", peer.precision, 4).passed
    shape = (4, 3, 8, 8)
    assert seen == {"cleared": "TF32", **({"set": "FP16"} if name.endswith("16") else {}), "profile": ("input", shape, shape, shape), "stream": 77}
    seen["refuse"] = True
    with pytest.raises(RuntimeError, match="no such operator"):
        peer.build(subject.network("o"), 4, 1)


def test_onnx_runtime_computes_on_a_stream_of_ours(ensemble: Artifact, noise: Sample, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("onnxruntime")
    seen: dict[str, Any] = {}
    log: list[str] = []

    class Binding:
        def bind_input(self, *arguments: Any) -> None:
            self.input = arguments

        def bind_output(self, *arguments: Any) -> None:
            self.output = arguments

    class InferenceSession:
        def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
            seen["providers"] = providers
            self.session = real.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return seen.get("got", [PROVIDER, "CPUExecutionProvider"])

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding, options: Any) -> None:
            log.append("run")
            (logits,) = self.session.run(None, {binding.input[0]: at(binding.input[5], binding.input[4])})
            at(binding.output[5], binding.output[4])[:] = logits

    fake: Any = ModuleType("onnxruntime")
    fake.InferenceSession, fake.SessionOptions, fake.RunOptions = InferenceSession, real.SessionOptions, real.RunOptions
    fake.get_available_providers = lambda: ["CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, "own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(log, "current"))
    peer, subject = OnnxRuntimeCuda(runtime), Subject(ensemble, noise, None)
    session = peer.build(subject.network("s"), 4, 1)
    assert log == ["own waits for current", "run", "current waits for own"] * 2
    assert subject.check_peer(session, "s", "fp32", 4).passed
    ((name, options),) = seen["providers"]
    assert name == PROVIDER
    assert (options["use_tf32"], options["enable_cuda_graph"], options["user_compute_stream"]) == (0, 1, "77")
    monkeypatch.setattr(OnnxRuntimeCuda, "packages", ("numpy",))
    assert "has no CUDAExecutionProvider, only CPUExecutionProvider" in (peer.missing() or "")
    seen["got"] = ["CPUExecutionProvider"]
    with pytest.raises(RuntimeError, match="could not start"):
        peer.build(subject.network("s"), 4, 1)


def test_tf32_is_as_asked_and_put_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    for tf32 in (True, False):
        with suppress(ZeroDivisionError), float32_products(tf32=tf32):
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.backends.cudnn.allow_tf32 is tf32 and torch.backends.cudnn.benchmark is True
            raise ZeroDivisionError
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


def test_packages_that_are_not_there_are_named(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeCuda, "packages", ("no-such-package",))
    assert OnnxRuntimeCuda(runtime).missing() == "no-such-package not installed; pip install onnxruntime-gpu onnx"
    assert CUDA_PEERS["torch-fp32"](runtime).missing() is None
    assert all(cls.name == name == cls.float_peer for name, cls in CUDA_PEERS.items())
