"""The one importer of ``hce_engine._cuda``, the CUDA C++ kernels; says why it is missing when it is."""

from __future__ import annotations

from types import ModuleType

from .errors import UnsupportedError

try:
    from . import _cuda as _extension
except ImportError as error:
    _extension = None
    _reason = (f"{error}: it is built where nvcc of CUDA 12 or newer is found when the package is installed (CUDA_HOME, PATH, "
               "/usr/local/cuda) and HCE_CUDA is not 0")
else:
    _reason = ""


def available() -> tuple[bool, str]:
    """(whether the extension can be imported, why not). It can be without a GPU; what then fails is every call to a device."""
    return _extension is not None, _reason


def extension() -> ModuleType:
    """The extension module; raises UnsupportedError if it was not built."""
    if _extension is None:
        raise UnsupportedError(
            "cuda back end", expected="the compiled extension hce_engine._cuda", got=f"no such module ({_reason})",
            fix="install the CUDA toolkit and run `make build` or `pip install -e .`, or use device='cpu'",
        )
    return _extension
