"""A moving average of the weights, scored and kept in place of the weights themselves.

After step t the average moves by 1 - d_t towards the weights, d_t = min(decay, (1 + t) / (10 + t)): the growing decay
keeps the first, untrained weights from staying in the average (as TensorFlow's ExponentialMovingAverage does it). The
statistics of batch norms are averaged like weights; counters are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """The average of everything in ``module.state_dict()``; ``decay`` per step, below 1."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = module
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average after step ``step``, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        now = self.module.state_dict()
        moving = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.values[k] for k in moving], [now[k] for k in moving], weight)
        for key in now.keys() - set(moving):
            self.values[key].copy_(now[key])

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for key, value in self.values.items():
            value.copy_(values[key])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module holds the average, in the same tensors; afterwards what it held before, exactly."""
        before = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.values)
        try:
            yield
        finally:
            self.module.load_state_dict(before)
