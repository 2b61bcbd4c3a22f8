"""Graph -> Plan for the CPU: steps (lowering), halos, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...graph import Graph, verify
from . import memory, select
from .lowering import SCRATCH, Lowering
from .plan import LINE_BYTES, Plan, Step


def _with_halos(steps: Sequence[Step]) -> list[Step]:
    """A step that writes a map's halo right after the last step that writes its pixels."""
    last_write = {id(m): i for i, s in enumerate(steps) for key, m in s.writes.items() if key not in SCRATCH}
    result = []
    for index, step in enumerate(steps):
        result.append(step)
        for key, buffer in step.writes.items():
            if key not in SCRATCH and any(buffer.halo) and last_write[id(buffer)] == index:
                result.append(Step(step.nodes, "halo", f"padding {buffer.halo} of {buffer.name}", "halo", {},
                                   {"y": buffer}, {"extent": buffer.extent, "width": buffer.halo,
                                                   "pattern": np.array(buffer.pattern, np.uint32)}))
    return result


def build_plan(
    graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice] = select.select_conv_f32,
    choose_conv_u8: Callable[..., select.ConvU8Choice] = select.select_conv_u8,
) -> Plan:
    """The plan of all members of ``graph`` (they share the nodes they have in common) on instruction set ``isa``.

    choose_conv_f32, choose_conv_u8: the rules for convolutions; benchmarks and tests pass others to compare algorithms.
    The graph must be lowered: no batch norms. Raises GraphError or UnsupportedError.
    """
    lowering = Lowering(verify(graph), isa, choose_conv_f32, choose_conv_u8)
    lowering.run()
    steps = _with_halos(lowering.steps)
    arena = memory.place(steps)
    assert arena % LINE_BYTES == 0
    return Plan(isa, tuple(m.name for m in graph.members), tuple(steps), arena)
