"""The CPU back end: turns plans into native programs once, then runs batches with one call into C++ per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .. import _native
from ..errors import UnsupportedError
from ..graph import Graph
from ..plan import components
from ..plan.cpu import Plan, Step, build_plan
from ..threads import available_memory

# Map arguments that a step may leave out.
_ABSENT = {"conv_u8": ("y",), "conv_f32": ("residual", "scratch"), "add_f32": ("b",)}


def _arguments(step: Step) -> dict[str, object]:
    """Keyword arguments of the native builder: maps become (offset, row, pixel) references."""
    refs: dict[str, object] = {key: m.ref for key, m in (*step.reads.items(), *step.writes.items())}
    for key in _ABSENT.get(step.method, ()):
        refs.setdefault(key, None)
    arguments = {**step.arguments, **refs}
    if step.method == "conv_u8":
        residual, recoded = step.arguments["residual"], step.arguments["recoded"]
        arguments["residual"] = None if residual is None else (refs["residual"], *residual)
        arguments["recoded"] = None if recoded is None else (refs["recoded"], recoded)
        cut = arguments.pop("cut")
        winograd = step.arguments["winograd"]
        arguments["winograd"] = None if winograd is None else (*winograd, arguments.pop("scratch"))
        arguments["amx"] = None if cut is None else (cut.numbers, cut.kernel_rows, arguments.pop("sums"))
    return arguments


def compile_plan(plan: Plan, image_shape: Sequence[int], float_images: bool):  # type: ignore[no-untyped-def]
    """The native program of a plan; image_shape (C, H, W)."""
    c, h, w = image_shape
    program = _native.extension().Program(plan.isa, plan.arena_bytes, [h, w, c], float_images)
    for step in plan.steps:
        getattr(program, step.method)(**_arguments(step))
    return program


def _no_memory(what: str) -> UnsupportedError:
    return UnsupportedError("cpu back end", expected=f"memory for {what}", got="none left",
                            fix="use fewer threads or smaller images")


def _check_memory(plans: Sequence[Plan], threads: int) -> None:
    """Refuses plans whose maps, one set per thread, exceed half of the memory: before anything is allocated, because a
    system that promises more memory than it has would end the process later."""
    largest, limit = max((plan.arena_bytes for plan in plans), default=0), available_memory() // 2
    if threads * largest > limit:
        raise UnsupportedError(
            "cpu back end", expected=f"maps of at most {limit} bytes, half of this machine's memory",
            got=f"{threads * largest} bytes: {threads} threads x {largest} for a tile of 16 images",
            fix="use fewer threads or smaller images",
        )


class CpuBackend:
    """Programs for all members of a graph, and the threads that run them.

    ``run`` is safe to call from several Python threads; calls take turns, each using all threads of the pool.
    Raises UnsupportedError for what this machine has not: the instruction set, memory for the maps, so many threads.
    """

    def __init__(self, graph: Graph, *, isa: str | None = None, threads: int = 1, poison: bool = False) -> None:
        self.isa = _native.choose_isa(isa)
        self.graph = graph
        self.poison = poison
        spec = graph.input.spec
        self.plans = [build_plan(part, self.isa) for part in components(graph)]
        _check_memory(self.plans, threads)
        self.classes = {m.name: graph[m.output].spec.shape[0] for m in graph.members}
        try:
            self.programs = [compile_plan(plan, spec.shape, spec.dtype == "f32") for plan in self.plans]
            self.executor = _native.extension().Executor(self.isa, threads)
        except MemoryError:
            raise _no_memory("the weights") from None
        except RuntimeError as error:
            raise UnsupportedError("cpu back end", expected=f"{threads} threads", got=str(error),
                                   fix="use fewer threads") from None

    def run(
        self, images: np.ndarray, *, names: Sequence[str] | None = None, concurrent: bool = True
    ) -> dict[str, np.ndarray]:
        """Logits per member, float32 ``(N, classes)``. images: contiguous, as the graph's input (uint8 NHWC or float32 NCHW).

        names: members whose logits are needed; groups of members without one of them do not run, and are not returned.
        concurrent: all members' tiles in one list of tasks; otherwise one group of members after the other. The
        results are the same bytes. Raises UnsupportedError in a forked child of the process that made this object.
        """
        chosen = [
            (plan, program)
            for plan, program in zip(self.plans, self.programs, strict=True)
            if names is None or set(names) & set(plan.members)
        ]
        outputs = {
            name: np.empty((len(images), k), np.float32)
            for name, k in self.classes.items() if any(name in plan.members for plan, _ in chosen)
        }
        jobs = [(program, [outputs[name] for name in plan.members]) for plan, program in chosen] if len(images) else []
        try:
            for batch in [jobs] if concurrent else [[job] for job in jobs]:
                self.executor.run(batch, images, self.poison)
        except MemoryError:
            raise _no_memory("the maps") from None
        except RuntimeError as error:
            raise UnsupportedError("cpu back end", expected="the process that made this engine", got=str(error),
                                   fix="make the engine after the fork") from None
        return outputs

    def profile(self, images: np.ndarray) -> Mapping[str, list[tuple[Step, float]]]:
        """Seconds per step over the batch on one thread, per group of members ("q+s" if they share a trunk)."""
        result = {}
        for plan, program in zip(self.plans, self.programs, strict=True):
            outputs = [np.empty((len(images), self.classes[name]), np.float32) for name in plan.members]
            nanoseconds = self.executor.profile(program, images, outputs)
            result["+".join(plan.members)] = [(s, ns * 1e-9) for s, ns in zip(plan.steps, nanoseconds, strict=True)]
        return result
