"""``hce doctor``: what this machine has, and which kernels will be used."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .options import common
from .output import amount, show_table, write_json

_LIBRARIES = ("torch", "triton", "numpy", "safetensors", "pillow", "click", "rich")
_BYTES = (" B", " kB", " MB", " GB")
_UNSUPPORTED = 3


@click.command()
@click.option("--peaks", is_flag=True, help="Also measure what the processor does at best; a few seconds, on an idle machine.")
@common
def command(peaks: bool, json_path: Path | None, device: str) -> int:
    """Show what this machine has and which kernels will be used.

    Ends with exit code 3 if the chosen --device cannot run here.

    \b
    Examples:
      hce doctor --json doctor.json
      hce doctor --peaks
    """
    facts = _facts(device)
    quiet = str(json_path) == "-"
    rows = [(key.replace("_", " "), _shown(value)) for key, value in facts.items() if key != "libraries"]
    rows += [(name, version or "not installed") for name, version in facts["libraries"].items()]
    show_table("This machine", ("what", "found"), rows, quiet)
    if peaks:
        facts["peaks"] = measured_peaks()
        show_peaks(facts["peaks"], quiet)
    write_json(json_path, "doctor", facts)
    return 0 if facts["usable"] else _UNSUPPORTED


def measured_peaks(isa: str | None = None, threads: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Peaks of an instruction set (the best one here) for each count of threads: one, and all, unless others are given."""
    from ..peaks import measure_peaks
    from ..threads import available_threads

    return [measure_peaks(isa, count).as_dict() for count in threads or sorted({1, available_threads()})]


def show_peaks(peaks: Sequence[dict[str, Any]], quiet: bool = False) -> None:
    """One column per count of threads."""
    first = peaks[0]
    rows = [
        (f"{kind}, GMAC/s ({first['instructions'][kind]})", *(f"{p['macs'][kind] / 1e9:.1f}" for p in peaks)) for kind in first["macs"]
    ]
    for pattern in ("read", "triad"):
        for place, size in first["array_bytes"].items():
            label = f"{pattern}, {place}, GB/s ({amount(size, _BYTES)} per thread)"
            rows.append((label, *(f"{p[pattern][place] / 1e9:.1f}" for p in peaks)))
    show_table(f"Measured peaks of {first['isa']}", ("peak", *(f"threads: {p['threads']}" for p in peaks)), rows, quiet)


def _facts(device: str) -> dict[str, Any]:
    from .. import __version__, _native
    from ..errors import HceError
    from ..machine import processor
    from ..threads import available_threads

    built, reason = _native.available()
    facts: dict[str, Any] = {
        "hce_engine": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": available_threads(),
        "cuda_device": _cuda_device(),
        "cuda_extension": _cuda_extension(),
        "extension": "built" if built else f"missing: {reason}",
        "processor_features": [],
        "instruction_sets": [],
        "will_use": None,
        "usable": False,
    }
    if built:
        facts["processor_features"] = [name for name, has in _native.cpu_features().items() if has]
        facts["instruction_sets"] = _native.supported_isas()
    try:
        facts["will_use"] = _choice(device)
        facts["usable"] = True
    except HceError as error:
        facts["will_use"] = f"nothing: {error}"
    facts["libraries"] = {name: _version(name) for name in _LIBRARIES}
    return facts


def _choice(device: str) -> str:
    from .. import _native
    from ..backends.cuda import gpu

    if device == "reference":
        return "reference: plain numpy"
    if device == "cuda":
        gpu.require()
        return f"cuda: {_gpu_kernels()}"
    on_gpu = "" if gpu.missing() else f"; cuda where every member runs: {_gpu_kernels()}"
    return f"cpu: {_native.choose_isa()} kernels{on_gpu}"


def _gpu_kernels() -> str:
    from .. import _cuda_native

    built, _ = _cuda_native.available()
    return f"Triton kernels for quantized members, {'CUDA C++ ones for float members' if built else 'none for float members'}"


def _cuda_extension() -> str:
    from .. import _cuda_native

    built, reason = _cuda_native.available()
    return "built" if built else f"missing: {reason}"


def _cuda_device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
