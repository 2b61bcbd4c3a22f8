"""Holding peers to the instruction set that our kernels are held to.

oneDNN, which OpenVINO and PyTorch compute with, reads its limit from the environment when it first computes; PyTorch reads its own
when it is imported. ONNX Runtime has no such switch: it takes what the processor has, and its rows say so.
"""

from __future__ import annotations

import os
import sys

from ..errors import UnsupportedError

# By our name: what oneDNN and PyTorch call the same limit. The best set of a machine needs no limit.
_LIMITS = {
    "amx": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
    "avx512vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "portable": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}


def hold_peers(isa: str) -> dict[str, str]:
    """Sets the limits in this process's environment and returns them; must come before PyTorch or OpenVINO are imported.

    Raises UnsupportedError if one of them is here already, with another limit.
    """
    limits = _LIMITS[isa]
    late = [name for name in ("torch", "openvino") if name in sys.modules]
    if late and any(os.environ.get(key) != value for key, value in limits.items()):
        raise UnsupportedError("bench --isa", expected=f"limits of {isa} before {' and '.join(late)} are imported", got="a process that has them",
                               fix="start hce as a program of its own, or set " + " ".join(f"{k}={v}" for k, v in limits.items()))
    os.environ.update(limits)
    return limits
