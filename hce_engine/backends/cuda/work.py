"""What a program starts: launches that know their name and cost, and the order in which the parts of a program run.

    sequential   one part after the other on the caller's stream
    otherwise    parts fork from the caller's stream onto their own and join it before the mean

The same function runs a layout eagerly, inside the capture of a graph, and with every launch timed (trace.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...kernels import launch
from ...plan.cuda import plan
from .runtime import Runtime, Stream

Cost = launch.Cost | plan.Cost  # of a kernel, or of a step that is one


@dataclass(frozen=True)
class Work:
    """One launch on the current stream. nodes: of the graph that it computes."""

    nodes: tuple[str, ...]
    kernel: str
    cost: Cost
    start: Callable[[], None]
    config: str = ""


class ProgramPart(Protocol):
    """Launches in order. members: whose.  limited: whether its launches can be held to a share of the GPU."""

    members: tuple[str, ...]
    limited: bool

    def work(self, share: float | None = None) -> list[Work]:
        """share: of the thread blocks that fill the GPU; None fills it."""


class Runnable(Protocol):
    """A program. images: its static input.  logits: static outputs per member and for ``ensemble``.  parts: know nothing of
    each other.  mean: what follows them."""

    images: torch.Tensor

    @property
    def logits(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def parts(self) -> Sequence[ProgramPart]: ...

    @property
    def mean(self) -> Sequence[Work]: ...


@dataclass(frozen=True)
class Layout:
    """Where parts run. streams: of each part; None is the caller's.  shares: of each part, as :meth:`ProgramPart.work` takes
    it."""

    streams: tuple[Stream | None, ...]
    shares: tuple[float | None, ...]

    @staticmethod
    def sequential(parts: int) -> Layout:
        return Layout((None,) * parts, (None,) * parts)


def start(work: Work) -> None:
    work.start()


def run_program(program: Runnable, layout: Layout, runtime: Runtime, each: Callable[[Work], None] = start) -> None:
    """Starts every launch, by ``each``, in the order of the layout."""
    parts = list(zip(program.parts, layout.streams, layout.shares, strict=True))
    caller, joins = runtime.current(), []
    if any(stream is not None for _, stream, _ in parts):
        fork = runtime.event()
        fork.record(caller)
    for part, stream, share in parts:  # first, so that they do not wait for parts on the caller's stream
        if stream is not None:
            stream.wait_event(fork)
            with runtime.use(stream):
                run_part(part, share, each)
            joins.append(runtime.event())
            joins[-1].record(stream)
    for part, stream, share in parts:
        if stream is None:
            run_part(part, share, each)
    for join in joins:
        caller.wait_event(join)
    for work in program.mean:
        each(work)


def run_part(part: ProgramPart, share: float | None = None, each: Callable[[Work], None] = start) -> None:
    for work in part.work(share):
        each(work)
