"""Pixels that become a peer's input on the GPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from hce_engine.bench.cuda_calls import _loader


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_every_batch_size_of_a_run_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler keeps 8 versions of a function, and refuses the ninth where no part of it may stay as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    scale, offset = np.float32([0.5, 0.25, 2]), np.float32([1, 2, 3])
    for batch in range(2, 12):
        pixels = torch.randint(0, 256, (batch, 4, 5, 3), dtype=torch.uint8)
        made = torch.zeros((batch, 3, 4, 5)).contiguous(memory_format=torch.channels_last)
        _loader(pixels, made, (scale, offset), compiled=True)
        np.testing.assert_array_equal(made.numpy(), pixels.numpy().transpose(0, 3, 1, 2) * scale[:, None, None] + offset[:, None, None])


def test_planes_and_half_precision() -> None:
    planes, made = torch.rand((2, 3, 4, 5)), torch.zeros((2, 3, 4, 5), dtype=torch.float16)
    load = _loader(planes, made, None, compiled=False)
    assert torch.equal(made, planes.half())
    planes += 1
    load()
    assert torch.equal(made, planes.half())
