"""Grids of weights: one step per output channel, learned (LSQ), or fixed behind a tanh (DoReFa)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantizer import positive, round_ste
from .scales import SCALE_FLOOR, SEARCHES

_LARGEST_START = 2.0  # of a stored weight under tanh, whose slope is 0.07 there
_CONSTANT_CODE = 64  # the weight of a constant 1x1 convolution: its bias is then in 1/64 of an input code


class Weights(nn.Module):
    """A weight with one step per output channel, and the codes it stands for.

    Learned steps are those of LSQ (quantizer.py), codes in [-2^(b-1), 2^(b-1) - 1].

    With ``tanh`` the weights are those of DoReFa (arXiv 1606.06160, eq. 9), which PACT uses too: the stored v stands for
    r tanh(v) / max|tanh(v)|, rounded to hi = 2^(b-1) - 1 steps on either side of 0. Three adaptations: the paper's
    2^b - 1 steps from -1 to 1 have no zero, these do (2 bits are -1, 0, 1); the maximum is that of an output channel, not of
    the layer; and the range r, 1 in the paper, is the largest weight that the channel was given, so that a trained network
    keeps its function. For the same reason v starts at what eq. 9 maps to the given weights. Nothing is left to calibrate.
    """

    weight: Tensor
    weight_step: Tensor
    weight_range: Tensor
    input_scale: Tensor | None

    def init_weights(
        self, weight: Tensor, bits: int, *, input_scale: Tensor | None = None, tanh: bool = False, constant: bool = False,
    ) -> None:
        """weight: float32 [OC, ...].  input_scale: positive, broadcastable to it, multiplies it: what one input code is worth.
        constant: not trained, with codes of about 64 whatever the method is."""
        self.w_lo, self.w_hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        self.w_gradient_scale = (weight.numel() * self.w_hi) ** -0.5
        self.constant, self.tanh = constant, tanh and not constant
        if constant and input_scale is not None:
            weight, input_scale = weight * input_scale, None
        self.register_buffer("input_scale", input_scale, persistent=False)
        if self.tanh:
            self._init_tanh(weight)
            return
        step = weight.flatten(1).abs().amax(1)
        if constant:
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("weight_step", step / _CONSTANT_CODE, persistent=False)
        else:
            self.weight = nn.Parameter(weight)
            self.weight_step = nn.Parameter((step / self.w_hi).clamp_min(SCALE_FLOOR))

    def _init_tanh(self, weight: Tensor) -> None:
        factor = torch.ones_like(weight) if self.input_scale is None else self.input_scale
        largest = (weight * factor).flatten(1).abs().amax(1).clamp_min(SCALE_FLOOR)
        # v of size r, as it was trained, but not so large that tanh is flat there.
        top = _per_channel(largest.clamp_max(_LARGEST_START).tanh() / largest, weight)
        self.weight = nn.Parameter((weight * factor * top).atanh() / factor)
        self.register_buffer("weight_range", largest)

    def latent_weight(self) -> Tensor:
        """The float weight on input codes, as it is stored."""
        return self.weight if self.input_scale is None else self.weight * self.input_scale

    def weight_scale(self) -> Tensor:
        """The step of every output channel, [OC]."""
        return self.weight_range / self.w_hi if self.tanh else positive(self.weight_step, self.w_gradient_scale)

    def real_weight(self) -> Tensor:
        """The float weight on input codes, as it is rounded."""
        w = self.latent_weight()
        if not self.tanh:
            return w
        bent = w.tanh()
        return bent * _per_channel(self.weight_range / bent.flatten(1).abs().amax(1).clamp_min(SCALE_FLOOR), w)

    def round_weight(self, factor: Tensor) -> Tensor:
        """Codes of real_weight * factor[o], factor in units of 1/step."""
        w = self.real_weight()
        return round_ste((w * _per_channel(factor, w)).clamp(self.w_lo, self.w_hi))

    @torch.no_grad()
    def fit_weights(self, search: str) -> None:
        """Sets learned steps by one of SEARCHES."""
        if not self.constant and not self.tanh:
            rows = self.real_weight().flatten(1)
            self.weight_step.copy_(SEARCHES[search](rows, self.w_lo, self.w_hi))


def _per_channel(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (weight.ndim - 1))
