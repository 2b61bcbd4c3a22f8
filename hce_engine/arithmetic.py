"""How the convolutions of float members are computed: names that plans, back ends and commands share.

    ieee      float32 multiply-adds, one rounding each
    tf32x3    tensor cores, each operand split into two TF32 numbers, three of their four products
    fp16x3    the same with binary16: about the error of float32, for values up to 65504
    bf16x3    the same with bfloat16: 16 bits of precision, twice the speed of tf32x3 at most

All but ``ieee`` are of GPUs; docs/NUMERICS.md has their error bounds.
"""

from __future__ import annotations

from .errors import InputError, UnsupportedError

IEEE = "ieee"
SPLIT_ARITHMETICS = ("tf32x3", "fp16x3", "bf16x3")
ARITHMETICS = (IEEE, *SPLIT_ARITHMETICS)


def check_arithmetic(value: str, device: str = "cuda") -> None:
    """Raises InputError for a name that is none, UnsupportedError for one that ``device`` does not have."""
    if value not in ARITHMETICS:
        raise InputError("arithmetic", expected=", ".join(ARITHMETICS), got=repr(value), fix="choose one of them")
    if value != IEEE and device != "cuda":
        raise UnsupportedError(f"arithmetic {value}", expected="device cuda, whose tensor cores it is of",
                               got=f"device {device}", fix="use arithmetic ieee, or device cuda")
