"""What surrounds a captured step, on any machine; and, where there is a CUDA device, that captured steps are steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hce_engine.training import cuda_graph
from hce_engine.training.cuda_graph import CapturedStep, Rehearsal, copy_of, fill, modes, shapes
from hce_engine.training.data import Batch
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.recipe import FitSection
from hce_engine.training.sgd import Sgd, Update, step

from .float_graphs import CLASSES, pictures, residual

OPTIONS = FitSection(epochs=1, lr=0.05, weight_decay=1e-3, grad_clip=5.0)


def batch(count: int = 8, seed: int = 0, device: str = "cpu") -> Batch:
    images = torch.from_numpy(pictures(count, seed=seed)).contiguous(memory_format=torch.channels_last)
    return Batch(images.to(device), (torch.arange(count) % CLASSES).to(device), torch.arange(count, device=device))


def update_of(device: str = "cpu") -> Update:
    module = GraphModule(residual()).to(device).train()
    teacher = GraphModule(residual()).to(device).eval()

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(batch.images).softmax(1)
        return F.cross_entropy(logits, batch.labels) + F.cross_entropy(logits, target)

    sums = torch.zeros(3, dtype=torch.float64, device=device)
    return Update(module, module, Sgd(module, OPTIONS), loss, sums, OPTIONS.grad_clip)


def state(update: Update) -> list[torch.Tensor]:
    return [*update.module.state_dict().values(), *update.optimizer.state(), update.sums]


def test_a_static_batch_has_the_layout_of_its_model_and_takes_other_values() -> None:
    first, second = batch(), batch(seed=1)
    static = copy_of(first)
    address = static.images.data_ptr()
    assert static.images.stride() == first.images.stride() and address != first.images.data_ptr()
    fill(static, second)
    assert torch.equal(static.images, second.images) and static.images.data_ptr() == address
    assert static.variant is None and shapes(static) == shapes(second) != shapes(batch(3))


def test_a_rehearsal_leaves_no_trace() -> None:
    update = update_of()
    step(update, batch())
    before, addresses = [t.clone() for t in state(update)], [t.data_ptr() for t in state(update)]
    with Rehearsal(update):
        step(update, batch(seed=1))
        assert any(not torch.equal(a, b) for a, b in zip(state(update), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state(update), before, strict=True))
    assert [t.data_ptr() for t in state(update)] == addresses
    assert all(p.grad is None for p in update.module.parameters())


def test_modes_tell_frozen_norms_apart() -> None:
    module = GraphModule(residual()).train()
    before = modes(module)
    next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    assert modes(module) != before


def test_a_graph_is_captured_when_its_step_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    captures, eager = [], []

    class Graph:
        def replay(self) -> None:
            pass

    def capture(self: CapturedStep, batch: Batch) -> None:
        captures.append(len(batch.labels))
        self._batch, self._graph = copy_of(batch), Graph()

    monkeypatch.setattr(CapturedStep, "_capture", capture)
    monkeypatch.setattr(cuda_graph, "step", lambda update, batch: eager.append(len(batch.labels)))
    update = update_of()
    run = CapturedStep(update)
    for count in (4, 8, 8, 3, 8):  # a run resumed before the last, smaller batch of an epoch
        run(batch(count))
    assert captures == [4, 8] and eager == [3]
    next(m for m in update.module.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    run(batch(8))
    assert captures == [4, 8, 8]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_are_steps() -> None:
    eager, captured = update_of("cuda"), update_of("cuda")
    run = CapturedStep(captured)
    for i, count in enumerate((8, 8, 3, 8)):
        for update in (eager, captured):
            update.optimizer.rate.fill_(0.05 / (i + 1))
        step(eager, batch(count, seed=i, device="cuda"))
        run(batch(count, seed=i, device="cuda"))
    for a, b in zip(state(eager), state(captured), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
