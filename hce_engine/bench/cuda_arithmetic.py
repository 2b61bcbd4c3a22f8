"""How float members may be multiplied on a GPU: in float32, or as compensated products of tensor cores, by the names of the back end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

IEEE = "ieee"
ARITHMETIC = (IEEE, "tf32x3", "fp16x3", "bf16x3")


def with_arithmetic(arithmetic: str, function: Callable[..., Any], who: str) -> dict[str, Any]:
    """Keywords that ask ``function`` for an arithmetic; none for ``ieee``, which is what it does by itself.

    Raises UnsupportedError for one that it does not have.
    """
    if arithmetic == IEEE:
        return {}
    if "arithmetic" not in inspect.signature(function).parameters:
        raise UnsupportedError(who, expected=f"--arithmetic {IEEE}", got=arithmetic, fix="leave --arithmetic out")
    return {"arithmetic": arithmetic}
