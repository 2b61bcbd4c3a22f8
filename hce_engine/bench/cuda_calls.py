"""What a row of a peer is timed with on a GPU: sessions one after the other, on images that are there already or come from the host.

From the host a peer gets the same pixels as our engine, once for all its sessions: they are uploaded as they are through pinned memory,
normalised on the GPU in a CUDA graph, and only logits come back. Uploading normalised float32, four times the bytes, would be no
peer's best form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .cuda_device import Device
from .peers import CudaSession, Runtime

Constants = tuple[np.ndarray, np.ndarray] | None  # scale and offset of networks.normalization


class DeviceCall:
    """Queues sessions on inputs that were loaded; several end in the mean of their logits.

    logits: float32 ``(batch, classes)`` of the last call, static.
    """

    def __init__(self, runtime: Runtime, sessions: Sequence[CudaSession]) -> None:
        self.sessions = tuple(sessions)
        self.logits = torch.zeros(sessions[0].logits.shape, dtype=torch.float32, device=runtime.device)
        self._combine = runtime.prepare(self._mean)

    def _mean(self) -> None:
        total = self.sessions[0].logits.float()
        for session in self.sessions[1:]:
            total = total + session.logits.float()
        self.logits.copy_(total / len(self.sessions))

    def __call__(self) -> None:
        for session in self.sessions:
            session.launch()
        if len(self.sessions) > 1:
            self._combine()

    def result(self) -> Tensor:
        """Float32 logits of the last call, also where there was nothing to average."""
        if len(self.sessions) == 1:
            self._combine()
        return self.logits


class HostCall:
    """images: what our engine gets, uint8 ``(batch, H, W, C)`` or float32 ``(batch, C, H, W)``, in memory of the host.

    constants: of each session's network, None where it does not normalise.  compiled: lets torch.compile fuse the normalisation.
    A call returns float32 logits on the host, ``(batch, classes)``, valid until the next one.
    """

    def __init__(
        self, device: Device, images: np.ndarray, sessions: Sequence[CudaSession], constants: Sequence[Constants], compiled: bool
    ) -> None:
        self.device, self.images = device, images
        runtime, dtype = device.runtime, torch.from_numpy(images[:0]).dtype
        self._network = DeviceCall(runtime, sessions)
        self._staged = device.pinned(images.shape, dtype)
        self._pixels = torch.zeros(images.shape, dtype=dtype, device=runtime.device)
        self._loads = [runtime.prepare(load) for load in
                       (_loader(self._pixels, s.input, c, compiled) for s, c in zip(sessions, constants, strict=True))]
        self._logits = device.pinned(tuple(self._network.logits.shape), torch.float32)

    def __call__(self) -> np.ndarray:
        np.copyto(self._staged.numpy(), self.images)
        self._pixels.copy_(self._staged, non_blocking=True)
        for load in self._loads:
            load()
        self._network()
        self._logits.copy_(self._network.result(), non_blocking=True)
        self.device.wait()
        return self._logits.numpy()


def _loader(pixels: Tensor, input: Tensor, constants: Constants, compiled: bool) -> Callable[[], None]:
    """Fills a session's input from the pixels; ran once, so that what it needs is compiled before it is captured."""
    held = None if constants is None else [torch.from_numpy(c.reshape(1, -1, 1, 1).copy()).to(pixels.device) for c in constants]

    def normalised(images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2) if pixels.dtype == torch.uint8 else images
        x = x.float()
        return (x if held is None else x * held[0] + held[1]).to(input.dtype)

    convert: Callable[[Tensor], Tensor] = normalised
    if compiled:  # as a trace, for the reason that peers/torch_compile.py gives
        convert = torch.compile(torch.fx.symbolic_trace(normalised), fullgraph=True, dynamic=False)

    def load() -> None:
        input.copy_(convert(pixels))

    load()
    return load
