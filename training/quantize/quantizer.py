"""Uniform quantizers with learned step sizes, and the searches that initialise them.

LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020): v_hat = s * round(clip(v / s, lo, hi)); the gradient
passes the rounding straight through, so that d v_hat / d s is round(v/s) - v/s inside the range and lo or hi outside.
The gradient of s is scaled by 1 / sqrt(N * hi), N the number of values that share it (of one image, for activations).
Autograd derives all of it from ``round_ste``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from .layout import Codes

SCALE_FLOOR = 2.0**-40  # keeps the scale of a channel or tensor that is zero everywhere positive
_SEARCH_STEPS = 64
_SAMPLE = 1 << 18  # values that a search looks at, per tensor


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


def floor_half_ste(x: Tensor) -> Tensor:
    """floor(x + 1/2), the rounding of the integer recode; the gradient is that of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


def positive(step: Tensor, gradient_scale: float) -> Tensor:
    """|step|, at least SCALE_FLOOR, whose gradient is multiplied by ``gradient_scale``."""
    s = step.abs().clamp_min(SCALE_FLOOR)
    return (s - s * gradient_scale).detach() + s * gradient_scale


class Quantizer(nn.Module):
    """The grid of one tensor of activations: codes minus zero point, in [lo, hi], times one learned step.

    The real clamp [low, high] of the tensor becomes a bound on codes, round(low / s) and round(high / s): rounding is
    monotone, so clamping codes there equals clamping values first.
    """

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.0))
        self.lo, self.hi = -codes.zero_point, (1 << codes.bits) - 1 - codes.zero_point
        self.low, self.high = codes.low, codes.high
        self.gradient_scale = (prod(codes.shape) * self.hi) ** -0.5

    def scale(self) -> Tensor:
        return positive(self.step, self.gradient_scale)

    def bounds(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest code minus zero point."""
        low, high = scale.new_tensor(self.lo), scale.new_tensor(self.hi)
        if self.low is not None:
            low = torch.maximum(low, round_ste(self.low / scale))
        if self.high is not None:
            high = torch.minimum(high, round_ste(self.high / scale))
        return low, high

    def forward(self, u: Tensor, scale: Tensor, rounding: Callable[[Tensor], Tensor] = round_ste) -> Tensor:
        """Codes minus zero point of the values ``u`` (in units of the step)."""
        if self.low is None and self.high is None:
            return rounding(u.clamp(self.lo, self.hi))
        low, high = self.bounds(scale)
        return rounding(torch.minimum(torch.maximum(u, low), high))

    @torch.no_grad()
    def fit(self, real: Tensor, method: str) -> None:
        """Sets the step for the values ``real`` by one of SEARCHES."""
        values = real.flatten()
        values = values[:: max(1, values.numel() // _SAMPLE)]
        low = max((v for v in (self.low, None if self.lo else 0.0) if v is not None), default=None)
        if low is not None or self.high is not None:
            values = values.clamp(low, self.high)
        self.step.copy_(SEARCHES[method](values[None], self.lo, self.hi)[0])


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
