"""Kernel tests run on the GPU where there is one, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton


def interpreter_fault() -> str | None:
    """Why kernels cannot be interpreted here, if they cannot."""
    broken = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
    return f"the interpreter of triton {triton.__version__} fails with numpy {np.__version__}" if broken else None


@pytest.fixture(scope="session")
def device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    fault = interpreter_fault()
    if fault:
        pytest.skip(fault)
    return "cpu"
