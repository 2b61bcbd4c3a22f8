"""Kernels run on the GPU where there is one, and in Triton's interpreter elsewhere, as in tests/kernels."""

from tests.kernels.conftest import device

__all__ = ["device"]
