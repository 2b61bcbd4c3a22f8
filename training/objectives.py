"""What the pruned member S learns, given the original O and the quantized member Q.

The paper (arXiv 2301.07794) trains S so that the ensemble of S and Q comes close to O, by a term built from the
*difference* of O and Q; its equations survive only in part. The readings below are reconstructions, named as in the
project's research, and the last one is the control without any ensemble in it. With p(z) = softmax(z / T):

    V1   positive part      T^2 sum_k d_k (log d_k - log p(z_S)_k),  d = max(p(z_O) - p(z_Q), 0)
    V3   logit residual     T^2 KL(p(z_O - z_Q)   || p(z_S))         fixed point z_S + z_Q = z_O
    V4   mean residual      T^2 KL(p(2 z_O - z_Q) || p(z_S))         fixed point (z_S + z_Q) / 2 = z_O
    V5   ensemble match     T^2 KL(p(z_O) || p((z_S + z_Q) / 2))     the stated aim itself
    kd   control            T^2 KL(p(z_O) || p(z_S))                 plain distillation (Hinton)

V1 is what ``F.kl_div`` computed for a target with negative entries until PyTorch 1.11: a sample weighs as much as O and
Q differ. V3 to V5 are proper divergences. The loss is w_ce * CE(z_S, y) + w_diff * term, averaged over the batch; the
paper's lambda is ambiguous between the two weights, so both are given. O and Q are constants: no gradient reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(target) || softmax(logits))."""
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def positive_part(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    difference = ((o / t).softmax(1) - (q / t).softmax(1)).clamp(min=0)
    # xlogy is 0 where the target is 0, which is the limit of d log d.
    return (torch.xlogy(difference, difference) - difference * (s / t).log_softmax(1)).sum(1).mean()


def logit_residual(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence((o - q) / t, s / t)


def mean_residual(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence((2 * o - q) / t, s / t)


def ensemble_match(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence(o / t, (s + q) / (2 * t))


def plain_distillation(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence(o / t, s / t)


READINGS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "V1": positive_part,
    "V3": logit_residual,
    "V4": mean_residual,
    "V5": ensemble_match,
    "kd": plain_distillation,
}


@dataclass(frozen=True)
class EnsembleObjective:
    """w_ce * CE(z_S, y) + w_diff * T^2 * reading(z_S, z_O, z_Q); T^2 keeps the gradient's size independent of T."""

    reading: str
    w_ce: float
    w_diff: float
    temperature: float

    def __call__(self, s: Tensor, o: Tensor, q: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits ``(B, classes)`` and labels int64 ``(B,)``."""
        loss = self.w_ce * F.cross_entropy(s, labels)
        if self.w_diff:
            t = self.temperature
            loss = loss + self.w_diff * t * t * READINGS[self.reading](s, o.detach(), q.detach(), t)
        return loss
