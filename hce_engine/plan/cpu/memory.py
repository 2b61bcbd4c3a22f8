"""Where each map lies in the arena: lifetimes from the order of steps, then first fit, largest map first.

All maps of one tile share one block of memory per thread. Two maps that are alive at the same step never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from .plan import Map, Step


def lifetimes(steps: Sequence[Step]) -> dict[int, tuple[Map, int, int]]:
    """id(map) -> (map, first step that touches it, last step that touches it).

    A map that joins groups for a later stage is filled over many runs of the steps before, so it lives from the first step on.
    """
    alive: dict[int, tuple[Map, int, int]] = {}
    for index, step in enumerate(steps):
        for buffer in (*step.reads.values(), *step.writes.values()):
            joins = any(buffer is m for m in step.writes.values()) and step.method == "regroup" and buffer.images > step.images
            first = 0 if joins else alive[id(buffer)][1] if id(buffer) in alive else index
            alive[id(buffer)] = (buffer, first, index)
    return alive


def place(steps: Sequence[Step]) -> int:
    """Sets ``start`` of every map and returns the bytes of the arena.

    Starts are multiples of a line; sizes are too, since a map consists of whole lines.
    """
    placed: list[tuple[Map, int, int]] = []
    for buffer, first, last in sorted(lifetimes(steps).values(), key=lambda item: (-item[0].bytes, item[1])):
        busy = sorted(
            (other.start, other.start + other.bytes) for other, f, l in placed if f <= last and first <= l
        )
        start = 0
        for low, high in busy:
            if start + buffer.bytes <= low:
                break
            start = max(start, high)
        buffer.start = start
        placed.append((buffer, first, last))
    return max((b.start + b.bytes for b, _, _ in placed), default=0)
