"""The other engines, one row each: what ``--peers`` knows. Their packages come with the ``peers`` extra."""

from .onnx_runtime import OnnxRuntimeFp32, OnnxRuntimeInt8
from .openvino import OpenVinoFp32, OpenVinoInt8
from .peer import LayerTime, Network, Peer, Session
from .torch_compile import TorchCompile
from .torch_eager import TorchEager

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (TorchEager, TorchCompile, OnnxRuntimeFp32, OnnxRuntimeInt8, OpenVinoFp32, OpenVinoInt8)
}

__all__ = ["PEERS", "LayerTime", "Network", "Peer", "Session"]
