"""The methods of quantization-aware training by name: which grid activations have, and which weights."""

from __future__ import annotations

from dataclasses import dataclass

from hce_engine.errors import InputError

from .quantizer import FixedRange, LearnedClip, LearnedStep, Quantizer


@dataclass(frozen=True)
class Method:
    """activations: the grid of tensors (quantizer.py).  tanh_weights: DoReFa's weights instead of LSQ's (weights.py)."""

    activations: type[Quantizer]
    tanh_weights: bool


METHODS = {
    "lsq": Method(LearnedStep, tanh_weights=False),
    "pact": Method(LearnedClip, tanh_weights=True),
    "dorefa": Method(FixedRange, tanh_weights=True),
}


def method_of(name: str) -> Method:
    """Raises InputError for an unknown name."""
    if name not in METHODS:
        raise InputError("quantization", expected="a method of " + ", ".join(METHODS), got=repr(name), fix="name one of them")
    return METHODS[name]
