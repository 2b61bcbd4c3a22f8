"""The other engines, one row each: what ``--peers`` knows, on the CPU and on a GPU. Packages of the CPU's come with the ``peers`` extra."""

from .cuda_onnx_runtime import OnnxRuntimeCuda
from .cuda_peer import CudaPeer, CudaSession, Runtime
from .cuda_tensorrt import TensorRtFp16, TensorRtFp32
from .cuda_torch import TorchBf16, TorchCompileFp32, TorchCompileTf32, TorchFp16, TorchFp32
from .onnx_runtime import OnnxRuntimeFp32, OnnxRuntimeInt8
from .openvino import OpenVinoFp32, OpenVinoInt8
from .peer import LayerTime, Network, Peer, Session
from .torch_compile import TorchCompile
from .torch_eager import TorchEager

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (TorchEager, TorchCompile, OnnxRuntimeFp32, OnnxRuntimeInt8, OpenVinoFp32, OpenVinoInt8)
}

CUDA_PEERS: dict[str, type[CudaPeer]] = {
    peer.name: peer
    for peer in (TorchFp32, TorchCompileFp32, TorchCompileTf32, TorchFp16, TorchBf16, OnnxRuntimeCuda, TensorRtFp32, TensorRtFp16)
}

__all__ = ["CUDA_PEERS", "PEERS", "CudaPeer", "CudaSession", "LayerTime", "Network", "Peer", "Runtime", "Session"]
