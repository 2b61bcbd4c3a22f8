"""Which path runs each member on a GPU, and the plan of an ensemble: one part per group of members that share nodes.

    codes    quantized members: Triton kernels on packed maps (plan.py)
    lanes    float members: CUDA C++ kernels on lines of 32 lanes, which are images or channels (layout.py); they need the
             compiled extension

A member whose nodes belong to both has no path: the two keep maps in different layouts, and nothing converts between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ... import _cuda_native
from ...arithmetic import IEEE, check_arithmetic
from ...errors import UnsupportedError
from ...graph import Graph, verify
from ..components import components
from .arena import ARENA_LIMIT, MAX_BATCH, largest_bucket
from .lanes_lowering import lanes_runnable
from .lanes_plan import TILE, LanesPlan, LaneStep, tiles_of
from .layout import AUTO, build_float_plan
from .lowering import MEANS_LIMIT, build_plan, runnable
from .plan import Plan
from .roofline import LAUNCH_FLOOR, Bound, Gpu, bound

CODES, LANES = "codes", "lanes"
PIXELS_LIMIT = 2**30 - 1  # of one map in all tiles: launches count them in 32 bits, with room for doubling

# Float32 operations per second outside the tensor cores, 2 per fused multiply-add; of the sources that roofline.GPUS names. For
# B200 figures between 75 (148 multiprocessors at 1.98 GHz) and 80 are published; a bound takes the higher.
FFMA = {"NVIDIA H200": 67e12, "NVIDIA H100 80GB HBM3": 67e12, "NVIDIA A100-SXM4-80GB": 19.5e12, "NVIDIA B200": 80e12}

# On tensor cores, dense; of the same sources. A convolution with split operands executes PRODUCTS of each multiply-accumulate.
TENSOR_CORES = {
    "NVIDIA H200": {"tf32x3": 495e12, "fp16x3": 989e12, "bf16x3": 989e12},
    "NVIDIA H100 80GB HBM3": {"tf32x3": 495e12, "fp16x3": 989e12, "bf16x3": 989e12},
    "NVIDIA A100-SXM4-80GB": {"tf32x3": 156e12, "fp16x3": 312e12, "bf16x3": 312e12},
    "NVIDIA B200": {"tf32x3": 1125e12, "fp16x3": 2250e12, "bf16x3": 2250e12},
}
PRODUCTS = 3

Part = Plan | LanesPlan


def paths(graph: Graph) -> dict[str, str]:
    """Member -> ``codes`` or ``lanes``. Raises UnsupportedError for the first that neither path can run."""
    found: dict[str, str] = {}
    refused: list[tuple[str, str]] = []
    for member in graph.members:
        nodes = [n for n in graph.only(member.name).nodes if n.op != "input"]
        if all(map(runnable, nodes)):
            found[member.name] = CODES
        elif all(map(lanes_runnable, nodes)):
            found[member.name] = LANES
        else:
            floats = [n for n in nodes if not runnable(n)]
            codes = [n for n in nodes if not lanes_runnable(n)]
            got = f"{floats[0].op} %{floats[0].name} and {codes[0].op} %{codes[0].name}"
            if floats[0] is codes[0]:
                got = f"{floats[0].op} %{floats[0].name} of {floats[0].spec.dtype}"
            refused.append((member.name, got))
    if refused:
        name, got = refused[0]
        raise UnsupportedError(f"device cuda, member {name!r}", expected="either quantized or float operations", got=got,
                               fix=_way_out(tuple(found)))
    return found


def _way_out(good: tuple[str, ...]) -> str:
    if good:
        return f"name the members that run, members={good!r} or --members {','.join(good)}, or use device cpu"
    return "use device cpu, which runs every member"


def require_runnable(graph: Graph) -> None:
    """Raises UnsupportedError for members that neither path can run, and for float ones where the extension is missing."""
    found = paths(graph)
    lanes = [name for name, path in found.items() if path == LANES]
    present, reason = _cuda_native.available()
    if lanes and not present:
        good = tuple(name for name, path in found.items() if path == CODES)
        raise UnsupportedError(f"device cuda, member {lanes[0]!r}", expected="the compiled extension, which runs float members",
                               got=reason, fix=_way_out(good))


def only_codes(graph: Graph) -> bool:
    """Whether one plan of quantized members runs the whole graph."""
    return all(map(runnable, graph.nodes))


@dataclass(frozen=True)
class EnsemblePlan:
    """What :class:`hce_engine.backends.cuda.ensemble.EnsembleProgram` runs for ``batch`` images: parts that know nothing of
    each other, on the same images, and the mean of the voters last."""

    batch: int
    members: tuple[str, ...]
    voters: tuple[str, ...]
    parts: tuple[Part, ...]
    classes: int
    image_shape: tuple[int, ...]
    float_images: bool

    @property
    def mean_launches(self) -> int:
        return int(len(self.voters) > 1)

    @property
    def launches(self) -> int:
        return sum(part.launches for part in self.parts) + self.mean_launches

    @property
    def mean_bytes(self) -> int:
        return 4 * self.batch * self.classes * (len(self.voters) + 1) * self.mean_launches

    @property
    def arena_bytes_per_image(self) -> int:
        """Of whole tiles; a batch of one image takes a tile."""
        return -(-arena_bytes(self, 32) // 32)

    def __str__(self) -> str:
        head = f"plan {'+'.join(self.members)} on cuda for {self.batch} images: {len(self.parts)} parts, {self.launches} launches"
        mean = [f"  ensemble_mean of {', '.join(self.voters)}"] * self.mean_launches
        return "\n".join([head, *map(str, self.parts), *mean])


def build_ensemble_plan(
    graph: Graph, batch: int, gpu: str | None = None, *, layout: str | Mapping[str, str] = AUTO,
    chosen_for: int | None = None, convolution: str = "auto", arithmetic: str = IEEE,
) -> EnsemblePlan:
    """The plan of all members of ``graph``, quantized and float. gpu: as of :func:`build_plan`.  layout, chosen_for, convolution,
    arithmetic: of float members, as of :func:`hce_engine.plan.cuda.layout.build_float_plan`; a mapping names the layout of each.

    The graph must be lowered. Raises GraphError, InputError or UnsupportedError; it does not ask for the extension.
    """
    check_arithmetic(arithmetic)
    verify(graph)
    path = paths(graph)
    voters = tuple(m.name for m in graph.voters)
    if len(voters) > MEANS_LIMIT:
        raise UnsupportedError("device cuda, mean of logits", expected=f"at most {MEANS_LIMIT} members", got=str(len(voters)),
                               fix="use device cpu, or fewer members")
    parts: list[Part] = []
    for group in components(graph):
        if path[group.members[0].name] == CODES:
            parts.append(_without_mean(build_plan(group, batch, gpu)))
        else:
            named = layout if isinstance(layout, str) else layout[group.members[0].name]
            parts.append(build_float_plan(group, batch, named, chosen_for=chosen_for, convolution=convolution,
                                          arithmetic=arithmetic))
    image = graph.input.spec
    classes = graph[graph.members[0].output].spec.shape[0]
    return EnsemblePlan(batch, tuple(path), voters, tuple(parts), classes, image.shape, image.type.is_float)


def _without_mean(plan: Plan) -> Plan:
    """A plan of quantized members less the mean of its own voters: the ensemble has a mean of all."""
    outputs = {name: value for name, value in plan.outputs.items() if name != "ensemble"}
    mean = plan.outputs["ensemble"]
    steps = plan.steps if any(mean is value for value in outputs.values()) else plan.steps[:-1]
    return replace(plan, steps=steps, outputs=outputs)


def arena_bytes(plan: EnsemblePlan, batch: int) -> int:
    """Bytes of maps that the parts need for ``batch`` images."""
    return sum(part.arena_bytes_per_image * batch if isinstance(part, Plan)
               else part.arena_bytes_per_tile * tiles_of(batch, part.layout) for part in plan.parts)


def largest_ensemble_bucket(plan: EnsemblePlan, wanted: int = MAX_BATCH) -> int:
    """The largest power of two up to ``wanted`` images that every part can address and whose maps keep to ARENA_LIMIT
    together; 0 if a single image does not."""

    def fits(batch: int) -> bool:
        pixels = max((tiles_of(batch, part.layout) * m.height * m.width * (1 if m.height * m.width > 1 else m.depth * TILE)
                      for part in plan.parts if isinstance(part, LanesPlan)
                      for s in part.steps for m in s.writes.values()), default=0)
        if pixels > PIXELS_LIMIT or arena_bytes(plan, batch) > ARENA_LIMIT:
            return False
        return all(largest_bucket(part, batch) == batch for part in plan.parts if isinstance(part, Plan))

    return next((size for size in _halves(1 << (wanted.bit_length() - 1)) if fits(size)), 0)


def _halves(size: int) -> Iterator[int]:
    while size:
        yield size
        size //= 2


# -- bounds -------------------------------------------------------------------------------------------------------------


def products_bound(step: LaneStep, gpu: Gpu) -> Bound:
    """Of the products of a float step alone: outside the tensor cores, or on them where operands are split."""
    if step.arithmetic == IEEE:
        return Bound(2 * step.cost.walked / FFMA[gpu.name], "FFMA")
    return Bound(2 * PRODUCTS * step.cost.walked / TENSOR_CORES[gpu.name][step.arithmetic], step.arithmetic)


def part_bounds(part: Part, gpu: Gpu) -> list[Bound]:
    """Of each step, from the datasheet."""
    if isinstance(part, Plan):
        return [bound(step.cost, step.launches, gpu) for step in part.steps]
    bounds = []
    for step in part.steps:
        least = bound(replace(step.cost, walked=0), step.launches, gpu)
        own = products_bound(step, gpu)
        bounds.append(own if own.seconds > least.seconds else least)
    return bounds


@dataclass(frozen=True)
class EnsembleBound:
    """Least seconds of an ensemble. parts: of each alone.  sequential: parts one after the other, then the mean.
    perfect_overlap: the parts at the same time, as if each resource were used without a gap: the longest part, or all bytes
    together at the memory's bandwidth, then the mean."""

    parts: tuple[float, ...]
    sequential: float
    perfect_overlap: float


def ensemble_bound(plan: EnsemblePlan, gpu: Gpu) -> EnsembleBound:
    parts = tuple(sum(b.seconds for b in part_bounds(part, gpu)) for part in plan.parts)
    mean = plan.mean_launches * max(plan.mean_bytes / gpu.bandwidth, LAUNCH_FLOOR)
    moved = sum(part.cost.bytes for part in plan.parts) / gpu.bandwidth
    return EnsembleBound(parts, sum(parts) + mean, max(*parts, moved) + mean)
