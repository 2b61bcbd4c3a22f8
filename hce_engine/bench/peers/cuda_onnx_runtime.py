"""ONNX Runtime on its CUDA provider: float32 held to it, input and output bound to our memory, replayed as the provider's own CUDA graph.

The provider computes on a stream of ours that waits for the current one before and is waited for behind, and is told not to wait for
the GPU by itself (``user_compute_stream``, ``disable_synchronize_execution_providers``: its documentation on CUDA graphs and streams).
Versions before microsoft/onnxruntime#28686 (May 2026) wait at every replay all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cuda_peer import CudaPeer, CudaSession
from .onnx_model import BATCH, INPUT, OUTPUT, to_onnx
from .peer import Network

PROVIDER = "CUDAExecutionProvider"
_WARM = 2  # runs after which the provider replays its graph


class OnnxRuntimeCudaSession(CudaSession):
    def __init__(self, model: bytes, network: Network, batch: int, device: str) -> None:
        import onnxruntime as ort

        super().__init__(torch.zeros((batch, *network.shape), dtype=torch.float32, device=device))
        index = self.input.device.index or 0
        self._logits = torch.zeros((batch, network.classes), dtype=torch.float32, device=device)
        self._stream = torch.cuda.Stream(device)
        options = ort.SessionOptions()
        options.add_free_dimension_override_by_name(BATCH, batch)
        options.log_severity_level = 3
        provider = {"device_id": index, "use_tf32": 0, "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": 1,
                    "user_compute_stream": str(self._stream.cuda_stream)}
        self._session = ort.InferenceSession(model, options, providers=[(PROVIDER, provider)])
        if PROVIDER not in self._session.get_providers():  # it falls back to the CPU with a warning
            raise RuntimeError(f"ONNX Runtime could not start {PROVIDER}")
        self._binding = self._session.io_binding()
        self._binding.bind_input(INPUT, "cuda", index, np.float32, tuple(self.input.shape), self.input.data_ptr())
        self._binding.bind_output(OUTPUT, "cuda", index, np.float32, tuple(self._logits.shape), self._logits.data_ptr())
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for _ in range(_WARM):
            self.launch()

    @property
    def logits(self) -> Tensor:
        return self._logits

    def launch(self) -> None:
        current = torch.cuda.current_stream(self.input.device)
        self._stream.wait_stream(current)
        self._session.run_with_iobinding(self._binding, self._options)
        current.wait_stream(self._stream)


class OnnxRuntimeCuda(CudaPeer):
    name = float_peer = "onnxruntime-cuda"
    precision = "fp32"
    packages = ("onnxruntime-gpu", "onnx")
    install = "pip install onnxruntime-gpu onnx"
    form = "on the CUDA provider, float32 without TF32, exhaustive search, its own CUDA graph"

    def missing(self) -> str | None:
        absent = super().missing()
        if absent:
            return absent
        import onnxruntime as ort

        offered: list[Any] = ort.get_available_providers()
        return None if PROVIDER in offered else f"this onnxruntime has no {PROVIDER}, only {', '.join(offered)}; {self.install}"

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        return OnnxRuntimeCudaSession(to_onnx(network.graph).SerializeToString(), network, batch, self.runtime.device)
