"""Graph -> Plan for the CPU: steps (lowering), halos, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...graph import Graph, verify
from . import memory, select
from .caches import Caches, machine_caches
from .lanes import LANES
from .lowering import SCRATCH, Lowering
from .plan import LINE_BYTES, Plan, Step


def _with_halos(steps: Sequence[Step]) -> list[Step]:
    """A step that writes a map's surroundings right after the last step that writes its pixels."""
    last_write = {id(m): i for i, s in enumerate(steps) for key, m in s.writes.items() if key not in SCRATCH}
    result = []
    for index, step in enumerate(steps):
        result.append(step)
        for key, buffer in step.writes.items():
            if key in SCRATCH or last_write[id(buffer)] != index or not buffer.surrounded:
                continue
            lanes = buffer.lanes
            if any(buffer.halo) or (lanes.rows * lanes.h, lanes.columns * lanes.w) != buffer.size:
                of = f"{buffer.halo} of {buffer.name}, {lanes}"
                result.append(Step(step.nodes, "halo", of, "halo", {}, {"y": buffer}, {
                    "lanes": lanes.numbers, "size": buffer.size, "width": buffer.halo,
                    "pattern": np.resize(buffer.pattern, buffer.pixel // LINE_BYTES).astype(np.uint32)}, images=buffer.images))
    return result


def build_plan(
    graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice] = select.select_conv_f32,
    choose_conv_u8: Callable[..., select.ConvU8Choice] = select.select_conv_u8, *, images: int = LANES,
    packed: dict[Any, Any] | None = None, caches: Caches | None = None,
) -> Plan:
    """The plan of all members of ``graph`` (they share the nodes they have in common) on instruction set ``isa``.

    choose_conv_f32, choose_conv_u8: the rules for convolutions; benchmarks and tests pass others to compare algorithms.
    images: in a tile, 1 to 16; the plan may take fewer, where more would only leave the caches.
    packed: weights in kernel order, which plans of one graph and these rules share, filled as they are needed.
    caches: that maps should fit, by default this machine's.
    The graph must be lowered: no batch norms. Raises GraphError or UnsupportedError.
    """
    lowering = Lowering(verify(graph), isa, choose_conv_f32, choose_conv_u8, images, {} if packed is None else packed,
                        caches or machine_caches())
    lowering.run()
    # A stage never reads what a later one makes, so a stable sort keeps every step behind those that it needs.
    steps = sorted(_with_halos(lowering.steps), key=lambda step: step.images)
    arena = memory.place(steps)
    assert arena % LINE_BYTES == 0
    members = tuple(lowering.stores[id(step)] for step in steps if id(step) in lowering.stores)
    return Plan(isa, members, max(step.images for step in steps), tuple(steps), arena,
                lowering.stages.reason, lowering.stages.times)
