"""The part of the back end that needs a CUDA device: graphs, pinned memory, streams, free memory.

Without Triton until a GPU was found, so that a machine without one can be asked cheaply.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from ...errors import UnsupportedError

OLDEST = (8, 0)  # compute capability: int8 tensor cores as the kernels use them
# From this compute capability on, Triton before 3.7 contracts the product and sum of a logit into one rounding, whatever it
# is told (seen in compiled code): the quantized member would not be exact.
CONTRACTED = (10, 0)
EXACT_TRITON = (3, 7)


def missing() -> str | None:
    """Why this process cannot use a GPU, if it cannot."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__}, which is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    if torch.cuda.get_device_capability() < OLDEST:
        return f"{torch.cuda.get_device_name()} of compute capability {torch.cuda.get_device_capability()}"
    if importlib.util.find_spec("triton") is None:
        return "no Triton"
    import triton

    from ...kernels.launch import INTERPRETED

    release = tuple(map(int, triton.__version__.split(".")[:2]))
    if torch.cuda.get_device_capability() >= CONTRACTED and release < EXACT_TRITON:
        return f"{torch.cuda.get_device_name()} with Triton {triton.__version__}, which fuses multiply-adds there; 3.7 does not"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 in the environment, which keeps kernels from being compiled"
    return None


def require() -> None:
    """Raises UnsupportedError with the reason why this process cannot use a GPU."""
    reason = missing()
    if reason is not None:
        raise UnsupportedError(
            "device cuda", expected=f"a CUDA device of compute capability {OLDEST[0]}.{OLDEST[1]} or more", got=reason,
            fix="use device cpu",
        )


class GpuRuntime:
    """CUDA graphs on the device that is current when this object is made."""

    def __init__(self) -> None:
        require()
        self.index = torch.cuda.current_device()
        self.device = f"cuda:{self.index}"
        self.gpu: str | None = torch.cuda.get_device_name(self.index)
        self._last = torch.cuda.Event()
        self._pinned: dict[tuple[torch.Size, torch.dtype], torch.Tensor] = {}

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.index)
        return free + torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index)

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self.index):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            side.wait_event(self._last)  # of another bucket, which may lie in the same memory and run on another stream
            with torch.cuda.stream(side):
                run()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads may use CUDA meanwhile: the capture concerns this one alone.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                run()
        return graph.replay

    def begin(self) -> None:
        torch.cuda.current_stream(self.index).wait_event(self._last)

    def end(self) -> None:
        self._last.record(torch.cuda.current_stream(self.index))

    def _staging(self, like: torch.Tensor) -> torch.Tensor:
        key = (like.shape, like.dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)
        return self._pinned[key]

    def upload(self, images: np.ndarray, static: torch.Tensor) -> None:
        staging = self._staging(static)
        np.copyto(staging[: len(images)].numpy(), images)
        static[: len(images)].copy_(staging[: len(images)], non_blocking=True)

    def download(self, static: torch.Tensor, rows: np.ndarray) -> None:
        staging = self._staging(static)
        staging[: len(rows)].copy_(static[: len(rows)], non_blocking=True)
        torch.cuda.current_stream(self.index).synchronize()
        rows[:] = staging[: len(rows)].numpy()
