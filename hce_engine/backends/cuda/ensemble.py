"""Members of both kinds on the same images: quantized parts (program.py) and float parts (lanes_program.py), then the mean.

    sequential   one part after the other on one stream
    streams      each part on a stream of its own: they fork from the caller's stream and join before the mean

Both are captured as CUDA graphs. On a GPU a warm-up measures both, because parts that fill the GPU gain nothing from each
other, and keeps the faster; the results are the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import ModuleType
from typing import Protocol

import torch

from ...errors import InputError
from ...plan.cuda.ensemble_plan import EnsemblePlan, Part
from ...plan.cuda.lanes_plan import LanesPlan
from ...plan.cuda.plan import Plan
from .lanes_program import LanesArena, LanesConstants, LanesProgram, current_stream, device_index
from .program import Arena, Constants, Program
from .runtime import Runtime

AUTO, SEQUENTIAL, STREAMS = "auto", "sequential", "streams"
MODES = (AUTO, SEQUENTIAL, STREAMS)
REPLAYS = 9  # timed replays of which the median counts
WARM_REPLAYS = 2


class Streams(Protocol):
    """Where parts run beside the caller's stream."""

    def fork(self, part: int) -> AbstractContextManager[object]:
        """Work in this context starts after what the caller's stream holds now, on the stream of ``part``."""

    def join(self) -> None:
        """The caller's stream waits for all that was forked."""


class SideStreams:
    """Streams of a GPU; also inside the capture of a CUDA graph, whose branches they become."""

    def __init__(self, device: str, count: int) -> None:
        self.device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]

    def fork(self, part: int) -> AbstractContextManager[object]:
        stream = self._streams[part]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def join(self) -> None:
        for stream in self._streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)


@dataclass(frozen=True)
class Timing:
    """Medians of replays, in seconds. parts: of each alone, without the mean."""

    sequential: float
    streams: float
    parts: tuple[float, ...]

    @property
    def mode(self) -> str:
        return STREAMS if self.streams < self.sequential else SEQUENTIAL

    @property
    def overlap(self) -> float:
        """Share of the shortest part that running at the same time hid: 1 is all of it, 0 none, less a loss."""
        return (self.sequential - self.streams) / min(self.parts)


class EnsembleProgram:
    """Programs of all parts of a plan and the mean of the voters.

    images: one static input for all.  logits: static outputs per member and for ``ensemble``, float32 ``(N, classes)``.
    """

    def __init__(
        self, plan: EnsemblePlan, parts: list[Program | LanesProgram], images: torch.Tensor, extension: ModuleType, device: str,
        poison: bool = False,
    ) -> None:
        self.plan, self.parts, self.images, self.extension, self.device = plan, parts, images, extension, device
        made = {name: logits for part in parts for name, logits in part.logits.items()}
        self.logits = {name: made[name] for name in plan.members}
        if plan.mean_launches:
            fill = float("nan") if poison else 0.0
            self.logits["ensemble"] = torch.full((plan.batch, plan.classes), fill, dtype=torch.float32, device=device)
        else:
            self.logits["ensemble"] = self.logits[plan.voters[0]]
        self._index = device_index(device)

    def mean(self) -> None:
        """((z_0 + z_1) + ...) * f32(1 / n) of the voters, as backends.reference.mean_logits."""
        if self.plan.mean_launches:
            out = self.logits["ensemble"]
            self.extension.ensemble_mean(
                self._index, current_stream(self.device), members=[self.logits[name].data_ptr() for name in self.plan.voters],
                out=out.data_ptr(), elements=out.numel(),
            )

    def sequential(self) -> None:
        for part in self.parts:
            part()
        self.mean()

    def concurrent(self, streams: Streams) -> None:
        """The first part on the caller's stream, the others beside it."""
        for index, part in enumerate(self.parts[1:]):
            with streams.fork(index):
                part()
        self.parts[0]()
        streams.join()
        self.mean()


