"""The CPU back end: turns plans into native programs once, then runs batches with one call into C++ per batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _native
from ..errors import UnsupportedError
from ..graph import Graph
from ..plan import components
from ..plan.cpu import SIZES, Plan, Step, build_plan, tiles
from ..plan.cpu.select import ALGORITHMS
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
    images = 0
    for step in plan.steps:
        if step.images != images:
            images = step.images
            program.stage(images)
        getattr(program, step.method)(**_arguments(step))
    return program


def _no_memory(what: str) -> UnsupportedError:
    return UnsupportedError("cpu back end", expected=f"memory for {what}", got="none left",
                            fix="use fewer threads or smaller images")


def _check_memory(plan: Plan, threads: int) -> None:
    """Refuses a plan whose maps, one set per thread, exceed half of the memory: before anything is allocated, because a
    system that promises more memory than it has would end the process later."""
    limit = available_memory() // 2
    if threads * plan.arena_bytes > limit:
        raise UnsupportedError(
            "cpu back end", expected=f"maps of at most {limit} bytes, half of this machine's memory",
            got=f"{threads * plan.arena_bytes} bytes: {threads} threads x {plan.arena_bytes} for a tile of {plan.images} images",
            fix="use fewer threads or smaller images",
        )


# About 15 us of arithmetic on one core; threads that share a tile wait for each other after every step, a fraction of 1 us.
SHARED_WORK = 120_000


class CpuBackend:
    """Programs for all members of a graph, and the threads that run them.

    Members that share nodes are a group and run as one program. The program of full tiles is built at once, those of smaller
    tiles when a batch first needs them; all of a group share their weights.

    algorithm: how convolutions are computed, of :data:`select.ALGORITHMS`; codes are the same, floats inside the same bounds.
    shared_work: where there are fewer tiles than threads, threads may share those tiles that take at least so many multiply-accumulates
    of whole registers, and do while that is faster; 0: they always do. The results are the same bytes.
    ``run`` is safe to call from several Python threads; calls take turns, each using all threads of the pool.
    Raises UnsupportedError for what this machine has not: the instruction set, memory for the maps, so many threads.
    """

    def __init__(self, graph: Graph, *, isa: str | None = None, threads: int = 1, poison: bool = False,
                 algorithm: str = "planned", shared_work: int = SHARED_WORK) -> None:
        self.isa = _native.choose_isa(isa)
        self.graph = graph
        self.threads = threads
        self.poison = poison
        if algorithm not in ALGORITHMS:
            raise UnsupportedError("cpu back end", expected="an algorithm of " + ", ".join(ALGORITHMS), got=repr(algorithm),
                                   fix="name one of them")
        self.algorithm = algorithm
        self.classes = {m.name: graph[m.output].spec.shape[0] for m in graph.members}
        self._groups = components(graph)
        self._weights: list[dict[Any, Any]] = [{} for _ in self._groups]
        self._programs: dict[tuple[int, int], tuple[Plan, Any]] = {}  # (group, images in a tile) -> ...
        self._building = threading.Lock()
        for index in range(len(self._groups)):
            self._program(index, SIZES[-1])
        try:
            self.executor = _native.extension().Executor(self.isa, threads, shared_work)
        except RuntimeError as error:
            raise UnsupportedError("cpu back end", expected=f"{threads} threads", got=str(error),
                                   fix="use fewer threads") from None

    @property
    def plans(self) -> list[Plan]:
        """Of all programs so far: per group the one of full tiles, then the smaller ones in the order in which they were needed."""
        return [plan for (_, _), (plan, _) in sorted(self._programs.items(), key=lambda item: (item[0][0], -item[0][1]))]

    def _program(self, group: int, images: int) -> tuple[Plan, Any]:
        """(plan, native program) of a group for tiles of so many images; what full tiles hold, they hold themselves."""
        found = self._programs.get((group, images))
        if found is not None:
            return found
        full = self._programs.get((group, SIZES[-1]))
        if full is not None and full[0].images == images:
            return full
        with self._building:
            if (group, images) not in self._programs:
                spec = self.graph.input.spec
                plan = build_plan(self._groups[group], self.isa, *ALGORITHMS[self.algorithm], images=images, packed=self._weights[group])
                _check_memory(plan, self.threads)
                try:
                    program = compile_plan(plan, spec.shape, spec.dtype == "f32")
                except MemoryError:
                    raise _no_memory("the weights") from None
                self._programs[group, images] = plan, program
            return self._programs[group, images]

    def _job(self, group: int, size: int, outputs: Mapping[str, np.ndarray], first: int, count: int) -> tuple[Plan, Any]:
        """(plan, job of the executor) that runs images [first, first + count) of a batch in tiles of ``size``."""
        plan, program = self._program(group, size)
        return plan, (program, [outputs[name] for name in plan.members], first, count)

    def run(
        self, images: np.ndarray, *, names: Sequence[str] | None = None, concurrent: bool = True
    ) -> dict[str, np.ndarray]:
        """Logits per member, float32 ``(N, classes)``. images: contiguous, as the graph's input (uint8 NHWC or float32 NCHW).

        names: members whose logits are needed; groups of members without one of them do not run, and are not returned.
        concurrent: all members' tiles in one list of tasks; otherwise one group of members after the other. The
        results are the same bytes. Raises UnsupportedError in a forked child of the process that made this object.
        """
        outputs: dict[str, np.ndarray] = {}
        batches: list[list[tuple[float, Any]]] = []  # (estimated time of a tile, job)
        for index in range(len(self._groups)):
            plan, _ = self._program(index, SIZES[-1])
            if names is not None and not set(names) & set(plan.members):
                continue
            outputs.update({m.name: np.empty((len(images), self.classes[m.name]), np.float32) for m in self._groups[index].members})
            times = dict(plan.times)
            batches.append([(times[size], self._job(index, size, outputs, first, count)[1])
                            for size, first, count in tiles(len(images), self.threads, plan.times)])
        if concurrent:
            batches = [[job for batch in batches for job in batch]]
        for batch in batches:
            batch.sort(key=lambda timed: -timed[0])  # the longest first, so that threads end together
        try:
            for batch in batches:
                if batch:
                    self.executor.run([job for _, job in batch], images, self.poison)
        except MemoryError:
            raise _no_memory("the maps") from None
        except RuntimeError as error:
            raise UnsupportedError("cpu back end", expected="the process that made this engine", got=str(error),
                                   fix="make the engine after the fork") from None
        return outputs

    def profile(self, images: np.ndarray, repeats: int = 1) -> Mapping[str, list[tuple[Step, float, int]]]:
        """Seconds per step over the batch on one thread, and of how many images, per group of members ("q+s" if they share a trunk).

        A batch that runs in tiles of several sizes has the steps of each, one size after the other. Medians of ``repeats`` runs,
        without what reading the clock costs; with more than one, another run goes before them.
        """
        result = {}
        clock = _native.extension().clock_seconds()
        for index in range(len(self._groups)):
            members = self._program(index, SIZES[-1])[0].members
            outputs = {name: np.empty((len(images), self.classes[name]), np.float32) for name in members}
            rows: list[tuple[Step, float, int]] = []
            for size, first, count in tiles(len(images), 1, self._program(index, SIZES[-1])[0].times):
                plan, job = self._job(index, size, outputs, first, count)
                runs = [self.executor.profile(job, images) for _ in range(repeats + (repeats > 1))][-repeats:]
                seconds = np.median(np.array(runs) * 1e-9, axis=0)
                rows += [(s, max(float(t) - s.calls(count, plan.images) * clock, 0.0), count)
                         for s, t in zip(plan.steps, seconds, strict=True)]
            result["+".join(members)] = rows
        return result
