"""``hce doctor``: what this machine has, and which kernels will be used."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import click

from .options import common
from .output import show_table, write_json

_LIBRARIES = ("torch", "triton", "numpy", "safetensors", "pillow", "click", "rich")
_UNSUPPORTED = 3


@click.command()
@common
def command(json_path: Path | None, device: str) -> int:
    """Show what this machine has and which kernels will be used.

    Ends with exit code 3 if the chosen --device cannot run here.

    \b
    Example:
      hce doctor --json doctor.json
    """
    facts = _facts(device)
    quiet = str(json_path) == "-"
    rows = [(key.replace("_", " "), _shown(value)) for key, value in facts.items() if key != "libraries"]
    rows += [(name, version or "not installed") for name, version in facts["libraries"].items()]
    show_table("This machine", ("what", "found"), rows, quiet)
    write_json(json_path, "doctor", facts)
    return 0 if facts["usable"] else _UNSUPPORTED


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
        return "cuda: Triton kernels, for quantized members"
    on_gpu = "" if gpu.missing() else "; cuda: Triton kernels, where all members are quantized"
    return f"cpu: {_native.choose_isa()} kernels{on_gpu}"


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
