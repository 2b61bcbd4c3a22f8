"""Whether Triton's interpreter works here. Without importing Triton: a process must first choose how it will run kernels."""

from __future__ import annotations

from importlib.metadata import version


def interpreter_fault() -> str | None:
    """Why kernels cannot be interpreted here, if they cannot."""
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        return f"the interpreter of triton {version('triton')} fails with numpy {version('numpy')}"
    return None
