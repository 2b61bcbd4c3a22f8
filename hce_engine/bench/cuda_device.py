"""The GPU under a comparison: what our engine, peers, timers and the report need of it. Tests have one of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from ..arithmetic import IEEE
from ..backends.cuda import gpu
from ..backends.cuda.backend import CudaBackend
from ..graph import Graph
from ..plan.cuda.arena import MAX_BATCH
from .cuda_clocks import Clocks, ask
from .cuda_timer import CudaEvents
from .peers import Runtime
from .turns import HostClock, Timer

_SMI = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "persistence_mode", "ecc.mode.current", "mig.mode.current")


class Backend(Protocol):
    """What is timed of backends.cuda.backend.CudaBackend."""

    def warm_up(self, batches: Iterable[int]) -> None: ...

    def run(self, images: np.ndarray | torch.Tensor, *, ensemble_only: bool = False) -> dict[str, Any]: ...

    def timing(self, batch: int) -> Any:
        """What warming up measured of the ways to run an ensemble, with ``to_json()``; None where there was nothing to measure."""


class Device(Protocol):
    """runtime: of peers.  arithmetic: of our float members.  name: of the card."""

    runtime: Runtime
    arithmetic: str
    name: str

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the GPU can reach."""

    def wait(self) -> None:
        """The host waits for the current stream."""

    def backend(self, graph: Graph) -> Backend:
        """Our engine for a graph whose members all vote."""

    def events(self) -> Timer:
        """For calls that queue work on the GPU and return."""

    def clock(self) -> Timer:
        """For calls that return when their results are on the host."""

    def clocks(self) -> AbstractContextManager[Clocks]:
        """Samples the card's clocks while something runs."""

    def facts(self) -> dict[str, Any]:
        """Card, driver and what torch was built with."""

    def release(self) -> None:
        """Gives memory of objects that are gone back to the GPU."""


class Gpu:
    """The current CUDA device. Raises UnsupportedError without one."""

    def __init__(self, arithmetic: str = IEEE, max_batch: int | None = None) -> None:
        self.runtime: Runtime = gpu.GpuRuntime()
        self.arithmetic, self.index = arithmetic, torch.cuda.current_device()
        self.max_batch = MAX_BATCH if max_batch is None else max_batch
        self._properties = torch.cuda.get_device_properties(self.index)
        self.name = self._properties.name
        self._id = f"GPU-{self._properties.uuid}"  # nvidia-smi counts GPUs that this process may not see

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def wait(self) -> None:
        torch.cuda.current_stream(self.index).synchronize()

    def backend(self, graph: Graph) -> Backend:
        return CudaBackend(graph, arithmetic=self.arithmetic, max_batch=self.max_batch)

    def events(self) -> Timer:
        return CudaEvents(self.index)

    def clock(self) -> Timer:
        return HostClock()

    def clocks(self) -> Clocks:
        return Clocks(self._id)

    def facts(self) -> dict[str, Any]:
        p = self._properties
        return {
            "name": p.name, "compute_capability": [p.major, p.minor], "multiprocessors": p.multi_processor_count, "memory_bytes": p.total_memory,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nvidia_smi": ask(_SMI, self._id),
        }

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
