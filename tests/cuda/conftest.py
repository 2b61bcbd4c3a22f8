"""The extension's own bindings and kernels, built without CUDA: hce_engine._cuda for the memory of the CPU."""

from __future__ import annotations

from types import ModuleType

import pytest

from .host_extension import build_host_extension, can_build


@pytest.fixture(scope="session")
def host_cuda(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if not can_build():
        pytest.skip("needs g++, pybind11 and the sources of csrc/cuda")
    return build_host_extension(tmp_path_factory.mktemp("host_cuda"))


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
