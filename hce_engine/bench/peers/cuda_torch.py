"""PyTorch on a GPU in its best forms: channels_last, batch norms folded, cuDNN's algorithms benchmarked, inside a CUDA graph of one batch
size, which takes the time of Python and of single launches away.

"float32" is held to it: TF32 tensor cores round both operands to 11 bits, and convolutions get them by default. torch.compile runs in
``max-autotune`` without CUDA graphs of its own, since theirs copy every input; the one around it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from ...training.graph_module import GraphModule
from .cuda_peer import CudaPeer, CudaSession, Runtime
from .peer import Network


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Float32 convolutions and matrix products with or without TF32, and cuDNN free to measure its algorithms; all is put back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class TorchCudaSession(CudaSession):
    """A module that was run once and then captured."""

    def __init__(self, module: Callable[[Tensor], Tensor], input: Tensor, runtime: Runtime) -> None:
        super().__init__(input)
        self._made = module(input)  # compiles, and lets cuDNN choose, outside of the capture

        def run() -> None:
            self._made = module(self.input)

        self._replay = runtime.prepare(run)

    @property
    def logits(self) -> Tensor:
        return self._made

    def launch(self) -> None:
        self._replay()


class _Torch(CudaPeer):
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    dtype: ClassVar[torch.dtype] = torch.float32

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        device = self.runtime.device
        # As a trace, for the reason that torch_compile.py gives.
        module: Callable[[Tensor], Tensor] = torch.fx.symbolic_trace(GraphModule(network.graph).eval()).requires_grad_(False).to(device, self.dtype)
        if self.compiled:
            module = torch.compile(module, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
        input = torch.zeros((batch, *network.shape), dtype=self.dtype, device=device).contiguous(memory_format=torch.channels_last)
        with float32_products(tf32=self.precision == "tf32"):
            return TorchCudaSession(module, input, self.runtime)


class TorchFp32(_Torch):
    name = float_peer = "torch-fp32"
    precision = "fp32"
    form = "in eager mode, float32 without TF32, channels_last, in a CUDA graph"


class TorchFp16(_Torch):
    name = float_peer = "torch-fp16"
    precision, dtype = "fp16", torch.float16
    form = "in eager mode, float16, channels_last, in a CUDA graph"


class TorchBf16(_Torch):
    name = float_peer = "torch-bf16"
    precision, dtype = "bf16", torch.bfloat16
    form = "in eager mode, bfloat16, channels_last, in a CUDA graph"


class TorchCompileFp32(_Torch):
    name = float_peer = "torch-compile-fp32"
    precision = "fp32"
    packages, compiled = ("torch", "triton"), True
    form = "by torch.compile, max-autotune, float32 without TF32, channels_last, in a CUDA graph"


class TorchCompileTf32(_Torch):
    name = float_peer = "torch-compile-tf32"
    precision = "tf32"
    packages, compiled = ("torch", "triton"), True
    form = "by torch.compile, max-autotune, TF32, channels_last, in a CUDA graph"
