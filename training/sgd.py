"""One step of training: forward, backward, stochastic gradient descent with Nesterov momentum, and its schedules.

A step changes everything in place and never waits for the device, on which also its learning rate and its sums lie; so
that the very same code is captured as a CUDA graph (training/cuda_graph.py). The optimizer is written out because
torch.optim.SGD reads a learning rate that is a tensor back to the host, and its fused form insists on equal strides of
weight and gradient, which kernels of one pixel do not have in channels-last memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import distributed
from .data import Batch
from .recipe import FitSection

Loss = Callable[[Tensor, Batch], Tensor]  # (logits (B, classes), batch) -> scalar, the mean over the batch

ONE_CYCLE_START, ONE_CYCLE_END = 0.1, 1e-3  # of the peak learning rate (arXiv 2006.11487, its published code)


def learning_rate(options: FitSection, step: int, total: int) -> float:
    """The rate of step ``step`` (from 0) of ``total``: see :class:`FitSection` for the schedules."""
    warmup = round(options.warmup * total)
    if options.schedule == "constant":
        low, end = 0.0, 1.0
    elif options.schedule == "one-cycle":
        low, end = ONE_CYCLE_START, ONE_CYCLE_END
    else:
        low, end = 0.0, 0.0
    if step < warmup:
        return options.lr * (low + (1 - low) * (step + 1) / warmup)
    share = (step - warmup) / max(1, total - warmup)
    return options.lr * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share)))


def in_memory_order(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as a vector, without a copy.

    Autograd gives a gradient the strides of its dense parameter, except along axes of length 1; the vectors of the two
    therefore agree element by element, and lists of vectors are what foreach operations run in one kernel.
    """
    return tensor.as_strided((tensor.numel(),), (1,))


class Sgd:
    """SGD with Nesterov momentum; weight decay on matrices and kernels only, not on biases, norms and step sizes.

    With g the gradient plus decay * w:  b = momentum * b + g,  w = w - rate * (g + momentum * b), as torch.optim.SGD
    (Sutskever et al. 2013 in the form without a look-ahead). ``rate`` is a float32 scalar on the parameters' device.
    """

    def __init__(self, module: nn.Module, options: FitSection) -> None:
        trainable = [p for p in module.parameters() if p.requires_grad]
        self.groups = [
            ([p for p in trainable if p.ndim > 1], options.weight_decay),
            ([p for p in trainable if p.ndim <= 1], 0.0),
        ]
        self.momentum = options.momentum
        self.buffers = {p: torch.zeros_like(p, requires_grad=False) for p in trainable} if self.momentum else {}
        self.rate = torch.tensor(options.lr, dtype=torch.float32, device=trainable[0].device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group, _ in self.groups for p in group]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group, decay in self.groups:
            used = [p for p in group if p.grad is not None]
            if used:
                self._update(used, decay)

    def _update(self, used: Sequence[nn.Parameter], decay: float) -> None:
        weights = [in_memory_order(p) for p in used]
        change = tuple(in_memory_order(p.grad) for p in used if p.grad is not None)
        if decay:
            change = torch._foreach_add(change, weights, alpha=decay)
        if self.momentum:
            buffers = [in_memory_order(self.buffers[p]) for p in used]
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, change)
            change = torch._foreach_add(change, buffers, alpha=self.momentum)
        torch._foreach_sub_(weights, torch._foreach_mul(change, self.rate))

    def state(self) -> list[Tensor]:
        """The momentum of every parameter, the tensors themselves."""
        return list(self.buffers.values())

    @torch.no_grad()
    def load(self, state: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.buffers.values(), state, strict=True):
            buffer.copy_(value)


@dataclass(frozen=True)
class Update:
    """What a step reads and changes.

    forward: ``module`` as it is run (compiled, under autocast).  sums: float64 ``(3,)``, loss times images, right
    predictions and images so far, of all processes together.  grad_clip: largest norm of the gradient, 0 for none.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: Sgd
    loss: Loss
    sums: Tensor
    grad_clip: float = 0.0


def step(update: Update, batch: Batch) -> None:
    """One step on ``batch``, this process's share of it."""
    optimizer, count = update.optimizer, len(batch.labels)
    optimizer.zero_grad()
    logits = update.forward(batch.images)
    value = update.loss(logits, batch)
    value.backward()
    distributed.average(update.module, count)
    if update.grad_clip:
        nn.utils.clip_grad_norm_(optimizer.parameters, update.grad_clip)
    optimizer.step()
    right = (logits.detach().argmax(1) == batch.labels).sum().double()
    sums = torch.stack([value.detach().double() * count, right, torch.full_like(right, count)])
    distributed.add_up(sums)
    update.sums.add_(sums)