def replay_seconds(device: str, replay: Callable[[], None]) -> float:
    """Median seconds of a replay on the current stream of a GPU."""
    times = []
    with torch.cuda.device(device):
        for _ in range(WARM_REPLAYS):
            replay()
        for _ in range(REPLAYS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


@dataclass(frozen=True)
class Prepared:
    """A program ready to be replayed. timing: None where nothing was measured."""

    program: EnsembleProgram
    replay: Callable[[], None]
    mode: str
    timing: Timing | None = None


def prepare(
    program: EnsembleProgram, runtime: Runtime, mode: str, streams: Streams | None,
    seconds: Callable[[Callable[[], None]], float],
) -> Prepared:
    """Captures a program. streams: None where there are none, and then everything is sequential.

    mode ``auto`` measures both ways and keeps the faster; with one part there is nothing to choose.
    """
    if streams is None or len(program.parts) == 1 or mode == SEQUENTIAL:
        return Prepared(program, runtime.prepare(program.sequential), SEQUENTIAL)
    concurrent = runtime.prepare(lambda: program.concurrent(streams))
    if mode == STREAMS:
        return Prepared(program, concurrent, STREAMS)
    sequential = runtime.prepare(program.sequential)
    alone = tuple(seconds(runtime.prepare(part)) for part in program.parts)
    timing = Timing(seconds(sequential), seconds(concurrent), alone)
    return Prepared(program, concurrent if timing.mode == STREAMS else sequential, timing.mode, timing)


class Ensembles:
    """Makes programs of ensembles; weights and maps are shared between those of different batches."""

    def __init__(self, runtime: Runtime, constants: Constants, extension: ModuleType, mode: str, poison: bool) -> None:
        if mode not in MODES:
            raise InputError("cuda back end", expected=f"a mode of {', '.join(MODES)}", got=repr(mode), fix="choose one of them")
        self.runtime, self.extension, self.mode, self.poison = runtime, extension, mode, poison
        self.constants = constants
        self.lanes_constants = LanesConstants(extension, runtime.device)
        self._arenas: list[tuple[tuple[str, ...], Arena | LanesArena]] = []  # parts run at the same time: each has its own
        self._streams: SideStreams | None = None

    def _arena(self, part: Part) -> Arena | LanesArena | None:
        size = part.batch if isinstance(part, Plan) else part.tiles
        return next((a for members, a in self._arenas
                     if members == part.members and a.slots == part.slots and a.capacity >= size), None)

    def needed_bytes(self, plan: EnsemblePlan) -> int:
        """Device memory that :meth:`build` allocates for a plan."""
        image = 1
        for size in plan.image_shape:
            image *= size
        needed = plan.batch * image * (4 if plan.float_images else 1)
        needed += 4 * plan.batch * plan.classes * (len(plan.members) + 1)
        for part in plan.parts:
            new = self._arena(part) is None
            if isinstance(part, LanesPlan):
                needed += self.lanes_constants.missing_bytes(part) + (LanesArena.bytes(part) if new else 0)
            else:
                needed += self.constants.missing_bytes(part) + part.workspace_bytes + (Arena.bytes(part) if new else 0)
        return needed

    def build(self, plan: EnsemblePlan) -> Prepared:
        """Allocates, captures and measures. Memory may be that of programs that still run elsewhere: it waits for them."""
        device = self.runtime.device
        self.runtime.begin()
        c, h, w = plan.image_shape
        images = (torch.zeros((plan.batch, c, h, w), dtype=torch.float32, device=device) if plan.float_images
                  else torch.zeros((plan.batch, h, w, c), dtype=torch.uint8, device=device))
        parts = [self._part(part, images) for part in plan.parts]
        program = EnsembleProgram(plan, parts, images, self.extension, device, self.poison)
        return prepare(program, self.runtime, self.mode, self._side_streams(len(parts) - 1), partial(replay_seconds, device))

    def _part(self, plan: Part, images: torch.Tensor) -> Program | LanesProgram:
        arena, device = self._arena(plan), self.runtime.device
        if isinstance(plan, LanesPlan):
            if arena is None:
                arena = LanesArena(plan, device, self.poison)
                self._arenas.append((plan.members, arena))
            assert isinstance(arena, LanesArena)
            return LanesProgram(plan, arena, self.lanes_constants, images, self.poison)
        if arena is None:
            arena = Arena(plan, device, self.poison)
            self._arenas.append((plan.members, arena))
        assert isinstance(arena, Arena)
        return Program(plan, arena, self.constants, device, self.poison, images=images)

    def _side_streams(self, count: int) -> SideStreams | None:
        if torch.device(self.runtime.device).type != "cuda" or count == 0:
            return None
        if self._streams is None or len(self._streams._streams) != count:
            self._streams = SideStreams(self.runtime.device, count)
        return self._streams
