"""What a peer on a GPU is: sessions whose input and logits stay there, so that calls can be queued without waiting.

    session.load(images)          as of every session: normalised float32 from the host, copied and converted
    session.launch()              queues one batch on the current stream, from ``input`` to ``logits``; returns at once
    session()                     the same, and waits for the logits on the host

What captures CUDA graphs is the runtime of our back end (:class:`Runtime`), so that peers are captured as we are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from .peer import Network, Peer, Session


class Runtime(Protocol):
    """device: for tensors."""

    @property
    def device(self) -> str: ...

    def prepare(self, run: Callable[[], None]) -> Callable[[], None]:
        """Runs ``run`` once and captures it; returns what repeats it on the current stream."""


class CudaSession(Session):
    """input: static, ``(batch, C, H, W)`` of the peer's type and memory format."""

    def __init__(self, input: Tensor) -> None:
        self.input = input

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Of the last launch, ``(batch, classes)`` of the peer's type; overwritten by the next."""

    @abstractmethod
    def launch(self) -> None:
        """Queues the network on the current stream."""

    def load(self, images: np.ndarray) -> None:
        self.input.copy_(torch.from_numpy(images))

    def __call__(self) -> np.ndarray:
        self.launch()
        return self.logits.float().cpu().numpy()


class CudaPeer(Peer):
    """form: what runs, in a few words.  compiled: whether torch.compile may also fuse what surrounds the network."""

    form: ClassVar[str]
    compiled: ClassVar[bool] = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def describe(self, network: Network) -> str:
        return f"{network.member} {self.form}"

    @abstractmethod
    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> CudaSession:
        """The network on the runtime's GPU. threads, together: without a meaning there."""
