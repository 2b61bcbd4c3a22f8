"""PyTorch as one types it, in its faster memory format: channels_last, in inference mode, batch norms folded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...training.graph_module import GraphModule
from .peer import Network, Peer, Session


class TorchSession(Session):
    """A module on a channels_last input. ``set_num_threads`` is the process's: sessions of one thread count at a time."""

    def __init__(self, module: Callable[[torch.Tensor], torch.Tensor], network: Network, batch: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._module = module
        self._input = torch.zeros(batch, *network.shape).contiguous(memory_format=torch.channels_last)

    def load(self, images: np.ndarray) -> None:
        self._input.copy_(torch.from_numpy(images))

    @torch.no_grad()
    def __call__(self) -> np.ndarray:
        return self._module(self._input).numpy()


class TorchEager(Peer):
    name = "torch"
    precision = "fp32"
    float_peer = "torch"
    packages = ("torch",)
    isa_variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")

    def describe(self, network: Network) -> str:
        return f"{network.member} in eager mode, channels_last, batch norms folded"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        return TorchSession(GraphModule(network.graph).eval(), network, batch, threads)
