"""The extension's own bindings and kernels, built without CUDA: hce_engine._cuda for the memory of the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


@pytest.fixture(scope="session")
def host_cuda(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that hce_engine._cuda would be, less its questions to the CUDA runtime. Addresses are those of numpy arrays,
    the device and the stream are ignored, and a launch returns when its work is done."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which("g++")
    if compiler is None or not SOURCES.exists():
        pytest.skip("needs g++ and the sources of csrc/cuda")
    file = tmp_path_factory.mktemp("host_cuda") / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
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


@pytest.fixture(scope="session")
def extension(host_cuda: ModuleType) -> ModuleType:
    """The extension for a GPU where there is one, else the one for the host."""
    import torch

    from hce_engine import _cuda_native

    if not torch.cuda.is_available():
        return host_cuda
    present, reason = _cuda_native.available()
    if not present:
        pytest.skip(reason)
    return _cuda_native.extension()
