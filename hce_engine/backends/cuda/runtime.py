"""What runs launches: a GPU through CUDA graphs (gpu.py), or, for tests, Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from ...errors import UnsupportedError
from ...kernels.launch import INTERPRETED


class Runtime(Protocol):
    """device: for tensors.  gpu: name of the GPU, whose measured configurations are used; None: defaults."""

    device: str
    gpu: str | None

    def free_bytes(self) -> int:
        """Device memory that can be allocated now."""

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        """Runs ``run`` once, so that everything is compiled, and returns what repeats it on the current stream."""

    def begin(self) -> None:
        """Waits, on the current stream, for the last run: the static tensors are free after this."""

    def end(self) -> None:
        """Notes the end of a run on the current stream."""

    def upload(self, images: np.ndarray, static: torch.Tensor) -> None:
        """Copies host images to the first rows of a static tensor."""

    def download(self, static: torch.Tensor, rows: np.ndarray) -> None:
        """Copies the first rows of a static tensor to host memory, and waits for them."""


class Interpreted:
    """Kernels in Triton's interpreter: slow, exact, and the same code path up to the graph."""

    device: str = "cpu"
    gpu: str | None = None

    def __init__(self) -> None:
        if not INTERPRETED:
            raise UnsupportedError("cuda back end", expected="a CUDA device, or TRITON_INTERPRET=1 set before the start",
                                   got="device cpu with compiled kernels", fix="use the cpu device of the engine")

    def free_bytes(self) -> int:
        return 1 << 62  # the system's own business

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        return run  # there is nothing to compile

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def upload(self, images: np.ndarray, static: torch.Tensor) -> None:
        np.copyto(static[: len(images)].numpy(), images)

    def download(self, static: torch.Tensor, rows: np.ndarray) -> None:
        rows[:] = static[: len(rows)].numpy()
