"""What a peer is: another engine that can run the same float network, in its best form, on so many threads.

    session = peer.build(network, batch, threads)     conversion, quantization, compilation; not timed
    session.load(images)                              float32 NCHW, normalised; copied to where the session reads it
    logits = session()                                what is timed: one batch, from that input to logits
    peer.profile(network, batch, threads, calls)      seconds per layer, in a session of its own: profiling costs time

A peer object lives for one run and keeps what is worth keeping of a network between thread counts and batch sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph

INSTALL = "pip install 'hce-engine[peers]'"


@dataclass(frozen=True, eq=False)
class Network:
    """A float32 member as peers get it.

    member: its name.  graph: one member, batch norms folded, no normalisation: its input is the normalised map.
    calibration: normalised float32 ``(N, C, H, W)`` that int8 peers choose their ranges from.
    """

    member: str
    graph: Graph
    calibration: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph.input.spec.shape

    @property
    def classes(self) -> int:
        return self.graph[self.graph.members[0].output].spec.shape[0]


@dataclass(frozen=True)
class LayerTime:
    """Seconds per batch of one step of a peer's compiled network.

    name: the peer's name of it, which contains the name of a graph node as far as the peer kept it.  kind: the operation.
    kernel: the implementation that ran, "" where the peer does not say.
    """

    name: str
    kind: str
    kernel: str
    seconds: float


class Session(ABC):
    """A network compiled for one batch size and one number of threads."""

    @abstractmethod
    def load(self, images: np.ndarray) -> None:
        """Copies a whole batch, normalised float32 ``(batch, C, H, W)``, to where calls read it."""

    @abstractmethod
    def __call__(self) -> np.ndarray:
        """Logits of the loaded batch, float32 ``(batch, classes)``; valid until the next call."""


class Peer(ABC):
    """One engine in one precision.

    name: as in ``--peers`` and in reports.  precision: ``fp32``, ``int8`` or, on a GPU, ``tf32``, ``fp16`` or ``bf16``.  float_peer: name of the peer that runs float
    members beside an int8 one, for ensembles.  packages: distributions that must be installed.
    isa_variables: environment variables that hold it to an instruction set; none if it has no such switch.
    own_threads: whether each session has threads of its own, which may spin for a while after a call.  install: how to get the packages.
    """

    name: ClassVar[str]
    precision: ClassVar[str]
    float_peer: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    isa_variables: ClassVar[tuple[str, ...]] = ()
    own_threads: ClassVar[bool] = False
    install: ClassVar[str] = INSTALL

    def missing(self) -> str | None:
        """Why this peer cannot run here, or None."""
        absent = [name for name in self.packages if _version(name) is None]
        return f"{', '.join(absent)} not installed; {self.install}" if absent else None

    def versions(self) -> dict[str, str]:
        """Version of each installed package it consists of."""
        return {name: found for name in self.packages if (found := _version(name)) is not None}

    @abstractmethod
    def describe(self, network: Network) -> str:
        """What exactly runs, in a few words for the report."""

    @abstractmethod
    def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
        """The network, ready to run; whatever the peer raises goes to the caller.

        together: its calls alternate with those of another session, so its threads must not spin when a call is over.
        """

    def profile(self, network: Network, batch: int, threads: int, calls: int) -> tuple[LayerTime, ...]:
        """Seconds per step, averaged over ``calls`` runs of one batch of calibration images; UnsupportedError without a profiler."""
        raise UnsupportedError(f"profile of {self.name}", expected="a peer with a profiler per layer", got="one without",
                               fix="ask OpenVINO or ONNX Runtime")


def first_batch(network: Network, batch: int) -> np.ndarray:
    """A batch of calibration images, repeated as often as needed."""
    return np.ascontiguousarray(np.resize(network.calibration, (batch, *network.shape)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
