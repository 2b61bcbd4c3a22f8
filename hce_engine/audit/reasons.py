"""What a factor above 1 comes from, in words and from figures alone. Thresholds are here, and in docs/AUDIT.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..peaks import Peaks
from .bound import bandwidth
from .factors import charged_seconds, efficiency, factors
from .layers import Layer

NOTABLE = 1.05  # a factor from which on it is a reason
DISPATCH_SHARE = 0.05  # of the products' time that a step without work takes
MEMORY_SHARE = 0.25  # of the bandwidth: so much of the time would go to moving bytes if nothing overlapped

# What slows products down, which the factor ``rate`` alone does not tell.
DISPATCH, MEMORY, INSTRUCTIONS = "dispatch", "memory", "instructions"
# Every code that time can be charged to, in the order of reports; the last two are of whole members (totals.py).
ALL_CODES = ("unit", "algorithm", "padding", MEMORY, DISPATCH, INSTRUCTIONS, "overhead", "no products", "distribution")


@dataclass(frozen=True)
class Reason:
    """code: of :data:`ALL_CODES`.  factor: on the layer's time.  seconds: per image that it costs.  text: a sentence."""

    code: str
    factor: float
    seconds: float
    text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """What reasons are held against. dispatch_seconds: of a step that does next to nothing, per call."""

    peaks: Peaks
    dispatch_seconds: float


def rate_cause(layer: Layer, machine: Machine) -> str:
    """What keeps a layer's products from their peak: the cost of starting the step, moving bytes, or other instructions."""
    if machine.dispatch_seconds >= DISPATCH_SHARE * layer.product_seconds * layer.images:
        return DISPATCH
    moving = layer.bytes / layer.product_seconds / bandwidth(machine.peaks, layer.working_set)
    return MEMORY if moving >= MEMORY_SHARE else INSTRUCTIONS


def charges(original: Layer, layer: Layer, machine: Machine) -> dict[str, tuple[float, float]]:
    """{code: (factor, seconds per image)}; the seconds sum up to ``layer.seconds - flops_ratio * original.seconds``.

    The factor ``rate`` goes by its cause: in this layer if its products are slower than the original's, else in the original's.
    """
    found = factors(original, layer, machine.peaks)
    flops_ratio = layer.cost.flops_paper / original.cost.flops_paper
    seconds = charged_seconds(layer.seconds, flops_ratio * original.seconds, found)
    cause = rate_cause(layer if found["rate"] > 1 else original, machine)
    return {cause if name == "rate" else name: (found[name], seconds[name]) for name in found}


def reasons(original: Layer, layer: Layer, machine: Machine) -> list[Reason]:
    """Why the layer realised less than its FLOPs saving, what costs most first; empty if it realised all.

    Every factor of at least ``NOTABLE`` that costs time; if none is, the one that costs most.
    """
    flops_ratio = layer.cost.flops_paper / original.cost.flops_paper
    if flops_ratio >= 1 or layer.seconds <= flops_ratio * original.seconds:
        return []
    found = charges(original, layer, machine)
    costly = sorted((c for c in found if found[c][1] > 0), key=lambda c: -found[c][1])
    named = [c for c in costly if found[c][0] >= NOTABLE] or costly[:1]
    return [Reason(c, *found[c], _text(c, found[c][0], original, layer, machine)) for c in named]


def _text(code: str, factor: float, original: Layer, layer: Layer, machine: Machine) -> str:
    peaks = machine.peaks
    if code == "unit":
        speed = peaks.macs[layer.kind] / peaks.macs[original.kind]
        least = layer.macs / original.macs / speed
        return (f"{layer.kind} products run at {speed:.1f}x the rate of {original.kind} ones at best, so this layer can save "
                f"{100 * (1 - least):.0f} %, whatever its FLOPs say ({100 * (1 - _flops_ratio(original, layer)):.0f} %)")
    if code == "algorithm":
        return (f"the original needs {original.unpadded / original.macs:.2f} operations per product ({_algorithm(original)}), this layer "
                f"{layer.unpadded / layer.macs:.2f} ({_algorithm(layer)})")
    if code == "padding":
        return (f"{layer.executed / layer.unpadded:.2f} operations are executed for one that is needed, {original.executed / original.unpadded:.2f} "
                f"in the original")
    if code == "overhead":
        return (f"{100 * layer.overhead_seconds / layer.seconds:.0f} % of its time is padding of maps and logits, "
                f"{100 * original.overhead_seconds / original.seconds:.0f} % in the original")
    here, there = efficiency(layer, peaks), efficiency(original, peaks)
    rates = f"it executes {100 * here:.0f} % of the {layer.kind} peak, the original {100 * there:.0f} % of its"
    if code == DISPATCH:
        share = machine.dispatch_seconds / (layer.product_seconds * layer.images)
        return f"starting a step takes {100 * share:.0f} % of its time; {rates}"
    if code == MEMORY:
        rate = layer.bytes / layer.product_seconds
        share = rate / bandwidth(peaks, layer.working_set)
        return (f"it moves {rate / 1e9:.0f} GB/s, {100 * share:.0f} % of what {peaks.place_of(layer.working_set)} gives at best, with "
                f"{layer.working_set / 1e6:.2f} MB per tile; {rates}")
    return f"{rates}: loads, weights and the epilogue take the rest"


def _algorithm(layer: Layer) -> str:
    return "Winograd" if "winograd" in layer.kernel else "direct"


def _flops_ratio(original: Layer, layer: Layer) -> float:
    return layer.cost.flops_paper / original.cost.flops_paper


def sums_by_code(parts: Mapping[str, float]) -> dict[str, float]:
    """Every code, 0 where nothing was charged."""
    return {code: parts.get(code, 0.0) for code in ALL_CODES}
