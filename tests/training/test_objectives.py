"""The readings of the HCE objective: fixed points, gradients and the arithmetic of a case by hand."""

import math

import pytest
import torch

from hce_engine.training.objectives import READINGS, WITHOUT_Q, EnsembleObjective

O_LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.0]])
Q_LOGITS = torch.tensor([[0.5, 1.0, -1.0], [0.0, 1.0, 0.3]])
LABELS = torch.tensor([0, 1])


def term(reading, s, o=O_LOGITS, q=Q_LOGITS, temperature=1.0):
    """The reading alone, without T^2."""
    return EnsembleObjective(reading, 0.0, 1.0, temperature)(s, o, q, LABELS[: len(s)]) / temperature**2


def gradient(reading, s, temperature=2.0):
    s = s.clone().requires_grad_()
    EnsembleObjective(reading, 0.0, 1.0, temperature)(s, O_LOGITS, Q_LOGITS, LABELS).backward()
    return s.grad


@pytest.mark.parametrize(
    ("reading", "fixed_point"), [("V3", O_LOGITS - Q_LOGITS), ("V4", 2 * O_LOGITS - Q_LOGITS), ("V5", 2 * O_LOGITS - Q_LOGITS), ("kd", O_LOGITS)]
)
def test_fixed_point_has_no_loss_and_no_gradient(reading, fixed_point):
    # A constant added to all logits of an image changes nothing.
    s = fixed_point + torch.tensor([[3.0], [-1.0]])
    assert term(reading, s, temperature=2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert gradient(reading, s).abs().max() < 1e-6
    assert gradient(reading, s + torch.tensor([1.0, 0.0, 0.0])).abs().max() > 1e-2


def test_positive_part_by_hand():
    o, q, s = (torch.log(torch.tensor([row])) for row in ([0.7, 0.3], [0.4, 0.6], [0.5, 0.5]))
    # d = (0.3, 0): 0.3 * (log 0.3 - log 0.5)
    assert term("V1", s, o, q).item() == pytest.approx(0.3 * (math.log(0.3) - math.log(0.5)), rel=1e-5)


def test_signed_by_hand_and_its_constant_push():
    o, q, s = (torch.log(torch.tensor([row])) for row in ([0.7, 0.3], [0.4, 0.6], [0.8, 0.2]))
    # d = (0.3, -0.3): -(0.3 log 0.8 - 0.3 log 0.2)
    assert term("V0", s, o, q).item() == pytest.approx(-0.3 * (math.log(0.8) - math.log(0.2)), rel=1e-5)
    t = 2.0
    push = -t * ((O_LOGITS / t).softmax(1) - (Q_LOGITS / t).softmax(1)) / len(O_LOGITS)
    for s in (torch.zeros(2, 3), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))):
        torch.testing.assert_close(gradient("V0", s, t), push)


def test_normed_positive_part_by_hand():
    o, q, s = (torch.log(torch.tensor([row])) for row in ([0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.5, 0.25, 0.25]))
    # d = (0.3, 0.2, -0.5) -> (0.6, 0.4, 0)
    want = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.25)
    assert term("V2", s, o, q).item() == pytest.approx(want, rel=1e-5)
    assert term("V2", s, o, o).item() == 0.0  # O and Q agree: nothing to learn


def test_mean_residual_in_probabilities_by_hand():
    o, q, s = (torch.log(torch.tensor([row])) for row in ([0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.5, 0.25, 0.25]))
    # 2 p_o - p_q = (0.8, 0.5, -0.3) -> (8, 5, 0) / 13
    want = 8 / 13 * math.log(8 / 13 / 0.5) + 5 / 13 * math.log(5 / 13 / 0.25)
    assert term("V4p", s, o, q).item() == pytest.approx(want, rel=1e-5)


def test_ensemble_cross_entropy_is_of_the_mean_and_ignores_o_and_temperature():
    s = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.9]])
    want = torch.nn.functional.cross_entropy((s + Q_LOGITS) / 2, LABELS)
    for t in (1.0, 4.0):
        torch.testing.assert_close(EnsembleObjective("V6", 0.0, 1.0, t)(s, O_LOGITS * 9, Q_LOGITS, LABELS), want)


def test_positive_part_gradient_is_total_variation_times_the_gap():
    # d/ds of -sum d log p is (sum d) p - d, per image over the batch, times T^2 / T.
    s, t = torch.tensor([[0.1, 0.2, 0.3], [1.0, 0.0, 0.0]]), 2.0
    d = ((O_LOGITS / t).softmax(1) - (Q_LOGITS / t).softmax(1)).clamp(min=0)
    want = t * (d.sum(1, keepdim=True) * (s / t).softmax(1) - d) / len(s)
    torch.testing.assert_close(gradient("V1", s, t), want)


def test_plain_distillation_ignores_q():
    assert WITHOUT_Q == ("kd",)
    assert term("kd", Q_LOGITS, temperature=3.0) == term("kd", Q_LOGITS, q=O_LOGITS * 100, temperature=3.0)
    assert all(term(r, Q_LOGITS) != term(r, Q_LOGITS, q=O_LOGITS + 1.5 * Q_LOGITS) for r in READINGS if r != "kd")


@pytest.mark.parametrize("reading", READINGS)
def test_teachers_get_no_gradient(reading):
    s, o, q = (x.clone().requires_grad_() for x in (Q_LOGITS * 0.5, O_LOGITS, Q_LOGITS))
    EnsembleObjective(reading, 0.3, 0.7, 4.0)(s, o, q, LABELS).backward()
    assert o.grad is None and q.grad is None and torch.isfinite(s.grad).all()


@pytest.mark.parametrize("reading", READINGS)
def test_saturated_logits_stay_finite(reading):
    s = torch.tensor([[80.0, -80.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = EnsembleObjective(reading, 0.4, 0.6, 1.0)(s, O_LOGITS * 60, Q_LOGITS * 60, LABELS)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(s.grad).all()


def test_weights_and_temperature_scale_the_terms():
    s = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.9]])
    ce = torch.nn.functional.cross_entropy(s, LABELS)
    match = term("V5", s, temperature=4.0)
    torch.testing.assert_close(EnsembleObjective("V5", 0.2, 0.8, 4.0)(s, O_LOGITS, Q_LOGITS, LABELS), 0.2 * ce + 0.8 * 16 * match)
