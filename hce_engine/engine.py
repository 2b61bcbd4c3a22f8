"""Engine: an artifact, ready to take images.

    engine = hce_engine.load("model.hce")
    logits = engine(images)                      # the ensemble: (N, classes) float32
    by_member = engine.members(images)           # {"q": ..., "s": ..., "ensemble": ...}

The ensemble is the mean of the voting members' logits, summed in member order (``backends.reference.mean_logits``); a
row does not depend on the batch around it, the number of threads, or the order in which members ran.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import artifact as artifacts
from .artifact import Artifact
from .backends import reference
from .backends.cpu import CpuBackend
from .errors import InputError, UnsupportedError
from .preprocess import InputSpec, check_images, to_nchw
from .threads import available_threads

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "reference")
CONCURRENCY = ("auto", "sequential", "members")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        kind = UnsupportedError if value == "cuda" else InputError
        raise kind("engine", expected=f"{name} {', '.join(allowed)}", got=repr(value), fix="choose one of them")
    return value


class Engine:
    """Runs all members of an artifact on one device.

    device: ``cpu`` (C++ kernels; ``auto`` means this), or ``reference`` (plain numpy: exact and slow).
    threads: worker threads of the CPU back end; by default what affinity and control group allow.
    concurrency: ``members`` lets threads take tiles of any member (``auto`` means this), ``sequential`` runs one member
    after the other. The bytes of the results are the same.
    isa: instruction set of the CPU back end; by default the environment's HCE_ISA, else the best one.

    Raises UnsupportedError for what this machine cannot do; it never falls back to something slower.
    """

    def __init__(
        self, artifact: Artifact, device: str = "auto", threads: int | None = None, concurrency: str = "auto",
        isa: str | None = None,
    ) -> None:
        self.artifact = artifact
        expected, got = artifact.input.input_node().spec, artifact.graph.input.spec
        if (got.shape, got.dtype) != (expected.shape, expected.dtype):
            raise InputError("engine", expected=f"a graph that takes {expected}, as the input specification says", got=str(got),
                             fix="build both from one model")
        self.device = "cpu" if _choice("device", device, DEVICES) == "auto" else device
        self.concurrency = "members" if _choice("concurrency", concurrency, CONCURRENCY) == "auto" else concurrency
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise InputError("engine", expected="1 to 1024 threads", got=repr(threads), fix="leave it out for all cores")
        self.threads = (threads or available_threads()) if self.device == "cpu" else 1
        self._cpu = CpuBackend(artifact.graph, isa=isa, threads=self.threads) if self.device == "cpu" else None
        self.isa = self._cpu.isa if self._cpu else None

    @property
    def input(self) -> InputSpec:
        return self.artifact.input

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.artifact.graph.members)

    @property
    def plan(self) -> str:
        """The printable plan: every step, its kernel, and why."""
        if self._cpu is None:
            return f"reference: {len(self.artifact.graph.nodes)} numpy operations, one per node"
        return "\n".join(str(plan) for plan in self._cpu.plans)

    def only(self, *names: str) -> Engine:
        """An engine that runs the named members alone; they vote, so that a reference can be measured by itself."""
        if not names:
            raise InputError("engine", expected="a member of " + ", ".join(self.member_names), got="no name",
                             fix="name at least one")
        graph = self.artifact.graph.only(*dict.fromkeys(names))
        graph = replace(graph, members=tuple(replace(m, role="vote") for m in graph.members))
        return Engine(replace(self.artifact, graph=graph), self.device, self.threads, self.concurrency, self.isa)

    def __call__(self, images: np.ndarray | torch.Tensor) -> Any:
        """Ensemble logits, float32 ``(N, classes)``, for a batch as ``self.input`` describes it.

        A numpy array gives a numpy array, a torch tensor (CPU) a torch tensor. Raises InputError for a wrong rank,
        dtype, size or layout. Images that hold NaN or Inf give NaN rows; their neighbours are not touched.
        """
        return self._run(images, ensemble_only=True)["ensemble"]

    def members(self, images: np.ndarray | torch.Tensor) -> dict[str, Any]:
        """Logits of every member, references included, and of the ``ensemble``."""
        return self._run(images, ensemble_only=False)

    def _run(self, images: np.ndarray | torch.Tensor, *, ensemble_only: bool) -> dict[str, Any]:
        torch_module = sys.modules.get("torch")
        as_tensor = torch_module is not None and isinstance(images, torch_module.Tensor)
        if as_tensor:
            tensor: torch.Tensor = images  # type: ignore[assignment]
            if tensor.device.type != "cpu":
                raise InputError("images", expected="a tensor on the CPU", got=f"a tensor on {tensor.device}",
                                 fix="move it with .cpu()")
            try:
                images = tensor.detach().numpy()
            except (TypeError, RuntimeError):  # bfloat16, sparse, a conjugate: what numpy has no word for
                raise InputError("images", expected=f"a dense tensor of {self.input.numpy_dtype}",
                                 got=f"{tensor.layout} {tensor.dtype}", fix="convert it first") from None
        batch = check_images(images, self.input)  # type: ignore[arg-type]
        graph = self.artifact.graph
        voters = [m.name for m in graph.voters]
        if self._cpu is not None:
            names = voters if ensemble_only else None
            logits = self._cpu.run(batch, names=names, concurrent=self.concurrency == "members")
        else:
            logits = reference.run(graph, to_nchw(batch, self.input))
        logits["ensemble"] = reference.mean_logits([logits[name] for name in voters])
        if as_tensor:
            return {name: torch_module.from_numpy(z) for name, z in logits.items()}  # type: ignore[union-attr]
        return logits


def load(
    path: str | Path, device: str = "auto", threads: int | None = None, concurrency: str = "auto",
    isa: str | None = None,
) -> Engine:
    """The engine of a ``.hce`` file; arguments as of :class:`Engine`. Raises ArtifactError for a damaged file."""
    return Engine(artifacts.load(path), device, threads, concurrency, isa)
