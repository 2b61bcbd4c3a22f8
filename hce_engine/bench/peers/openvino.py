"""OpenVINO on its CPU plugin: float32, held to it, and int8 by NNCF.

Left alone the plugin runs "float32" networks in bfloat16 where the processor has it, so float32 is asked for by name. It also binds
its threads to cores. Several threads are left so; a single one would be bound to the first core, whatever else runs there.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import defaultdict
from typing import Any

import numpy as np

from .onnx_model import to_onnx
from .peer import LayerTime, Network, Peer, Session, first_batch

_CALIBRATION_BATCH = 32


class OpenVinoSession(Session):
    """An infer request whose input shares memory with an array."""

    def __init__(self, model: Any, network: Network, batch: int, options: dict[str, Any]) -> None:
        import openvino as ov

        model = model.clone()
        model.reshape([batch, *network.shape])
        self.compiled = ov.Core().compile_model(model, "CPU", options)
        self.request = self.compiled.create_infer_request()
        self._input = np.zeros((batch, *network.shape), np.float32)
        self.request.set_input_tensor(ov.Tensor(self._input, shared_memory=True))

    def load(self, images: np.ndarray) -> None:
        self._input[:] = images

    def __call__(self) -> np.ndarray:
        self.request.infer()
        return self.request.get_output_tensor().data


class _OpenVino(Peer):
    isa_variables = ("ONEDNN_MAX_CPU_ISA",)

    def __init__(self) -> None:
        self._models: dict[Network, Any] = {}

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        return OpenVinoSession(self._model(network), network, batch, _options(threads))

    def _model(self, network: Network) -> Any:
        if network not in self._models:
            self._models[network] = self._convert(network)
        return self._models[network]

    def _convert(self, network: Network) -> Any:
        import openvino as ov

        return ov.Core().read_model(to_onnx(network.graph).SerializeToString())

    def profile(self, network: Network, batch: int, threads: int, calls: int) -> tuple[LayerTime, ...]:
        session = OpenVinoSession(self._model(network), network, batch, {**_options(threads), "PERF_COUNT": True})
        session.load(first_batch(network, batch))
        session()
        sums: dict[tuple[str, str, str], float] = defaultdict(float)
        for _ in range(calls):
            session()
            for step in session.request.profiling_info:
                sums[step.node_name, step.node_type, step.exec_type] += step.real_time.total_seconds()
        return tuple(LayerTime(*key, seconds / calls) for key, seconds in sums.items() if seconds)


class OpenVinoFp32(_OpenVino):
    name = "openvino-fp32"
    precision = "fp32"
    float_peer = "openvino-fp32"
    packages = ("openvino", "onnx")

    def describe(self, network: Network) -> str:
        return f"{network.member}, held to float32, one stream"


class OpenVinoInt8(_OpenVino):
    name = "openvino-int8"
    precision = "int8"
    float_peer = "openvino-fp32"
    packages = ("openvino", "onnx", "nncf")

    def describe(self, network: Network) -> str:
        return f"{network.member} in int8 by NNCF, mixed preset, {len(network.calibration)} images, one stream"

    def _convert(self, network: Network) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF greets and draws bars on stdout, which is the report's
            import nncf

            nncf.set_log_level(logging.ERROR)
            size = min(_CALIBRATION_BATCH, len(network.calibration))
            count = len(network.calibration) // size
            model = super()._convert(network)
            model.reshape([size, *network.shape])
            data = nncf.Dataset([network.calibration[i * size : (i + 1) * size] for i in range(count)])
            return nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=count)


def _options(threads: int) -> dict[str, Any]:
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": threads > 1}
