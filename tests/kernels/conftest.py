"""Kernel tests run on the GPU where there is one, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def device(cuda_device: str) -> str:
    return cuda_device
