"""What the pruned member S learns, given the original O and the quantized member Q.

The paper (arXiv 2301.07794) trains S so that the ensemble of S and Q comes close to O, by a term built from the
*difference* of O and Q; its equations survive only in part. The readings below are reconstructions, named as in the
project's research, and the last one is the control without any ensemble in it. With p(z) = softmax(z / T) and the
difference d = p(z_O) - p(z_Q), which sums to 0:

    V0   signed             -T^2 sum_k d_k log p(z_S)_k              no minimum: its gradient in z_S is -T d, always
    V1   positive part      T^2 sum_k e_k (log e_k - log p(z_S)_k),  e = max(d, 0)
    V2   ... normed         T^2 KL(e / sum_k e_k  || p(z_S))         V1 without its weight per image; 0 where e is 0
    V3   logit residual     T^2 KL(p(z_O - z_Q)   || p(z_S))         fixed point z_S + z_Q = z_O
    V4   mean residual      T^2 KL(p(2 z_O - z_Q) || p(z_S))         fixed point (z_S + z_Q) / 2 = z_O
    V4p  ... probabilities  T^2 KL(r / sum_k r_k  || p(z_S)),        r = max(2 p(z_O) - p(z_Q), 0)
    V5   ensemble match     T^2 KL(p(z_O) || p((z_S + z_Q) / 2))     the stated aim itself
    V6   ensemble CE        CE((z_S + z_Q) / 2, y)                   boosting: O is not used
    kd   control            T^2 KL(p(z_O) || p(z_S))                 plain distillation (Hinton)

V1 is what ``F.kl_div`` computed for a target with negative entries until PyTorch 1.11: an image weighs as much as O and
Q differ. V2 to V5 are proper divergences. V0 is bounded by the cross entropy alone, so it needs w_ce > 0. The loss is
w_ce * CE(z_S, y) + w_diff * term, averaged over the batch; the paper's lambda is ambiguous between the two weights, so
both are given. O and Q are constants: no gradient reaches them.
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


def _cross(target: Tensor, s: Tensor, t: float) -> Tensor:
    """Mean over the batch of sum_k target_k (log target_k - log p(s)_k), targets at least 0."""
    # xlogy is 0 where the target is 0, which is the limit of d log d.
    return (torch.xlogy(target, target) - target * (s / t).log_softmax(1)).sum(1).mean()


def _difference(o: Tensor, q: Tensor, t: float) -> Tensor:
    return (o / t).softmax(1) - (q / t).softmax(1)


def signed(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return -(_difference(o, q, t) * (s / t).log_softmax(1)).sum(1).mean()


def positive_part(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _cross(_difference(o, q, t).clamp(min=0), s, t)


def positive_normed(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    positive = _difference(o, q, t).clamp(min=0)
    weight = positive.sum(1, keepdim=True)
    return _cross(torch.where(weight > _SAME, positive / weight.clamp(min=_SAME), 0.0), s, t)


def logit_residual(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence((o - q) / t, s / t)


def mean_residual(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence((2 * o - q) / t, s / t)


def mean_residual_probabilities(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    rest = (2 * (o / t).softmax(1) - (q / t).softmax(1)).clamp(min=0)
    return _cross(rest / rest.sum(1, keepdim=True), s, t)  # the sum is at least 1: the entries add up to 1 before the clamp


def ensemble_match(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence(o / t, (s + q) / (2 * t))


def plain_distillation(s: Tensor, o: Tensor, q: Tensor, t: float) -> Tensor:
    return _divergence(o / t, s / t)


_SAME = 1e-6  # total variation below which O and Q count as equal

# All but V6, which needs the labels instead of T.
_DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "V0": signed,
    "V1": positive_part,
    "V2": positive_normed,
    "V3": logit_residual,
    "V4": mean_residual,
    "V4p": mean_residual_probabilities,
    "V5": ensemble_match,
    "kd": plain_distillation,
}
READINGS = ("V0", "V1", "V2", "V3", "V4", "V4p", "V5", "V6", "kd")
WITHOUT_Q = ("kd",)


@dataclass(frozen=True)
class EnsembleObjective:
    """w_ce * CE(z_S, y) + w_diff * term; labels of cross entropies are smoothed by ``label_smoothing``; T^2 keeps the size of a divergence's gradient independent of T."""

    reading: str
    w_ce: float
    w_diff: float
    temperature: float
    label_smoothing: float = 0.0

    def __call__(self, s: Tensor, o: Tensor, q: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits ``(B, classes)`` and labels int64 ``(B,)``."""
        loss = self.w_ce * F.cross_entropy(s, labels, label_smoothing=self.label_smoothing)
        if not self.w_diff:
            return loss
        o, q, t = o.detach(), q.detach(), self.temperature
        if self.reading == "V6":
            return loss + self.w_diff * F.cross_entropy((s + q) / 2, labels, label_smoothing=self.label_smoothing)
        return loss + self.w_diff * t * t * _DIVERGENCES[self.reading](s, o, q, t)
