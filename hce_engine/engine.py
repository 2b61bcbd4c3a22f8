"""Engine: an artifact, ready to take images.

    engine = hce_engine.load("model.hce")
    logits = engine(images)                      # the ensemble: (N, classes) float32
    by_member = engine.members(images)           # {"q": ..., "s": ..., "ensemble": ...}

The ensemble is the mean of the voting members' logits, summed in member order (``backends.reference.mean_logits``); a
row does not depend on the batch around it, the number of threads, or the order in which members ran.

    engine = hce_engine.load("model.hce", device="cuda", members=("q",))       # quantized members run on a GPU
    logits = engine(images.cuda())               # computed on the current stream, and stays on the GPU
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import artifact as artifacts
from .arithmetic import IEEE, check_arithmetic
from .artifact import Artifact
from .backends import reference
from .backends.cpu import CpuBackend
from .errors import InputError, UnsupportedError
from .graph import Graph
from .preprocess import InputSpec, check_images, to_nchw
from .threads import available_threads

if TYPE_CHECKING:
    import torch

    from .backends.cuda.backend import CudaBackend

DEVICES = ("auto", "cpu", "cuda", "reference")
CONCURRENCY = ("auto", "sequential", "members")
MODES = ("streams", "shares")  # of a GPU besides


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError("engine", expected=f"{name} {', '.join(allowed)}", got=repr(value), fix="choose one of them")
    return value


def _only(graph: Graph, names: Sequence[str]) -> Graph:
    """The named members alone; they vote, so that a reference can be measured by itself."""
    if not names or isinstance(names, str):
        raise InputError("engine", expected="members of " + ", ".join(m.name for m in graph.members),
                         got=repr(names) if names else "no name", fix="name at least one, in a tuple")
    some = graph.only(*dict.fromkeys(names))
    return replace(some, members=tuple(replace(m, role="vote") for m in some.members))


def choose_device(graph: Graph) -> str:
    """What ``auto`` means for a graph: ``cuda`` if this machine has a GPU and all members run on it, else ``cpu``."""
    from .plan.cuda import require_runnable

    try:
        require_runnable(graph)  # first: it needs no torch
    except UnsupportedError:
        return "cpu"
    from .backends.cuda.gpu import missing

    return "cpu" if missing() else "cuda"


def check_tensor(images: torch.Tensor, spec: InputSpec) -> None:
    """Raises InputError for a tensor that :func:`preprocess.check_images` would refuse as an array."""
    want = f"(N, {', '.join(map(str, spec.array_shape))}) {spec.numpy_dtype} ({spec.kind})"
    fits = images.ndim == 4 and tuple(images.shape[1:]) == spec.array_shape
    if not fits or str(images.dtype).removeprefix("torch.") != str(spec.numpy_dtype) or not images.is_contiguous():
        got = f"{tuple(images.shape)} {images.dtype}{'' if images.is_contiguous() else ', not contiguous'}"
        raise InputError("images", expected=f"a contiguous tensor {want}", got=got, fix="convert it first")


class Engine:
    """Runs members of an artifact on one device.

    device: ``cpu`` (C++ kernels), ``cuda`` (Triton kernels for quantized members, CUDA C++ ones for float members, where they
    were built), ``reference`` (plain numpy: exact and slow), or ``auto``: ``cuda`` where torch has a GPU and every chosen
    member runs on it, else ``cpu``.
    threads: worker threads of the CPU back end; by default what affinity and control group allow.
    concurrency: ``members`` lets threads take tiles of any member (``auto`` means this), ``sequential`` runs one member
    after the other. On a GPU the former measures whether members gain from running at the same time, and ``streams`` and
    ``shares`` name a way (backends/cuda/modes.py). The bytes of the results are the same.
    isa: instruction set of the CPU back end; by default the environment's HCE_ISA, else the best one.
    members: names of those to run, which then vote; by default all.
    arithmetic: of float members on a GPU, of ``hce_engine.arithmetic``: ``ieee``, or tensor cores with split operands.
    max_batch: on a GPU, the most images that are computed at a time, a power of two; longer batches run in chunks. Memory and
    the layout of float members are chosen for it, so name the size of your batches where they are small. Default: 4096.

    Raises UnsupportedError for what this machine cannot do; it never falls back to something slower.
    """

    def __init__(
        self, artifact: Artifact, device: str = "auto", threads: int | None = None, concurrency: str = "auto",
        isa: str | None = None, members: Sequence[str] | None = None, *, arithmetic: str = IEEE,
        max_batch: int | None = None,
    ) -> None:
        if members is not None:
            artifact = replace(artifact, graph=_only(artifact.graph, members))
        self.artifact = artifact
        expected, got = artifact.input.input_node().spec, artifact.graph.input.spec
        if (got.shape, got.dtype) != (expected.shape, expected.dtype):
            raise InputError("engine", expected=f"a graph that takes {expected}, as the input specification says", got=str(got),
                             fix="build both from one model")
        self.device = choose_device(artifact.graph) if _choice("device", device, DEVICES) == "auto" else device
        check_arithmetic(arithmetic, self.device)
        if max_batch is not None and self.device != "cuda":
            raise UnsupportedError("engine, max_batch", expected="device cuda", got=f"device {self.device}",
                                   fix="leave it out: other devices take a batch as it comes")
        self.arithmetic, self.max_batch = arithmetic, max_batch
        allowed = CONCURRENCY + MODES * (self.device == "cuda")
        self.concurrency = "members" if _choice("concurrency", concurrency, allowed) == "auto" else concurrency
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise InputError("engine", expected="1 to 1024 threads", got=repr(threads), fix="leave it out for all cores")
        self.threads = (threads or available_threads()) if self.device == "cpu" else 1
        self._cpu = CpuBackend(artifact.graph, isa=isa, threads=self.threads) if self.device == "cpu" else None
        self.isa = self._cpu.isa if self._cpu else None
        self._cuda: CudaBackend | None = None
        if self.device == "cuda":
            from .backends.cuda.backend import CudaBackend
            from .plan.cuda.arena import MAX_BATCH

            mode = "auto" if self.concurrency == "members" else self.concurrency
            self._cuda = CudaBackend(artifact.graph, mode=mode, arithmetic=arithmetic, max_batch=MAX_BATCH if max_batch is None else max_batch)

    @property
    def input(self) -> InputSpec:
        return self.artifact.input

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.artifact.graph.members)

    @property
    def plan(self) -> str:
        """The printable plan: every step, its kernel, and why."""
        if self._cuda is not None:
            return str(self._cuda.plan(self._cuda.max_batch))
        if self._cpu is None:
            return f"reference: {len(self.artifact.graph.nodes)} numpy operations, one per node"
        return "\n".join(str(plan) for plan in self._cpu.plans)

    def only(self, *names: str) -> Engine:
        """An engine that runs the named members alone; they vote, so that a reference can be measured by itself."""
        return Engine(self.artifact, self.device, self.threads, self.concurrency, self.isa, names, arithmetic=self.arithmetic,
                      max_batch=self.max_batch)

    def __call__(self, images: np.ndarray | torch.Tensor) -> Any:
        """Ensemble logits, float32 ``(N, classes)``, for a batch as ``self.input`` describes it.

        A numpy array gives a numpy array, a torch tensor a torch tensor on the same device; a tensor on a GPU needs the
        ``cuda`` device and is computed on the current stream. Raises InputError for a wrong rank, dtype, size or layout.
        Images that hold NaN or Inf give NaN rows; their neighbours are not touched.
        """
        return self._run(images, ensemble_only=True)["ensemble"]

    def members(self, images: np.ndarray | torch.Tensor) -> dict[str, Any]:
        """Logits of every member, references included, and of the ``ensemble``."""
        return self._run(images, ensemble_only=False)

    def report(self) -> list[dict[str, Any]] | None:
        """On a GPU, how each size of batch that was used runs: the mode, and the times that decided it. None elsewhere."""
        return None if self._cuda is None else self._cuda.report()

    def require_trace(self) -> None:
        """Raises UnsupportedError on devices other than ``cuda``: their work is in no streams."""
        if self._cuda is None:
            raise UnsupportedError("trace", expected="device cuda", got=f"device {self.device}",
                                   fix="leave the trace out; `hce audit` measures layers on the CPU")

    def trace(self, images: np.ndarray, path: str | Path, *, ensemble_only: bool = False) -> dict[str, np.ndarray]:
        """Runs a batch as :meth:`members` does, launch by launch, and writes it on a time line for Perfetto or
        chrome://tracing, each stream on a line of its own. ensemble_only: as a call of the engine does. Returns the logits.
        Slower than a run: the file says so. Raises UnsupportedError as :meth:`require_trace`, InputError as a call."""
        self.require_trace()
        assert self._cuda is not None
        return self._cuda.trace(check_images(images, self.input), path, ensemble_only=ensemble_only)

    def _run(self, images: np.ndarray | torch.Tensor, *, ensemble_only: bool) -> dict[str, Any]:
        torch_module = sys.modules.get("torch")
        as_tensor = torch_module is not None and isinstance(images, torch_module.Tensor)
        if as_tensor:
            tensor: torch.Tensor = images  # type: ignore[assignment]
            if tensor.device.type != "cpu":
                return self._run_on_gpu(tensor, ensemble_only)
            try:
                images = tensor.detach().numpy()
            except (TypeError, RuntimeError):  # bfloat16, sparse, a conjugate: what numpy has no word for
                raise InputError("images", expected=f"a dense tensor of {self.input.numpy_dtype}",
                                 got=f"{tensor.layout} {tensor.dtype}", fix="convert it first") from None
        batch = check_images(images, self.input)  # type: ignore[arg-type]
        graph = self.artifact.graph
        voters = [m.name for m in graph.voters]
        if self._cuda is not None:
            logits: dict[str, Any] = self._cuda.run(batch, ensemble_only=ensemble_only)
        elif self._cpu is not None:
            names = voters if ensemble_only else None
            logits = self._cpu.run(batch, names=names, concurrent=self.concurrency == "members")
        else:
            logits = reference.run(graph, to_nchw(batch, self.input))
        if self._cuda is None:
            logits["ensemble"] = reference.mean_logits([logits[name] for name in voters])
        if as_tensor:
            return {name: torch_module.from_numpy(z) for name, z in logits.items()}  # type: ignore[union-attr]
        return logits

    def _run_on_gpu(self, images: torch.Tensor, ensemble_only: bool) -> dict[str, Any]:
        if self._cuda is None or images.device.type != "cuda":
            raise InputError("images", expected="a tensor on the CPU", got=f"a tensor on {images.device}",
                             fix="move it with .cpu(), or make the engine with device='cuda'")
        check_tensor(images, self.input)
        return self._cuda.run(images.detach(), ensemble_only=ensemble_only)


def load(
    path: str | Path, device: str = "auto", threads: int | None = None, concurrency: str = "auto",
    isa: str | None = None, members: Sequence[str] | None = None, *, arithmetic: str = IEEE, max_batch: int | None = None,
) -> Engine:
    """The engine of a ``.hce`` file; arguments as of :class:`Engine`. Raises ArtifactError for a damaged file."""
    return Engine(artifacts.load(path), device, threads, concurrency, isa, members, arithmetic=arithmetic,
                  max_batch=max_batch)
