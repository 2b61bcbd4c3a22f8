"""From timed steps to layers: a member's convolutions and linear layers by name, so that members can be laid side by side.

A step belongs to the layer whose node it computes; what a layer needs around its products (the padding of its output, the store of
logits) is its overhead. Steps of no layer (pixels to lanes, pools, additions, copies of shortcuts) are the member's rest. Members
of one artifact carry their name as a prefix of every node, which is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..graph import Graph
from ..ledger import Cost, is_layer, node_cost
from ..plan.cpu.plan import Step
from ..plan.cpu.work import Work, step_work


@dataclass(frozen=True)
class TimedStep:
    """seconds: per image of the batch.  share: of the batch's images that the step computes, 1 unless tiles have several sizes."""

    step: Step
    work: Work
    seconds: float
    share: float


@dataclass(frozen=True)
class Layer:
    """cost: of the ledger.  kind: of products.  kernel: of its products.  seconds: all of it.  product_seconds: its products alone.
    macs, executed, unpadded, bytes: sums over its products' steps, per image.  images, working_set: of one
    call of them (plan/cpu/work.py).
    """

    name: str
    cost: Cost
    kind: str
    kernel: str
    seconds: float
    product_seconds: float
    macs: float
    executed: float
    unpadded: float
    bytes: float
    images: int
    working_set: int

    @property
    def overhead_seconds(self) -> float:
        return self.seconds - self.product_seconds


@dataclass(frozen=True)
class MemberProfile:
    """steps: all of the plan, in order.  layers: by name, in order.  rest: steps of no layer."""

    member: str
    steps: tuple[TimedStep, ...]
    layers: Mapping[str, Layer]
    rest: tuple[TimedStep, ...]

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)

    @property
    def rest_seconds(self) -> float:
        return sum(s.seconds for s in self.rest)


def layer_name(member: str, node: str) -> str:
    """The name of a node in every member: without the member's prefix."""
    return node.removeprefix(f"{member}.")


def member_profile(graph: Graph, steps: Sequence[tuple[Step, float, int]], images: int) -> MemberProfile:
    """The layers of a graph of one member. steps: as ``CpuBackend.profile`` gives them for ``images`` images."""
    member = graph.members[0].name
    timed = tuple(TimedStep(step, step_work(step), seconds / images, count / images) for step, seconds, count in steps)
    own: dict[str, list[TimedStep]] = {node.name: [] for node in graph.nodes if is_layer(node)}
    rest: list[TimedStep] = []
    for step in timed:
        node = next((name for name in step.step.nodes if name in own), None)
        (rest if node is None else own[node]).append(step)
    layers = {}
    for node, parts in own.items():
        name = layer_name(member, node)
        layers[name] = _layer(name, node_cost(graph[node]), parts)
    return MemberProfile(member, timed, layers, tuple(rest))


def _layer(name: str, cost: Cost, steps: Sequence[TimedStep]) -> Layer:
    products = [s for s in steps if s.work.kind]
    first = products[0]
    # Steps too short for the clock count as a picosecond: their rates stay numbers.
    seconds = max(sum(s.seconds for s in products), 1e-12)
    overhead = sum(s.seconds for s in steps if not s.work.kind)
    return Layer(
        name, cost, first.work.kind or "", first.step.kernel, seconds + overhead, seconds,
        sum(s.share * s.work.macs for s in products), sum(s.share * s.work.executed for s in products),
        sum(s.share * s.work.unpadded for s in products),
        sum(s.share * s.work.bytes / s.work.images for s in products), first.work.images, max(s.work.working_set for s in products),
    )
