"""The device of tests of the CUDA back end: a GPU where there is one, Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.conftest import interpreter_fault


@pytest.fixture(scope="session")
def cuda_device() -> str:
    """``cuda`` or ``cpu``, as CudaBackend takes it."""
    if torch.cuda.is_available():
        return "cuda"
    fault = interpreter_fault()
    if fault:
        pytest.skip(fault)
    return "cpu"
