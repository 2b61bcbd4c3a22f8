"""Searches for the step size of a uniform grid, from the values that it is to hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SCALE_FLOOR = 2.0**-40  # keeps the scale of a channel or tensor that is zero everywhere positive
_SEARCH_STEPS = 64


def min_max_scale(rows: Tensor, lo: int, hi: int) -> Tensor:
    """The smallest scale that clips nothing, one per row."""
    top, bottom = rows.amax(1) / hi, (rows.amin(1) / lo if lo else torch.zeros_like(rows[:, 0]))
    return torch.maximum(top, bottom).clamp_min(SCALE_FLOOR)


def mse_scale(rows: Tensor, lo: int, hi: int) -> Tensor:
    """The scale of least squared error, one per row: a grid of fractions of the min-max scale, then once finer."""
    full = torch.maximum(min_max_scale(rows, lo, hi), rows.abs().amax(1) / hi)

    def best(candidates: Tensor) -> Tensor:  # [rows, n] -> [rows]
        errors = []
        for s in candidates.T:
            s = s[:, None]
            errors.append(((rows / s).clamp(lo, hi).round() * s - rows).square().mean(1))
        return candidates.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))[:, 0]

    steps = torch.linspace(1.0 / _SEARCH_STEPS, 1.0, _SEARCH_STEPS, device=rows.device)
    coarse = best((full[:, None] * steps).clamp_min(SCALE_FLOOR))
    fine = torch.linspace(-0.75, 0.75, 13, device=rows.device) / _SEARCH_STEPS
    return best((coarse[:, None] + full[:, None] * fine).clamp_min(full[:, None] / (4 * _SEARCH_STEPS)).clamp_min(SCALE_FLOOR))


def lsq_scale(rows: Tensor, lo: int, hi: int) -> Tensor:
    """The initial step of LSQ, 2 mean|v| / sqrt(hi), one per row."""
    return (2 * rows.abs().mean(1) / hi**0.5).clamp_min(SCALE_FLOOR)


SEARCHES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "mse": mse_scale, "min-max": min_max_scale, "lsq": lsq_scale,
}
