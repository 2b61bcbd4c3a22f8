"""torch.compile with the weights frozen into the program, compiled for one batch size and one number of threads."""

from __future__ import annotations

import torch

from ...training.graph_module import GraphModule
from .peer import Network, Peer, Session
from .torch_eager import TorchSession


class TorchCompile(Peer):
    name = "torch-compile"
    precision = "fp32"
    float_peer = "torch-compile"
    packages = ("torch",)
    isa_variables = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")

    def describe(self, network: Network) -> str:
        return f"{network.member} by torch.compile with freezing, channels_last"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        # A trace has a forward of its own. Sessions that share one would be versions of one function to the compiler, which
        # tries them in turn and, after a few, falls back to eager mode; fullgraph makes any fall-back an error.
        module = torch.fx.symbolic_trace(GraphModule(network.graph).eval())
        compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"freezing": True})
        session = TorchSession(compiled, network, batch, threads)
        session()  # compiles, with the number of threads that was set
        return session
