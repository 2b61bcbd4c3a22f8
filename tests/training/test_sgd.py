"""One step: the optimizer beside PyTorch's, schedules, and what a CUDA graph demands of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hce_engine.training.data import Batch
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.quantize import QuantModule, calibrate
from hce_engine.training.recipe import FitSection
from hce_engine.training.sgd import Sgd, Update, in_memory_order, learning_rate, step

from .float_graphs import CLASSES, GRAPHS, pictures, residual

OPTIONS = FitSection(epochs=3, lr=0.05, batch_size=8, weight_decay=1e-3, grad_clip=5.0)


def batch(count: int = 8, seed: int = 0) -> Batch:
    labels = torch.arange(count) % CLASSES
    images = torch.from_numpy(pictures(count, seed=seed)).contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, torch.arange(count))


def batch_without_values() -> Batch:
    numbers = torch.zeros(8, dtype=torch.int64, device="meta")
    return Batch(torch.empty(8, 3, 12, 12, dtype=torch.uint8, device="meta"), numbers, numbers)


def update_of(module: nn.Module, options: FitSection = OPTIONS, **changes) -> Update:
    keys = {
        "forward": module, "optimizer": Sgd(module, options), "loss": lambda z, b: F.cross_entropy(z, b.labels),
        "sums": torch.zeros(3, dtype=torch.float64), "grad_clip": options.grad_clip,
    }
    return Update(module, **{**keys, **changes})


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 1e-2), (0.9, 0.0), (0.0, 1e-2)])
def test_steps_are_those_of_torch(momentum: float, decay: float) -> None:
    options = replace(OPTIONS, momentum=momentum, weight_decay=decay)
    ours, theirs = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)) for _ in range(2))
    ours.to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.state_dict())
    mine = Sgd(ours, options)
    reference = torch.optim.SGD([
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in theirs.parameters() if p.ndim <= 1]},
    ], lr=1.0, momentum=momentum, nesterov=momentum > 0)
    for i in range(5):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i))
        for network, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            network(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        mine.rate.fill_(0.1 / (i + 1))
        for group in reference.param_groups:
            group["lr"] = 0.1 / (i + 1)
        mine.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_memory_order_is_the_same_for_a_parameter_and_its_gradient() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    network(torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)).sum().backward()
    for p in network.parameters():
        assert p.grad is not None
        p.grad.copy_(p.detach())
        assert torch.equal(in_memory_order(p), in_memory_order(p.grad))
        assert in_memory_order(p).data_ptr() == p.data_ptr()


def test_momentum_comes_back() -> None:
    module = GraphModule(residual())
    update = update_of(module)
    step(update, batch())
    again = Sgd(module, OPTIONS)
    assert not any(b.any() for b in again.state())
    again.load([b.clone() for b in update.optimizer.state()])
    assert all(torch.equal(a, b) for a, b in zip(again.state(), update.optimizer.state(), strict=True))


def test_a_step_adds_up_loss_and_right_predictions() -> None:
    module = GraphModule(residual()).train()
    update = update_of(module)
    with torch.no_grad():
        logits = GraphModule(residual()).train()(batch().images)
    step(update, batch())
    loss, right, count = update.sums.tolist()
    assert count == 8 and right == int((logits.argmax(1) == batch().labels).sum())
    assert loss == pytest.approx(8 * float(F.cross_entropy(logits, batch().labels)), rel=1e-5)


class OneDevice(TorchDispatchMode):
    """Fails where a tensor of the host takes part. Nothing on the meta device has a value that could be read back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", func
        return result


class NoValues(TorchFunctionMode):
    """Fails where a tensor is made of a Python value, which a device gets by a copy from the host that it waits for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in ("tensor", "as_tensor", "new_tensor", "from_numpy", "asarray"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_step_exchanges_nothing_with_the_host(graph: str, quantized: bool) -> None:
    network = GRAPHS[graph]()
    module = (QuantModule(network, 4, 4) if quantized else GraphModule(network)).to("meta").train()
    update = update_of(module, sums=torch.zeros(3, dtype=torch.float64, device="meta"))
    with OneDevice(), NoValues():
        step(update, batch_without_values())


@pytest.mark.parametrize("bad", [
    lambda z: z * float(z.sum()), lambda z: z + z.new_tensor(1.0), lambda z: z + torch.tensor(1.0, device=z.device),
    lambda z: z[z > 0], lambda z: z + torch.ones(5).to(z.device),
])
def test_that_test_sees_reads_and_writes(bad: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = GraphModule(residual()).to("meta").train()
    update = update_of(module, sums=torch.zeros(3, dtype=torch.float64, device="meta"), loss=lambda z, b: bad(z).sum())
    with OneDevice(), NoValues(), pytest.raises((AssertionError, RuntimeError)):
        step(update, batch_without_values())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_step_replaces_no_tensor(quantized: bool) -> None:
    module: nn.Module = GraphModule(residual())
    if quantized:
        module = QuantModule(residual(), 4, 4)
        calibrate(module, torch.from_numpy(pictures(8)))
    update = update_of(module.train())

    def held() -> list[int]:
        tensors = [*module.parameters(), *module.buffers(), *update.optimizer.state(), update.sums]
        return [t.data_ptr() for t in tensors]

    before = held()
    step(update, batch())
    assert held() == before


def test_weight_decay_spares_norms_and_biases() -> None:
    module = GraphModule(residual())
    (decayed, decay), (spared, none) = Sgd(module, OPTIONS).groups
    assert decay == OPTIONS.weight_decay and none == 0
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim == 1 for p in spared)
    assert len(decayed) + len(spared) == len(list(module.parameters()))


def test_cosine_warms_up_linearly_and_ends_near_zero() -> None:
    options = FitSection(epochs=1, lr=1.0, warmup=0.1)
    rates = [learning_rate(options, i, 100) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_one_cycle_starts_at_a_tenth_and_ends_at_a_thousandth() -> None:
    options = FitSection(epochs=1, lr=2.0, warmup=0.25, schedule="one-cycle")
    rates = [learning_rate(options, i, 1000) for i in range(1000)]
    assert rates[0] == pytest.approx(0.2, rel=0.05) and max(rates) == 2.0
    assert rates[-1] == pytest.approx(0.002, rel=0.01)


def test_constant_is_constant() -> None:
    options = FitSection(epochs=1, lr=0.3, schedule="constant")
    assert {learning_rate(options, i, 50) for i in range(50)} == {0.3}
