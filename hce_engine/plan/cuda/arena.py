"""Which slot each map lies in: maps of one format and one halo code share a slot when their lifetimes do not overlap.

A slot is set up once with its halo. Kernels write inner pixels only, so the halo is right for every map that takes its
turn there, and nothing is filled while a batch runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels.layer import INT32_LIMIT
from .plan import Map, Plan, Slot, Step

MAX_BATCH = 4096
ARENA_LIMIT = 8 << 30  # bytes of maps: a GPU is full long before, and memory is shared with others


def lifetimes(steps: Sequence[Step]) -> list[tuple[Map, int, int]]:
    """(map, first step that touches it, last step that touches it), in order of the first."""
    alive: dict[int, tuple[Map, int, int]] = {}
    for index, step in enumerate(steps):
        for value in (*step.reads.values(), *step.writes.values()):
            if isinstance(value, Map):
                first = alive[id(value)][1] if id(value) in alive else index
                alive[id(value)] = (value, first, index)
    return list(alive.values())


def place(steps: Sequence[Step]) -> tuple[Slot, ...]:
    """Sets ``slot`` of every map; a step's outputs never lie where its inputs do."""
    slots: list[Slot] = []
    busy_until: list[int] = []
    for value, first, last in lifetimes(steps):
        wanted = Slot(value.form, value.pad.tobytes())
        free = [i for i, slot in enumerate(slots) if slot == wanted and busy_until[i] < first]
        # The one that was used last: its lines are the likeliest to be in the cache.
        index = max(free, key=lambda i: busy_until[i], default=len(slots))
        if index == len(slots):
            slots.append(wanted)
            busy_until.append(last)
        busy_until[index] = last
        value.slot = index
    return tuple(slots)


def largest_bucket(plan: Plan, wanted: int = MAX_BATCH) -> int:
    """The largest power of two up to ``wanted`` images whose planes 32 bits can address and whose maps keep to
    ARENA_LIMIT; 0 if a single image does not."""
    plane = max((size for slot in plan.slots for size in slot.form.image_bytes), default=1)
    limit = min(wanted, INT32_LIMIT // plane, ARENA_LIMIT // max(plan.arena_bytes_per_image, 1))
    return 1 << (limit.bit_length() - 1) if limit else 0
