"""The one importer of the C++ extension ``hce_engine._C``; says how to build it when it is not there."""

from __future__ import annotations

import os
from types import ModuleType

from .errors import UnsupportedError

try:
    from . import _C as _extension
except ImportError as error:
    _extension = None
    _reason = str(error)
else:
    _reason = ""

ISA_VARIABLE = "HCE_ISA"


def available() -> tuple[bool, str]:
    """(whether the extension can be imported, why not)."""
    return _extension is not None, _reason


def extension() -> ModuleType:
    """The extension module; raises UnsupportedError if it was not built."""
    if _extension is None:
        raise UnsupportedError(
            "cpu back end", expected="the compiled extension hce_engine._C", got=f"no such module ({_reason})",
            fix="build it with `make build` or `pip install -e .` (a C++17 compiler is needed), or use device='reference'",
        )
    return _extension


def supported_isas() -> list[str]:
    """Instruction sets with kernels that this machine can run, best first."""
    return list(extension().supported_isas())


def cpu_features() -> dict[str, bool]:
    """Processor features that the choice of instruction set depends on."""
    return dict(extension().cpu_features())


def choose_isa(requested: str | None = None) -> str:
    """The instruction set to use: ``requested``, else the environment's HCE_ISA, else the best one here.

    Raises UnsupportedError when a named one is unknown or this processor lacks it; never falls back.
    """
    isas = supported_isas()
    name = requested or os.environ.get(ISA_VARIABLE) or isas[0]
    if name not in isas:
        raise UnsupportedError(
            "instruction set", expected="one of " + ", ".join(isas) + " on this machine", got=repr(name),
            fix=f"change or unset {ISA_VARIABLE}",
        )
    return name
