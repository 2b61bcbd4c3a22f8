"""Grids of activations: one step per tensor, learned as LSQ or PACT learn it, or fixed as DoReFa fixes it.

All three round v to s * q with q = round(clip(v / s, lo, hi)), so that all freeze to the same integers; zero is a code,
because padded pixels, pruned channels and the output of a ReLU are zeros. They differ in what s learns from, g being
the gradient that arrives:

    LSQ     Esser et al., "Learned Step Size Quantization", ICLR 2020. d/ds = g (q - v/s) inside the range, g lo or g hi
            outside, times 1 / sqrt(N hi), N the number of values of one image.
    PACT    Choi et al., "PACT: Parameterized Clipping Activation", arXiv 1805.06085. The parameter is the clip
            alpha = s hi; d/dalpha = g where v >= alpha and 0 inside: only clipped values pull. The paper clips ReLUs from 0
            to alpha; a signed tensor is clipped at alpha lo / hi below as well, with d/dalpha = g lo / hi there.
    DoReFa  Zhou et al., arXiv 1606.06160. No gradient. The paper's range is [0, 1], for networks that are trained
            from scratch behind that clip; a trained network does not live in [0, 1], so the range is what calibration found.

Autograd derives the first from ``round_ste``; the second adds what cancels the rounding error's share of the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from .layout import Codes
from .scales import SCALE_FLOOR, SEARCHES

_SAMPLE = 1 << 18  # values that a search looks at, per tensor

Rounding = Callable[[Tensor], Tensor]


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


class Quantizer(nn.Module, ABC):
    """The grid of one tensor of activations: codes minus zero point, in [lo, hi], times one step.

    The real clamp [low, high] of the tensor becomes a bound on codes, round(low / s) and round(high / s): rounding is
    monotone, so clamping codes there equals clamping values first.
    """

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.lo, self.hi = -codes.zero_point, (1 << codes.bits) - 1 - codes.zero_point
        self.low, self.high = codes.low, codes.high

    @abstractmethod
    def scale(self) -> Tensor:
        """The step: positive, float32, a scalar tensor."""

    @abstractmethod
    def set_scale(self, scale: Tensor) -> None:
        """Makes ``scale`` the step, without a gradient."""

    def rounded(self, u: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        """``u``, in units of the step, on integers, with the gradient that the method gives to rounding."""
        return rounding(u)

    def bounds(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest code minus zero point."""
        low, high = torch.full_like(scale, self.lo), torch.full_like(scale, self.hi)
        if self.low is not None:
            low = torch.maximum(low, self.rounded(self.low / scale, scale, round_ste))
        if self.high is not None:
            high = torch.minimum(high, self.rounded(self.high / scale, scale, round_ste))
        return low, high

    def forward(self, u: Tensor, scale: Tensor, rounding: Rounding = round_ste) -> Tensor:
        """Codes minus zero point of the values ``u`` (in units of the step)."""
        if self.low is None and self.high is None:
            return self.rounded(u.clamp(self.lo, self.hi), scale, rounding)
        low, high = self.bounds(scale)
        return self.rounded(torch.minimum(torch.maximum(u, low), high), scale, rounding)

    @torch.no_grad()
    def fit(self, real: Tensor, search: str) -> None:
        """Sets the step for the values ``real`` by one of SEARCHES."""
        values = real.flatten()
        if values.numel() > _SAMPLE:
            # Drawn, not every n-th: a stride that divides a map's width would look at one column of it, a padded border.
            index = torch.randint(values.numel(), (_SAMPLE,), generator=torch.Generator().manual_seed(0))
            values = values[index.to(values.device)]
        low = max((v for v in (self.low, None if self.lo else 0.0) if v is not None), default=None)
        if low is not None or self.high is not None:
            values = values.clamp(low, self.high)
        self.set_scale(SEARCHES[search](values[None], self.lo, self.hi)[0])


class LearnedStep(Quantizer):
    """LSQ: the step is the parameter."""

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes)
        self.step = nn.Parameter(torch.tensor(1.0))
        self.gradient_scale = (prod(codes.shape) * self.hi) ** -0.5

    def scale(self) -> Tensor:
        return positive(self.step, self.gradient_scale)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        self.step.copy_(scale)


class LearnedClip(Quantizer):
    """PACT: the parameter is the largest real value, ``clip`` = step * hi. The paper decays it (L2), which
    this project's optimizer does to matrices and kernels only."""

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes)
        self.clip = nn.Parameter(torch.tensor(float(self.hi)))

    def scale(self) -> Tensor:
        return (self.clip.abs() / self.hi).clamp_min(SCALE_FLOOR)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        self.clip.copy_(scale * self.hi)

    def rounded(self, u: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        """Of s * round(v / s), d/ds is 0: to LSQ's gradient, d round(u) / ds = -u / s, -(round(u) - u) / s is added."""
        codes = rounding(u)
        return codes + (codes - u).detach() * (1 - scale / scale.detach())


class FixedRange(Quantizer):
    """DoReFa: the step is what calibration set, and is not trained."""

    step: Tensor

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes)
        self.register_buffer("step", torch.tensor(1.0))

    def scale(self) -> Tensor:
        return self.step.clamp_min(SCALE_FLOOR)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        self.step.copy_(scale)
