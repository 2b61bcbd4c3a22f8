"""Grids of weights: one step per output channel, learned (LSQ), or given by the largest weight (DoReFa)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .quantizer import positive, round_ste
from .scales import SCALE_FLOOR, SEARCHES

_CONSTANT_CODE = 64  # the weight of a constant 1x1 convolution: its bias is then in 1/64 of an input code


class Weights(nn.Module):
    """A weight with one step per output channel, and the codes it stands for.

    Learned steps are those of LSQ (quantizer.py), codes in [-2^(b-1), 2^(b-1) - 1].

    With ``tanh`` the weights are those of DoReFa (arXiv 1606.06160, eq. 9), which PACT uses too:
    w -> tanh(w) / max|tanh(w)|, rounded to hi = 2^(b-1) - 1 steps on either side of 0. Three adaptations: the paper's
    2^b - 1 steps from -1 to 1 have no zero, these do (2 bits are -1, 0, 1); maxima are those of an output channel, not of
    the layer; and the result is multiplied by max|w| of the channel, so that a trained network keeps its function where tanh
    is nearly linear. The gradient goes through tanh and both maxima. Nothing is left to calibrate.
    """

    weight: Tensor
    weight_step: Tensor

    def init_weights(self, weight: Tensor, bits: int, *, tanh: bool = False, constant: bool = False) -> None:
        """weight: float32 [OC, ...].  constant: not trained, with codes of about 64 whatever the method is."""
        self.w_lo, self.w_hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        self.w_gradient_scale = (weight.numel() * self.w_hi) ** -0.5
        self.constant, self.tanh = constant, tanh and not constant
        step = weight.flatten(1).abs().amax(1)
        if constant:
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("weight_step", step / _CONSTANT_CODE, persistent=False)
        else:
            self.weight = nn.Parameter(weight)
            if not tanh:
                self.weight_step = nn.Parameter((step / self.w_hi).clamp_min(SCALE_FLOOR))

    def latent_weight(self) -> Tensor:
        """The float weight on input codes, as it is stored."""
        return self.weight

    def weight_scale(self) -> Tensor:
        """The step of every output channel, [OC]."""
        if self.tanh:
            return self.latent_weight().flatten(1).abs().amax(1).clamp_min(SCALE_FLOOR) / self.w_hi
        return positive(self.weight_step, self.w_gradient_scale)

    def real_weight(self) -> Tensor:
        """The float weight on input codes, as it is rounded."""
        w = self.latent_weight()
        if not self.tanh:
            return w
        bent = w.tanh()
        largest = bent.flatten(1).abs().amax(1).clamp_min(SCALE_FLOOR)
        return bent * _per_channel(self.weight_scale() * self.w_hi / largest, w)

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
