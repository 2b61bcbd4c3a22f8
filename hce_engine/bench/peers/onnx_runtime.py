"""ONNX Runtime on its CPU provider, in float32 and in static int8.

int8 is QDQ with unsigned activations and signed weights per channel (U8S8): on x86 the signed form that the documentation
calls the default is slower than float32. Ranges are the least and largest values of the calibration images.
``reduce_range`` (7-bit weights) stays off: it is for processors without VNNI, whose 16-bit sums saturate; there
results may be off, which the check of agreement would show.

Each session has its own threads, which spin for some 30 ms after a call. Where two sessions take turns, as in an ensemble, they are told
to stop with the call: at batch 128 on two threads that makes an ensemble faster, while a session by itself is faster without.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_model import BATCH, INPUT, OUTPUT, to_onnx
from .peer import LayerTime, Network, Peer, Session, first_batch

_CALIBRATION_BATCH = 32


class OnnxSession(Session):
    """An inference session whose input and output are bound to memory of their own."""

    def __init__(self, model: bytes, network: Network, batch: int, options: Any) -> None:
        import onnxruntime as ort

        options.add_free_dimension_override_by_name(BATCH, batch)
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self.session.io_binding()
        self._input = np.zeros((batch, *network.shape), np.float32)
        self._output = np.zeros((batch, network.classes), np.float32)
        self._binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(self._input))
        self._binding.bind_ortvalue_output(OUTPUT, ort.OrtValue.ortvalue_from_numpy(self._output))

    def load(self, images: np.ndarray) -> None:
        self._input[:] = images

    def __call__(self) -> np.ndarray:
        self.session.run_with_iobinding(self._binding)
        return self._output


class _OnnxRuntime(Peer):
    own_threads = True

    def __init__(self) -> None:
        self._models: dict[Network, bytes] = {}

    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        options = _options(threads)
        if together:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return OnnxSession(self._model(network), network, batch, options)

    def _model(self, network: Network) -> bytes:
        if network not in self._models:
            self._models[network] = self._convert(network)
        return self._models[network]

    def _convert(self, network: Network) -> bytes:
        return to_onnx(network.graph).SerializeToString()

    def profile(self, network: Network, batch: int, threads: int, calls: int) -> tuple[LayerTime, ...]:
        with tempfile.TemporaryDirectory() as folder:
            options = _options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = OnnxSession(self._model(network), network, batch, options)
            session.load(first_batch(network, batch))
            for _ in range(calls + 1):
                session()
            events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
        runs: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for event in events:
            name = event["name"]
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                arguments = event["args"]
                key = (name.removesuffix("_kernel_time"), arguments["op_name"], arguments.get("provider", ""))
                runs[key].append(event["dur"] * 1e-6)
        # The first run of each node is the warm-up.
        return tuple(LayerTime(*key, sum(times[1:]) / calls) for key, times in runs.items())


class OnnxRuntimeFp32(_OnnxRuntime):
    name = "onnxruntime-fp32"
    precision = "fp32"
    float_peer = "onnxruntime-fp32"
    packages = ("onnxruntime", "onnx")

    def describe(self, network: Network) -> str:
        return f"{network.member}, all graph optimizations"


class OnnxRuntimeInt8(_OnnxRuntime):
    name = "onnxruntime-int8"
    precision = "int8"
    float_peer = "onnxruntime-fp32"
    packages = ("onnxruntime", "onnx")

    def describe(self, network: Network) -> str:
        return f"{network.member} in static QDQ int8, U8S8, per channel, min-max of {len(network.calibration)} images"

    def _convert(self, network: Network) -> bytes:
        import onnxruntime.quantization as quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self._batches: Iterator[dict[str, np.ndarray]] = iter(
                    {INPUT: network.calibration[i : i + _CALIBRATION_BATCH]}
                    for i in range(0, len(network.calibration), _CALIBRATION_BATCH)
                )

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._batches, None)

        with tempfile.TemporaryDirectory() as folder:
            plain, prepared, quantized = (Path(folder) / f"{step}.onnx" for step in ("plain", "prepared", "int8"))
            plain.write_bytes(to_onnx(network.graph).SerializeToString())  # given a model, it would strew its weights over files
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared), str(quantized), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                reduce_range=False, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            return quantized.read_bytes()


def _options(threads: int) -> Any:
    """One pool of so many threads, the caller included; it spins between operations, as by default."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options
