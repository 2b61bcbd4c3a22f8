"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from hce_engine.kernels.interpreter import interpreter_fault

# Without a GPU, Triton kernels run in Triton's interpreter; it must be chosen before a kernel is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Time per example depends on the machine and says nothing about correctness.
settings.register_profile("hce", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("hce")


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """Folder of the CIFAR-10 binary files, named by HCE_DATA; tests that need it are skipped without."""
    folder = os.environ.get("HCE_DATA")
    if not folder:
        pytest.skip("HCE_DATA does not name a folder with the CIFAR-10 binary files")
    return Path(folder)


@pytest.fixture(scope="session")
def cuda_device() -> str:
    """``cuda``, or ``cpu`` for Triton's interpreter, as CudaBackend takes it."""
    if torch.cuda.is_available():
        return "cuda"
    fault = interpreter_fault()
    if fault:
        pytest.skip(fault)
    return "cpu"


@pytest.fixture
def as_if_on_a_gpu(cuda_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets engines of device cuda run in the interpreter where there is no GPU."""
    from hce_engine.backends.cuda import gpu
    from hce_engine.backends.cuda.interpreted import Interpreted

    if cuda_device == "cpu":
        monkeypatch.setattr(gpu, "GpuRuntime", Interpreted)
        monkeypatch.setattr(gpu, "missing", lambda: None)
