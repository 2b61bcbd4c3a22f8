"""Of a whole member: which share of its FLOPs saving became time, and where the rest went.

    realised_share = (1 - t_m / t_o) / (1 - f_m / f_o)

with t seconds and f FLOPs in the paper's convention. What is missing to 1 is charged in seconds, with F = f_m / f_o and L the layers:

    t_m - F t_o  =  sum over L of (t_m,l - f_m,l / f_o,l t_o,l)       by the factors of each layer (factors.py)
                  + sum over L of (f_m,l / f_o,l - F) t_o,l           distribution: FLOPs were saved where they cost little time
                  + rest_m - F rest_o                                 no products: pools, copies, pixels have no FLOPs to save

which is exact for the sums of profiled steps. In shares: each term over (1 - F) t_o.
"""

from __future__ import annotations

from collections.abc import Mapping

from .layers import MemberProfile
from .reasons import Machine, charges, sums_by_code


def realised_share(time_ratio: float, saved_ratio: float) -> float | None:
    """(1 - time_ratio) / (1 - saved_ratio); None if nothing was to be saved."""
    return (1 - time_ratio) / (1 - saved_ratio) if saved_ratio < 1 else None


def charged(original: MemberProfile, member: MemberProfile, machine: Machine) -> dict[str, float]:
    """Seconds per image by code; they sum up to ``member.seconds - flops_ratio * original.seconds``."""
    parts: dict[str, float] = {}

    def add(code: str, seconds: float) -> None:
        parts[code] = parts.get(code, 0.0) + seconds

    ratio = flops_ratio(original, member)
    for name, layer in member.layers.items():
        before = original.layers[name]
        for code, (_, seconds) in charges(before, layer, machine).items():
            add(code, seconds)
        add("distribution", (layer.cost.flops_paper / before.cost.flops_paper - ratio) * before.seconds)
    add("no products", member.rest_seconds - ratio * original.rest_seconds)
    return sums_by_code(parts)


def flops_ratio(original: MemberProfile, member: MemberProfile) -> float:
    """Of all layers, in the paper's convention."""

    def flops(profile: MemberProfile) -> float:
        return sum(layer.cost.flops_paper for layer in profile.layers.values())

    return flops(member) / flops(original)


def lost_shares(seconds: Mapping[str, float], original_seconds: float, ratio: float) -> dict[str, float] | None:
    """Charged seconds as parts of the saving that was promised; None if none was."""
    if ratio >= 1:
        return None
    return {code: value / ((1 - ratio) * original_seconds) for code, value in seconds.items()}


def same_layers(original: MemberProfile, member: MemberProfile) -> bool:
    """Whether both consist of layers of the same names, so that they can be compared one by one."""
    return set(original.layers) == set(member.layers)
