"""torch.compile with weights frozen into the program and a C++ wrapper, compiled for one batch size and one number of threads.

Freezing lays weights out for oneDNN once instead of at every call; it must be on for the process while the first call compiles,
since as an option of ``torch.compile`` it only reaches half of the compiler. The wrapper saves Python between kernels. Measured for
ResNet-20 on one thread, batch 1: 785 images/s without either, 1,226 with frozen weights, 1,339 with both; batch 128: no difference
from the wrapper.
"""

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
        return f"{network.member} by torch.compile, frozen, C++ wrapper, channels_last"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        import torch._inductor.config as inductor

        # A trace has a forward of its own. Sessions that share one would be versions of one function to the compiler, which
        # tries them in turn and, after a few, falls back to eager mode; fullgraph makes any fall-back an error.
        module = torch.fx.symbolic_trace(GraphModule(network.graph).eval())
        session = TorchSession(torch.compile(module, fullgraph=True, dynamic=False), network, batch, threads)
        with inductor.patch(freezing=True, cpp_wrapper=True):
            session()  # compiles, with the number of threads that was set
        return session
