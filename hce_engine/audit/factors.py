"""Why a layer's time did not fall as its FLOPs did: one product of factors that is exact, and the seconds behind each.

Let o be the original's layer and m the member's, t seconds, f FLOPs, n products that count, u operations of the kernel's algorithm,
e those executed (plan/cpu/work.py), P the measured peak of their kind, k the seconds of the products' steps. With r = e / (P k), the
share of the peak that they reach,

    t_m / t_o  =  f_m / f_o  *  unit * algorithm * padding * rate * overhead

    unit        (n_m / P_m) / (n_o / P_o) / (f_m / f_o)   what these products cost at the peaks, against what FLOPs say
    algorithm   (u_m / n_m) / (u_o / n_o)                 Winograd on one side only, or at widths where it saves less
    padding     (e_m / u_m) / (e_o / u_o)                 channels padded to units, tiles partly filled
    rate        r_o / r_m                                 operations per second, as a share of the peak
    overhead    (t_m / k_m) / (t_o / k_o)                 halos and logits around the products

A factor above 1 costs time that FLOPs do not show, one below 1 saves some. With a = t_m and b = f_m / f_o t_o each is charged with
the seconds ln(factor) * (a - b) / (ln a - ln b): they sum up to a - b exactly, in whatever order (the logarithmic mean Divisia index,
Ang, Energy Policy 32, 2004). So a layer may lose by one factor and gain by another at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from ..peaks import Peaks
from .layers import Layer

_SAME = 1e-12  # below it the logarithmic mean is the value itself
CODES = ("unit", "algorithm", "padding", "rate", "overhead")


def efficiency(layer: Layer, peaks: Peaks) -> float:
    """Executed operations per second of the products' steps, as a share of the peak of their kind."""
    return layer.executed / (peaks.macs[layer.kind] * layer.product_seconds)


def factors(original: Layer, layer: Layer, peaks: Peaks) -> dict[str, float]:
    """The five factors by name; their product times the FLOPs ratio is the time ratio."""
    flops = layer.cost.flops_paper / original.cost.flops_paper

    def at_peak(one: Layer) -> float:
        return one.macs / peaks.macs[one.kind]

    return {
        "unit": at_peak(layer) / at_peak(original) / flops,
        "algorithm": layer.unpadded / layer.macs / (original.unpadded / original.macs),
        "padding": layer.executed / layer.unpadded / (original.executed / original.unpadded),
        "rate": efficiency(original, peaks) / efficiency(layer, peaks),
        "overhead": layer.seconds / layer.product_seconds / (original.seconds / original.product_seconds),
    }


def charged_seconds(seconds: float, expected: float, found: Mapping[str, float]) -> dict[str, float]:
    """What each factor adds to ``expected`` seconds so that they become ``seconds``; the factors' product is their ratio."""
    ratio = log(seconds / expected)
    mean = (seconds - expected) / ratio if abs(ratio) > _SAME else expected
    return {name: mean * log(factor) for name, factor in found.items()}
