"""How many images go through each layer together: few where maps are large, many where weights are.

A group of fewer images fits a faster cache, but reads the weights more often, and its maps are cut into blocks whose halos
and remainders cost something. From the estimated time of each layer with each number of images, dynamic programming takes
the fastest sequence; the number may only grow on the way, when groups join (csrc/cpu/program.h).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ...dtypes import DTYPES
from ...graph import Graph, Node
from .caches import Caches
from .plan import LINE_BYTES
from .spread import REGROUP, Spread, lines_of

# Bytes per nanosecond that one core streams from the third level and from memory. docs/LOG.md has the measurements.
L3_RATE, MEMORY_RATE = 40.0, 17.0
USABLE = 0.75  # part of a cache that a working set may fill
EXPOSED = 0.4  # part of the shorter one of arithmetic and memory that does not hide behind the longer one
WORTHWHILE = 0.97  # estimated time, relative to one stage of all images, below which several stages are taken
LOADED = ("input", "normalize", "quantize_input")  # read from the images whenever they are needed


@dataclass(frozen=True)
class Stages:
    """images: of the group in which each node runs.  spreads: lanes by number of images.  reason: why, in words.
    times: (images, estimated nanoseconds of a tile of so many), by size."""

    images: dict[str, int]
    spreads: dict[int, Spread]
    reason: str
    times: tuple[tuple[int, float], ...]

    def spread(self, node: Node) -> Spread:
        return self.spreads[self.images[node.name]]


def weight_bytes(node: Node, winograd: Container[str]) -> float:
    weight = node.params.get("weight")
    if weight is None:
        return 0.0
    if weight.dtype.kind == "f":
        return weight.size * (16.0 if node.name in winograd else 4.0)  # 36 numbers for 9
    return weight.size * DTYPES[node.attrs["weight_dtype"]].bits / 8


def layer_time(node: Node, spread: Spread, weights: float, weights_rate: float, caches: Caches) -> float:
    """Nanoseconds of one node for a group of images, maps and weights from the caches that hold them."""
    maps = 0
    for source in (node, *(spread.graph[name] for name in node.inputs)):
        if source.op != "input":
            lanes = spread.lanes(source)
            maps += lanes.h * lanes.w * lines_of(source) * LINE_BYTES
    rate = 0.0 if maps <= USABLE * caches.l2 else L3_RATE if maps <= USABLE * caches.l3 / 2 else MEMORY_RATE
    memory = (maps / rate if rate else 0.0) + (weights / weights_rate if weights_rate else 0.0)
    arithmetic = spread.kernel_time(node, spread.lanes(node))
    return max(arithmetic, memory) + EXPOSED * min(arithmetic, memory) + spread.regroup_time(node)


def choose(graph: Graph, isa: str, images: int, winograd: Container[str], caches: Caches) -> Stages:
    """The fastest stages for tiles of at most ``images``; with ``images`` 1 there is only one."""
    counts = [n for n in range(1, images + 1) if images % n == 0]
    spreads = {n: Spread(graph, isa, n, winograd) for n in counts}
    nodes = [node for node in graph.nodes if node.op != "input"]
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    weights = {node.name: weight_bytes(node, winograd) for node in nodes}
    total = sum(weights.values())
    rate = 0.0 if total <= caches.l2 / 2 else L3_RATE if total <= caches.l3 / 2 else MEMORY_RATE

    def join(index: int, few: int, many: int) -> float:
        """Nanoseconds per image to join the maps that live on at a node: each group touches all lines of its part."""
        alive = (n for n in nodes[:index] if last_use.get(n.name, -1) >= index and n.op not in LOADED)
        lines = sum(spreads[many].lanes(n).h * spreads[many].lanes(n).w * lines_of(n) for n in alive)
        return REGROUP * lines / few

    best: dict[int, tuple[float, list[int]]] = dict.fromkeys(counts, (0.0, []))
    for index, node in enumerate(nodes):
        step = {n: layer_time(node, spreads[n], weights[node.name], rate, caches) / n for n in counts}
        best = {
            many: min(((best[few][0] + step[many] + (join(index, few, many) if few != many and index else 0.0), [*best[few][1], many])
                       for few in counts if few <= many and many % few == 0), key=lambda option: option[0])
            for many in counts
        }
    same = {n: sum(layer_time(node, spreads[n], weights[node.name], rate, caches) for node in nodes) / n for n in counts}
    time, numbers = min(best.values(), key=lambda option: option[0])
    if time > WORTHWHILE * same[images]:
        time, numbers = same[images], [images] * len(nodes)
    chosen = {graph.input.name: images} | {node.name: n for node, n in zip(nodes, numbers, strict=True)}
    words = ", ".join(f"{same[n] / 1e3:.0f} with {n}" for n in counts)
    most = max(numbers, default=images)
    times = (*((n, n * same[n]) for n in counts if n < most), (most, most * time))
    return Stages(chosen, spreads, f"estimated {time / 1e3:.0f} us per image, at one number of images {words}; {caches}", times)
