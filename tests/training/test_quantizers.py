"""Grids by themselves: searches for steps, and the gradients that LSQ, PACT and DoReFa are defined by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d

from hce_engine.training.quantize.layout import Codes
from hce_engine.training.quantize.methods import METHODS
from hce_engine.training.quantize.quantizer import FixedRange, LearnedClip, LearnedStep, floor_half_ste, round_ste
from hce_engine.training.quantize.scales import lsq_scale, min_max_scale, mse_scale
from hce_engine.training.quantize.weights import Weights

GRIDS = [method.activations for method in METHODS.values()]


def error(values: torch.Tensor, scale: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    s = scale[:, None]
    return (((values / s).round().clamp(lo, hi) * s) - values).square().mean(1)


@pytest.mark.parametrize(("lo", "hi"), [(-2, 1), (-4, 3), (-8, 7), (-128, 127), (0, 15), (0, 255)])
def test_scale_searches(lo: int, hi: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 2000) * torch.tensor([1e-6, 0.01, 1, 1, 30, 1e6])[:, None]
    values = values if lo else values.relu()
    loose, best = min_max_scale(values, lo, hi), mse_scale(values, lo, hi)
    clipped = ((values / loose[:, None]).clamp(lo, hi) * loose[:, None] - values).abs().amax(1)
    assert (clipped <= 1e-5 * values.abs().amax(1)).all()
    top = values.abs().amax(1) / hi
    exhaustive = torch.stack([error(values, top * i / 1000, lo, hi) for i in range(5, 1001)]).amin(0)
    assert (error(values, best, lo, hi) <= 1.03 * exhaustive).all()
    torch.testing.assert_close(lsq_scale(values, lo, hi), 2 * values.abs().mean(1) / hi**0.5)


@pytest.mark.parametrize("search", [min_max_scale, mse_scale, lsq_scale])
def test_scales_of_nothing_are_positive(search: Callable[..., torch.Tensor]) -> None:
    scale = search(torch.zeros(3, 50), -8, 7)
    assert (scale > 0).all()
    assert scale.isfinite().all()


def test_a_search_looks_at_all_columns_of_a_map() -> None:
    """Maps whose padded left border is zero, so many that a sample is taken."""
    values = torch.ones(1024, 16, 32, 32)
    values[..., 0] = 0
    quantizer = LearnedStep(Codes((16, 32, 32), 4, 0))
    quantizer.fit(values, "min-max")
    assert quantizer.step.item() * quantizer.hi == pytest.approx(1)


def test_gradients_are_those_of_lsq() -> None:
    quantizer = LearnedStep(Codes((4, 5, 5), 3, 0))
    quantizer.step.data.fill_(0.5)
    v = torch.tensor([-1.0, 0.1, 0.8, 1.9, 3.6, 9.0], requires_grad=True)
    scale = quantizer.scale()
    (quantizer(v / scale, scale) * scale).sum().backward()
    inside = (v >= 0) & (v / 0.5 <= 7)
    torch.testing.assert_close(v.grad, inside.float())
    u = v.detach() / 0.5
    want = torch.where(inside, u.round() - u, torch.where(u < 0, 0.0, 7.0)).sum() / (4 * 5 * 5 * 7) ** 0.5
    torch.testing.assert_close(quantizer.step.grad, want)


def test_a_real_bound_is_a_bound_on_codes() -> None:
    quantizer = LearnedStep(Codes((1,), 8, 0, 0.0, 6.0))
    quantizer.step.data.fill_(0.05)
    scale = quantizer.scale().detach()
    values = torch.linspace(-1, 20, 400)
    want = (values.clamp(0, 6) / 0.05).round()
    torch.testing.assert_close(quantizer(values / scale, scale).detach(), want)
    assert int(quantizer.bounds(scale)[1]) == 120


def test_recode_rounds_half_up() -> None:
    x = torch.tensor([-1.5, -0.5, 0.49, 0.5, 1.5])
    assert floor_half_ste(x).tolist() == [-1, 0, 0, 1, 2]




@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_has_the_same_codes(grid: type[LearnedStep] | type[LearnedClip] | type[FixedRange]) -> None:
    for codes in (Codes((2,), 3, 0), Codes((2,), 8, 128), Codes((2,), 4, 8), Codes((2,), 2, 0, 0.0, 6.0)):
        quantizer, v = grid(codes), torch.linspace(-30, 30, 901)
        quantizer.fit(v, "mse")
        scale = quantizer.scale()
        assert scale.shape == ()
        low, high = -codes.zero_point, 2**codes.bits - 1 - codes.zero_point
        real = v if codes.low is None else v.clamp(codes.low, codes.high)
        want = (real / scale).clamp(low, high).round()
        assert torch.equal(quantizer(v / scale, scale), want)
        quantizer.set_scale(torch.tensor(0.4))
        torch.testing.assert_close(quantizer.scale().detach(), torch.tensor(0.4))
        quantizer.set_scale(torch.tensor(0.0))
        assert quantizer.scale() > 0


def clip_gradient(codes: Codes, clip: float, values: list[float], rounding: Callable = round_ste) -> tuple[float, torch.Tensor]:
    """d/d clip and d/d values of the sum of the quantized values, each times its index + 1."""
    quantizer, v = LearnedClip(codes), torch.tensor(values, requires_grad=True)
    quantizer.set_scale(torch.tensor(clip / quantizer.hi))
    scale = quantizer.scale()
    (quantizer(v / scale, scale, rounding) * scale * torch.arange(1, len(values) + 1)).sum().backward()
    assert quantizer.clip.grad is not None
    assert v.grad is not None
    return quantizer.clip.grad.item(), v.grad


@pytest.mark.parametrize("rounding", [round_ste, floor_half_ste])
def test_only_clipped_values_pull_at_the_clip_of_pact(rounding: Callable) -> None:
    # 1, 2, 4 lie inside (0, 3.5); 8 and 16 are clipped there, and below 0 the value does not depend on the clip.
    gradient, of_values = clip_gradient(Codes((9,), 3, 0), 3.5, [0.3, 1.23, -1.0, 3.1, 3.9, 40.0], rounding)
    assert gradient == pytest.approx(5 + 6, abs=1e-5)
    assert of_values.tolist() == pytest.approx([1, 2, 0, 4, 0, 0])
    # A signed grid of 8 codes reaches from -clip * 4 / 3 to clip.
    gradient, _ = clip_gradient(Codes((9,), 3, 4), 3.0, [0.3, -9.0, 2.2, 9.0], rounding)
    assert gradient == pytest.approx(2 * -4 / 3 + 4, abs=1e-5)
    # What relu6 clips is not clipped by the learned clip of 7.
    gradient, _ = clip_gradient(Codes((9,), 3, 0, 0.0, 6.0), 7.4, [0.3, 6.5, 7.9], rounding)
    assert gradient == pytest.approx(0, abs=1e-5)


def test_pact_is_the_formula_of_the_paper() -> None:
    x, alpha, k = torch.linspace(-2, 6, 333), torch.tensor(3.7), 4
    y = 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    quantizer = LearnedClip(Codes((333,), k, 0))
    quantizer.set_scale(alpha / quantizer.hi)
    scale = quantizer.scale()
    got = (quantizer(x / scale, scale) * scale).detach()
    torch.testing.assert_close(got, (y * (2**k - 1) / alpha).round() * alpha / (2**k - 1))


def test_the_range_of_dorefa_is_no_parameter_but_is_saved() -> None:
    grid = FixedRange(Codes((4,), 4, 0))
    assert not list(grid.parameters())
    assert set(grid.state_dict()) == {"step"}


def weights(values: torch.Tensor, bits: int, **keys: Any) -> Weights:
    module = Weights()
    module.init_weights(values, bits, **keys)
    return module


SPREAD = torch.tensor([0.01, 0.3, 1.0, 40.0]).view(4, 1, 1, 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_tanh_weights(bits: int) -> None:
    torch.manual_seed(bits)
    w, hi = torch.randn(4, 3, 3, 3) * SPREAD, 2 ** (bits - 1) - 1
    module = weights(w, bits, tanh=True)
    scale = module.weight_scale()
    torch.testing.assert_close(scale * hi, w.abs().amax((1, 2, 3)))
    torch.testing.assert_close(module.real_weight().detach(), w)  # the network that was given, whatever tanh does to it
    assert module.weight.abs().amax((1, 2, 3)).tolist() == pytest.approx(w.abs().amax((1, 2, 3)).clamp(max=2).tolist(), rel=1e-3)
    with torch.no_grad():
        module.weight.copy_(torch.randn_like(w))
    bent = module.weight.tanh() / module.weight.tanh().abs().amax((1, 2, 3), keepdim=True)
    codes = module.round_weight(1 / scale)
    torch.testing.assert_close(codes, (bent * hi).round(), atol=1e-4, rtol=0)
    assert codes.abs().amax((1, 2, 3)).tolist() == [hi] * 4
    assert torch.equal(module.round_weight(-1 / scale), -codes)
    module.fit_weights("mse")
    assert torch.equal(module.round_weight(1 / scale), codes)
    assert set(module.state_dict()) == {"weight", "weight_range"}


@pytest.mark.parametrize("tanh", [False, True])
def test_weights_on_pixels_are_scaled_by_channel(tanh: bool) -> None:
    torch.manual_seed(0)
    w, pixels = torch.randn(4, 3, 3, 3) * SPREAD, torch.tensor([0.9, 1.0, 1.1]).view(1, 3, 1, 1)
    module = weights(w, 8, tanh=tanh, input_scale=pixels)
    torch.testing.assert_close(module.real_weight().detach(), w * pixels)
    module.fit_weights("min-max")
    steps = module.weight_scale().view(4, 1, 1, 1)
    assert ((module.round_weight(1 / module.weight_scale()) * steps - w * pixels).abs() <= 0.51 * steps).all()


def test_gradient_of_tanh_weights_passes_rounding_straight_through() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(2, 5), torch.randn(2, 5)
    module = weights(w, 3, tanh=True)
    scale = module.weight_scale()
    (module.round_weight(1 / scale) * scale[:, None] * g).sum().backward()
    v = module.weight.detach().clone().requires_grad_()
    (v.tanh() / v.tanh().abs().amax(1, keepdim=True) * w.abs().amax(1, keepdim=True) * g).sum().backward()
    torch.testing.assert_close(module.weight.grad, v.grad)


@pytest.mark.parametrize("tanh", [False, True])
def test_weights_of_nothing_have_codes_of_nothing(tanh: bool) -> None:
    module = weights(torch.zeros(2, 3, 1, 1), 4, tanh=tanh)
    module.fit_weights("mse")
    codes = module.round_weight(1 / module.weight_scale())
    assert not codes.any()
    conv2d(torch.ones(1, 3, 2, 2), codes).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
