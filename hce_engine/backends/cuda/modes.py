"""How the parts of an ensemble run, and which way is the fastest: measured when a bucket warms up.

    sequential         one part after the other on one stream
    streams            each part on a stream of its own: fork from the caller's stream, join before the mean
    shares: grids      streams, and float parts launch fewer thread blocks than fill the GPU, so that blocks of the other
                       parts are resident beside them (float kernels loop over their work, whatever the grid)
    shares: contexts   streams of green contexts: each side of the ensemble has multiprocessors of its own (green_contexts.py)

Every one is captured as a CUDA graph, so ``graph`` is what all of them are rather than a mode of its own. Parts that fill the
GPU gain nothing from plain streams: the scheduler starts one part's blocks after the other's. A way is timed only if its bytes
are those of ``sequential``; one that a driver refuses, or that computes other bytes, is left out with the reason in
:class:`Timing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from ...errors import HceError, UnsupportedError, VerificationError
from .runtime import Runtime, Stream
from .work import Layout, ProgramPart, Runnable, run_part, run_program

AUTO, SEQUENTIAL, STREAMS, SHARES = "auto", "sequential", "streams", "shares"
MODES = (AUTO, SEQUENTIAL, STREAMS, SHARES)
GRIDS, CONTEXTS = "grids", "contexts"
FRACTIONS = (3 / 4, 1 / 2, 3 / 8, 1 / 4)  # of the GPU, for the first side
NEAR = 1 / 32  # a share in proportion to the times that is this close to one of them says nothing new
ROUNDS = 9  # timed replays of which the median counts
WARM_ROUNDS = 2
PROBES = 3  # rounds that find the proportion


@dataclass(frozen=True)
class Way:
    """One way to run. kind and share: of mode ``shares``; share: of the first side (:func:`first_side`)."""

    mode: str
    kind: str = ""
    share: float | None = None

    def __str__(self) -> str:
        return self.mode if self.share is None else f"{self.mode}: {self.kind} {self.share:.3f}"


@dataclass(frozen=True)
class Candidate:
    """seconds: median of a replay; None for a way that was left out, and then ``refused`` says why."""

    way: Way
    seconds: float | None
    refused: str = ""


@dataclass(frozen=True)
class PartTime:
    members: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Timing:
    """What warming up measured, in seconds. parts: each alone, without the mean.  chosen: what runs, and why."""

    candidates: tuple[Candidate, ...]
    parts: tuple[PartTime, ...]
    chosen: Way
    why: str

    @property
    def mode(self) -> str:
        return self.chosen.mode

    def fastest(self, modes: Iterable[str]) -> float | None:
        """Seconds of the fastest way of some modes; None if none was measured."""
        wanted = tuple(modes)
        return min((c.seconds for c in self.candidates if c.seconds is not None and c.way.mode in wanted), default=None)

    @property
    def sequential(self) -> float | None:
        return self.fastest([SEQUENTIAL])

    @property
    def concurrent(self) -> float | None:
        return self.fastest([STREAMS, SHARES])

    @property
    def overlap(self) -> float | None:
        """(t_seq - t_conc) / min(t_q, t_s): the share of the shortest part that running at the same time hid, by the fastest
        concurrent way. 1 is all of it, 0 none, less a loss."""
        if self.sequential is None or self.concurrent is None:
            return None
        return (self.sequential - self.concurrent) / min(part.seconds for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode, "chosen": _way(self.chosen), "why": self.why, "overlap": self.overlap,
            "parts": [{"members": list(part.members), "seconds": part.seconds} for part in self.parts],
            "candidates": [{**_way(c.way), "seconds": c.seconds, "left_out": c.refused or None} for c in self.candidates],
        }


def _way(way: Way) -> dict[str, Any]:
    return {"mode": way.mode, "kind": way.kind or None, "share": way.share}


@dataclass(frozen=True)
class Prepared:
    """A program ready to be replayed. timing: None where nothing was measured."""

    program: Runnable
    replay: Callable[[], None]
    way: Way = Way(SEQUENTIAL)
    timing: Timing | None = None


class Layouts:
    """The layouts of ways, for as many parts as a program has. Plain streams serve every program, which run in turns."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._streams: list[Stream] = []

    def of(self, way: Way, parts: Sequence[ProgramPart]) -> Layout:
        """Raises UnsupportedError where multiprocessors cannot be cut."""
        if way.mode == SEQUENTIAL:
            return Layout.sequential(len(parts))
        side = first_side(parts)
        if way.kind == CONTEXTS:
            assert way.share is not None
            groups = self.runtime.partition(way.share)
            of_side = (iter(range(len(parts))), iter(range(len(parts))))
            streams: list[Stream | None] = [groups.stream(1 - first, next(of_side[1 - first])) for first in side]
        else:
            while len(self._streams) < len(parts) - 1:
                self._streams.append(self.runtime.stream())
            streams = [None, *self._streams[: len(parts) - 1]]
        return Layout(tuple(streams), grid_shares(parts, side, way.share))


def first_side(parts: Sequence[ProgramPart]) -> list[bool]:
    """Which parts share the first side of the GPU: those whose grids can be limited, or the first part if all of them can."""
    if len({part.limited for part in parts}) == 2:
        return [part.limited for part in parts]
    return [index == 0 for index in range(len(parts))]


def grid_shares(parts: Sequence[ProgramPart], side: Sequence[bool], share: float | None) -> tuple[float | None, ...]:
    """Of the blocks that fill the GPU, for each part: ``share`` for the first side and the rest for the other, each cut evenly
    among its parts. None for parts whose grids are as they are."""
    if share is None:
        return (None,) * len(parts)
    own = {True: share / sum(side), False: (1 - share) / (len(side) - sum(side))}
    return tuple(own[first] if part.limited else None for part, first in zip(parts, side, strict=True))


