"""Builds hce_engine._cuda for the memory of the CPU: its own bindings and kernels, less its questions to the CUDA runtime."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


def can_build() -> bool:
    return shutil.which("g++") is not None and SOURCES.exists() and importlib.util.find_spec("pybind11") is not None


def build_host_extension(folder: Path) -> ModuleType:
    """The module, compiled in ``folder``. Addresses are those of numpy arrays, the device and the stream are ignored, and a
    launch returns when its work is done."""
    import pybind11

    compiler = shutil.which("g++")
    assert compiler is not None
    file = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = sorted(str(p) for p in SOURCES.iterdir() if p.suffix in (".cpp", ".cu"))
    done = subprocess.run(
        [compiler, "-x", "c++", "-std=c++17", "-O0", "-g0", "-DHCE_HOST", "-ffp-contract=off", "-shared", "-fPIC",
         "-fvisibility=hidden", "-pthread", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}", *sources,
         "-o", str(file)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_cuda", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
