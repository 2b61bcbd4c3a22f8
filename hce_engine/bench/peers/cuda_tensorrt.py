"""TensorRT, built for one batch size from the ONNX model, inside a CUDA graph: float32 with TF32 off, and float16.

Written for the Python API of TensorRT 10: explicit batch, tensors by address, ``execute_async_v3``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .cuda_peer import CudaPeer, CudaSession, Runtime
from .onnx_model import INPUT, OUTPUT, to_onnx
from .peer import Network


class TensorRtSession(CudaSession):
    """Input and logits are float32 in either precision; TensorRT converts inside of the network, where it can fuse that."""

    def __init__(self, engine: Any, network: Network, batch: int, runtime: Runtime) -> None:
        super().__init__(torch.zeros((batch, *network.shape), dtype=torch.float32, device=runtime.device))
        self._logits = torch.zeros((batch, network.classes), dtype=torch.float32, device=runtime.device)
        self._engine, self._context = engine, engine.create_execution_context()
        self._context.set_input_shape(INPUT, tuple(self.input.shape))
        self._context.set_tensor_address(INPUT, self.input.data_ptr())
        self._context.set_tensor_address(OUTPUT, self._logits.data_ptr())
        self._replay = runtime.prepare(self._run)

    def _run(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream(self.input.device).cuda_stream):
            raise RuntimeError("TensorRT could not queue the network")

    @property
    def logits(self) -> Tensor:
        return self._logits

    def launch(self) -> None:
        self._replay()


class _TensorRt(CudaPeer):
    packages = ("tensorrt", "onnx")
    install = "pip install tensorrt onnx"
    half: ClassVar[bool] = False

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        import tensorrt as trt

        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        definition = builder.create_network(0)
        parser = trt.OnnxParser(definition, logger)
        if not parser.parse(to_onnx(network.graph).SerializeToString()):
            raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.half:
            config.set_flag(trt.BuilderFlag.FP16)
        shape = (batch, *network.shape)
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(definition, config)
        if plan is None:
            raise RuntimeError("TensorRT built no engine")
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        return TensorRtSession(engine, network, batch, self.runtime)


class TensorRtFp32(_TensorRt):
    name = float_peer = "tensorrt-fp32"
    precision = "fp32"
    form = "by TensorRT, float32 without TF32, in a CUDA graph"


class TensorRtFp16(_TensorRt):
    name = float_peer = "tensorrt-fp16"
    precision, half = "fp16", True
    form = "by TensorRT, float16, in a CUDA graph"
