"""What is timed: our engine on some members, and their time against the original's, all in turns.

Ratios come from rounds (``bench.statistics``): in each round every candidate has one turn, and the ratio is the median over rounds
of the ratio of medians, so what disturbs a round disturbs both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..backends.cpu import CpuBackend
from ..backends.reference import mean_logits
from ..bench.statistics import compare, summarize
from ..bench.turns import interleaved
from ..graph import Graph, Member, Node, TensorSpec, verify
from ..plan.cpu.lanes import LANES

Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """isa: of our engine, None for the best.  algorithm: of convolutions (``CpuBackend``).  rounds, seconds: of turns.
    repeats: of profiles."""

    batch: int = 128
    threads: int = 1
    isa: str | None = None
    algorithm: str = "planned"
    rounds: int = 7
    seconds: float = 0.2
    repeats: int = 15


@dataclass(frozen=True)
class Times:
    """seconds: per call, the median.  ratio: to the baseline's, with the interval of its median over rounds, None with too few."""

    seconds: float
    ratio: float
    interval: tuple[float, float] | None


def engine_call(graph: Graph, images: np.ndarray, setting: Setting) -> Call:
    """Logits of the voting members of ``graph``, and their mean if there are several, as a call without arguments."""
    backend = CpuBackend(graph, isa=setting.isa, threads=setting.threads, algorithm=setting.algorithm)
    names = [m.name for m in graph.members]

    def call() -> np.ndarray:
        logits = backend.run(images, names=names)
        return mean_logits([logits[name] for name in names]) if len(names) > 1 else logits[names[0]]

    return call


def measure(calls: Mapping[str, Call], baseline_of: Mapping[str, str], setting: Setting) -> tuple[dict[str, Times], int]:
    """Times by name, and how many turns began on a process that was not quiet. baseline_of: whose time each is held against."""
    series, restless = interleaved(calls, setting.rounds, setting.seconds)
    times = {}
    for name, rounds in series.items():
        against = compare(rounds, series[baseline_of[name]])  # how many times as fast, so inverted
        interval = None if against.interval is None else (1 / against.interval[1], 1 / against.interval[0])
        times[name] = Times(summarize(rounds).median, 1 / against.ratio, interval)
    return times, restless


def dispatch_seconds(isa: str | None, repeats: int = 50) -> float:
    """What a step costs that moves one line, per tile: the call, its arguments, its addresses."""
    shape = (1, 1, 1)
    norm = {"scale": np.ones(1, np.float32), "offset": np.zeros(1, np.float32)}
    nodes = (
        Node("image", "input", (), TensorSpec(shape, "u8")),
        Node("normalize", "normalize", ("image",), TensorSpec(shape), {}, norm),
        Node("pad", "channel_pad", ("normalize",), TensorSpec((2, 1, 1)), {"before": 1, "after": 0}),
        Node("flat", "flatten", ("pad",), TensorSpec((2,))),
    )
    backend = CpuBackend(verify(Graph(nodes, (Member("m", "flat"),))), isa=isa)
    tiles = 256  # so that one tile's few nanoseconds are not lost in the clock's
    steps = backend.profile(np.zeros((tiles * LANES, 1, 1, 1), np.uint8), repeats)["m"]
    return min(seconds for step, seconds, _ in steps if step.method == "copy") / tiles
