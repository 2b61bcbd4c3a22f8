"""The moving average of weights: its formula, and that a network is lent and given back."""

from __future__ import annotations

import torch
from torch import nn

from hce_engine.training.ema import MovingAverage
from hce_engine.training.graph_module import GraphModule

from .float_graphs import residual


def disturb(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(torch.rand(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else 1)


def test_the_average_follows_its_formula() -> None:
    module = GraphModule(residual())
    average = MovingAverage(module, 0.3)
    want = {k: v.clone() for k, v in module.state_dict().items()}
    for t in range(8):
        disturb(module, t)
        average.update(t)
        decay = min(0.3, (1 + t) / (10 + t))
        for key, value in module.state_dict().items():
            want[key] = decay * want[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in average.values.items():
        torch.testing.assert_close(value, want[key])


def test_the_first_weights_do_not_stay() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = MovingAverage(module, 0.999)
    with torch.no_grad():
        module.weight.zero_()
    average.values["weight"].fill_(1.0)
    for t in range(100):
        average.update(t)
    assert float(average.values["weight"]) < 1e-4  # 0.999^100 is 0.90


def test_within_the_block_the_module_is_the_average_and_then_itself_again() -> None:
    module = GraphModule(residual())
    average = MovingAverage(module, 0.9)
    for t in range(3):
        disturb(module, t)
        average.update(t)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    addresses = [v.data_ptr() for v in module.state_dict().values()]
    with average.in_place():
        assert all(torch.equal(v, average.values[k]) for k, v in module.state_dict().items())
        assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [v.data_ptr() for v in module.state_dict().values()] == addresses


def test_what_is_loaded_is_the_average() -> None:
    module = GraphModule(residual())
    first = MovingAverage(module, 0.9)
    disturb(module, 0)
    first.update(0)
    second = MovingAverage(module, 0.9)
    second.load({k: v.clone() for k, v in first.values.items()})
    assert all(torch.equal(v, first.values[k]) for k, v in second.values.items())
