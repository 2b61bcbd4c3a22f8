"""Which layout float members get: the one whose modelled time is least for a batch.

Times are modelled on an H200. A step takes at least as long as its bytes need, and its launches; a convolution as long as its
configuration was estimated to take (lanes_select.py, winograd_select.py, nhwc_select.py). They rank layouts and claim nothing else.

Within a layout the logits of an image do not depend on its batch. Between the layouts they differ by roundings, where image lanes
run a layer by Winograd or where NHWC cuts a sum of more than 576 products into segments. Who plans several batches whose results must
not differ therefore names the batch that decides for all of them (``chosen_for``).
"""

from __future__ import annotations

from dataclasses import replace

from ...arithmetic import IEEE, check_arithmetic
from ...errors import InputError, UnsupportedError
from ...graph import Graph
from .lanes_lowering import build_lanes_plan, require_convolution
from .lanes_plan import LANES, LAYOUTS, NHWC, ConvConfig, LanesPlan, LaneStep, NhwcConfig, WinogradConfig
from .lanes_select import MULTIPROCESSORS, conv_cycles
from .nhwc_lowering import build_nhwc_plan
from .nhwc_select import BANDWIDTH, CLOCK, Product
from .roofline import LAUNCH_FLOOR
from .winograd_select import pixel_tiles, winograd_cycles

AUTO = "auto"
LANES_PER_CYCLE = 128  # fused multiply-adds of a multiprocessor


def _arithmetic(plan: LanesPlan, step: LaneStep) -> float:
    """Estimated seconds of a step that computes without waiting for memory."""
    config, y = step.config, next(iter(step.writes.values()), None)
    if y is None or config is None:
        return step.cost.walked / (MULTIPROCESSORS * LANES_PER_CYCLE * CLOCK)
    if isinstance(config, WinogradConfig):
        inputs, outputs = step.arguments["channels"]
        jobs = plan.tiles * pixel_tiles(config.output, y.height, y.width)
        return winograd_cycles(config, inputs, outputs, jobs, "residual" in step.reads) / (MULTIPROCESSORS * CLOCK)
    (kh, kw, *_), (groups, inputs, outputs) = step.arguments["window"], step.arguments["channels"]
    if isinstance(config, NhwcConfig):
        return Product(plan.batch * y.height * y.width, groups, outputs, inputs, kh * kw).seconds(config)
    assert isinstance(config, ConvConfig)
    rows, width = (1, plan.tiles) if step.kernel == "linear_f32" else (plan.tiles * y.height, y.width)
    return conv_cycles(outputs, groups, kh * kw * inputs, kh * kw, rows, width, config) / (MULTIPROCESSORS * CLOCK)


def modelled_seconds(plan: LanesPlan) -> float:
    """Of a plan in ``ieee`` on an H200: the sum over its steps."""
    return sum(max(s.cost.bytes / BANDWIDTH, s.launches * LAUNCH_FLOOR, _arithmetic(plan, s)) for s in plan.steps)


def _cuts_sums(plan: LanesPlan) -> bool:
    return any(isinstance(s.config, NhwcConfig) and s.config.segments > 1 for s in plan.steps)


def build_float_plan(
    graph: Graph, batch: int, layout: str = AUTO, *, chosen_for: int | None = None, convolution: str = "auto",
    arithmetic: str = IEEE,
) -> LanesPlan:
    """The plan of float members for ``batch`` images.

    layout: ``lanes``, ``nhwc``, or ``auto``: the one of less modelled time for ``chosen_for`` images, by default ``batch``.
    convolution: of image lanes, as of ``build_lanes_plan``; with ``direct``, ``auto`` takes NHWC only where it cuts no sum. Both layouts
    then give the same values, and ``batch`` alone decides.  arithmetic: as of ``build_lanes_plan``; all but ``ieee`` are of image lanes.

    Raises InputError for another layout, convolution or arithmetic, GraphError, or UnsupportedError as ``build_lanes_plan`` and for an
    arithmetic that the named layout does not have.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise InputError("layout of float members", expected=", ".join((AUTO, *LAYOUTS)), got=repr(layout),
                         fix="choose one of them")
    require_convolution(convolution)
    check_arithmetic(arithmetic)
    if arithmetic != IEEE:
        if layout == NHWC:
            raise UnsupportedError(f"layout {NHWC}", expected=f"arithmetic {IEEE}", got=arithmetic,
                                   fix=f"name layout {LANES}, or leave one of them out")
        plan = build_lanes_plan(graph, batch, convolution=convolution, arithmetic=arithmetic)
        return plan if layout == LANES else replace(plan, why=f"{arithmetic} is of image lanes")

    def build(name: str, images: int) -> LanesPlan:
        return build_nhwc_plan(graph, images) if name == NHWC else build_lanes_plan(graph, images, convolution=convolution)

    if layout != AUTO:
        return build(layout, batch)
    direct = convolution == "direct"
    decisive = batch if chosen_for is None or direct else chosen_for
    plans = {name: build(name, decisive) for name in LAYOUTS}
    if direct and _cuts_sums(plans[NHWC]):
        return replace(plans[LANES], why="nhwc cuts sums")
    seconds = {name: modelled_seconds(plan) for name, plan in plans.items()}
    best, other = sorted(LAYOUTS, key=lambda name: seconds[name])
    why = f"modelled {1e6 * seconds[best]:.1f} us, {other} {1e6 * seconds[other]:.1f} us"
    if decisive != batch:
        why += f" for {decisive} images"
    return replace(plans[best] if decisive == batch else build(best, batch), why=why)