def share_ways(parts: Sequence[ProgramPart], seconds: Sequence[float]) -> list[Way]:
    """Ways of mode ``shares``, given how long each part takes alone. Contexts take the fixed fractions only: they are costly to
    make, serve all buckets, and come in steps of some multiprocessors anyway."""
    side = first_side(parts)
    proportion = sum(t for t, first in zip(seconds, side, strict=True) if first) / sum(seconds)
    fractions = list(FRACTIONS)
    if all(abs(proportion - f) > NEAR for f in FRACTIONS):
        fractions.append(min(max(round(proportion, 3), NEAR), 1 - NEAR))
    grids = [Way(SHARES, GRIDS, f) for f in fractions] if any(part.limited for part in parts) else []
    return grids + [Way(SHARES, CONTEXTS, f) for f in FRACTIONS]


def prepare(program: Runnable, runtime: Runtime, mode: str, layouts: Layouts) -> Prepared:
    """Captures a program. ``auto`` measures every way and keeps the fastest, ``shares`` every share; with one part, or where
    streams do not run at the same time, there is nothing to choose."""
    def capture(way: Way) -> Callable[[], None]:
        return runtime.capture(partial(run_program, program, layouts.of(way, program.parts), runtime))

    runtime.warm(partial(run_program, program, Layout.sequential(len(program.parts)), runtime))
    if len(program.parts) == 1 or not runtime.concurrent or mode == SEQUENTIAL:
        return Prepared(program, capture(Way(SEQUENTIAL)))
    if mode == STREAMS:
        return Prepared(program, capture(Way(STREAMS)), Way(STREAMS))
    return _fastest(program, runtime, mode, capture)


def _fastest(program: Runnable, runtime: Runtime, mode: str, capture: Callable[[Way], Callable[[], None]]) -> Prepared:
    fill_with_noise(program.images, runtime)
    sequential = Way(SEQUENTIAL)
    replays = {sequential: capture(sequential)}
    expected = results(program, runtime, replays[sequential])
    alone = [runtime.capture(partial(run_part, part)) for part in program.parts]
    refused: dict[Way, str] = {}
    ways = [Way(STREAMS)] * (mode == AUTO) + share_ways(program.parts, medians(runtime, alone, PROBES))
    for way in ways:
        try:
            replay = capture(way)
            if results(program, runtime, replay) != expected:
                raise VerificationError(f"mode {way}", expected="the bytes of mode sequential", got="others", fix="report this")
            replays[way] = replay
        except (HceError, RuntimeError, ValueError) as error:
            if way.mode == STREAMS and not isinstance(error, VerificationError):
                raise  # plain streams ask for nothing that a device may lack
            runtime.synchronize()  # raises if the device is lost
            refused[way] = reason(error)
    times = medians(runtime, [*replays.values(), *alone], ROUNDS)
    seconds = dict(zip(replays, times, strict=False))
    parts = tuple(PartTime(part.members, t) for part, t in zip(program.parts, times[len(replays):], strict=True))
    choice = [way for way in replays if mode == AUTO or way.mode == mode]
    if not choice:
        raise UnsupportedError(f"mode {mode}", expected="a share that this device can run", fix="use mode auto",
                               got="; ".join(f"{way}: {text}" for way, text in refused.items()))
    chosen = min(choice, key=lambda way: seconds[way])
    why = f"the fastest of {len(choice)} by the median of {ROUNDS} replays" + f", {len(refused)} left out" * bool(refused)
    candidates = tuple(Candidate(way, seconds.get(way), refused.get(way, "")) for way in [sequential, *ways])
    return Prepared(program, replays[chosen], chosen, Timing(candidates, parts, chosen, why))


def reason(error: BaseException) -> str:
    """What an error says, and what it came after: a capture that fails also fails to end, and that error says less."""
    texts = []
    after: BaseException | None = error
    while after is not None:
        texts.append(" ".join(str(after).split()))
        after = after.__cause__ or after.__context__
    return ", after: ".join(texts)


def fill_with_noise(images: torch.Tensor, runtime: Runtime) -> None:
    """Pixels that differ, the same in every process: of 0 to 255, or floats of 0 to 1."""
    generator = np.random.default_rng(0)
    shape = tuple(images.shape)
    values = generator.integers(0, 256, shape, np.uint8) if images.dtype == torch.uint8 else generator.random(shape, np.float32)
    runtime.copy(images, torch.from_numpy(values))
    runtime.synchronize()


def results(program: Runnable, runtime: Runtime, replay: Callable[[], None]) -> dict[str, bytes]:
    """What a replay writes; logits that it does not write are NaN."""
    for logits in program.logits.values():
        logits.fill_(float("nan"))
    replay()
    runtime.synchronize()
    return {name: logits.cpu().numpy().tobytes() for name, logits in program.logits.items()}


def medians(runtime: Runtime, replays: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of each replay on the current stream. Each has a turn in every round, and rounds begin at different ones:
    what drifts, drifts for all."""
    taken: list[list[float]] = [[] for _ in replays]
    for turn in range(WARM_ROUNDS + rounds):
        marks = []
        for step in range(len(replays)):
            index = (turn + step) % len(replays)
            begin, end = runtime.event(timing=True), runtime.event(timing=True)
            begin.record(runtime.current())
            replays[index]()
            end.record(runtime.current())
            marks.append((index, begin, end))
        runtime.current().synchronize()
        if turn >= WARM_ROUNDS:
            for index, begin, end in marks:
                taken[index].append(begin.elapsed_time(end) / 1e3)
    return [median(times) for times in taken]
