"""One step of a plan, timed inside a small network that feeds it: its maps lie where a network's would, freshly written.

The graphs are those of the back ends' tests (tests/backends/graphs.py): small, random, and valid.
"""

from __future__ import annotations

import numpy as np

from benchmarks.kernel_shapes import Layer, MapStep
from hce_engine import _native
from hce_engine.backends.cpu import compile_plan
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan
from hce_engine.plan.cpu.lanes import LANES
from hce_engine.plan.cpu.work import step_work
from tests.backends.graphs import GraphBuilder, pixels


def layer_graph(layer: Layer, kind: str) -> Graph:
    """Images of as many channels as the layer reads -> lanes -> the layer -> logits."""
    b = GraphBuilder((layer.c, layer.size, layer.size))
    pad = layer.kernel // 2
    options = {"kernel": (layer.kernel, layer.kernel), "stride": (layer.stride, layer.stride), "padding": (pad, pad), "groups": layer.groups}
    if kind == "f32":
        y = b.conv(b.normalize(), layer.oc, low=0.0, **options)
        return b.finish(b.add("global_avg_pool", [y]))
    codes, weights = kind.split("x")
    x = "image" if codes == "u8" else b.codes(codes)
    y = b.qconv(x, layer.oc, weight_dtype=weights, out=codes, **options)
    return b.finish(b.add("qglobal_avg_pool", [y], {"qmin": 0, "qmax": 255, "multiplier": 2.0**-7}, dtype="u8", scale=0.1))


def map_graph(case: MapStep) -> Graph:
    """A layer of one product per pixel and channel, then the step; ``halo`` is what the layer behind it makes necessary."""
    c = case.c if case.step == "load" else 1
    b = GraphBuilder((c, case.size, case.size))
    one = {"kernel": (1, 1), "padding": (0, 0)}
    if case.step == "load":
        x = "image" if case.codes else b.normalize()
    else:
        x = b.qconv("image", case.c, weight_dtype="s8", **one) if case.codes else b.conv(b.normalize(), case.c, **one)
    codes = {"qmin": 0, "qmax": 255}
    if case.step in ("load", "halo"):
        y = b.qconv(x, 1, weight_dtype="s8") if case.codes else b.conv(x, 1)
    elif case.step == "add":
        other = b.qconv("image", case.c, weight_dtype="s8", **one) if case.codes else b.conv("n1_normalize", case.c, **one)
        y = b.add("qadd", [x, other], {**codes, "multipliers": [0.5, 0.5]}) if case.codes else b.add("add", [x, other], {"min": 0.0, "max": None})
    elif case.step == "max_pool":
        y = b.add("max_pool2d", [x], {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})
    elif case.step == "global_avg_pool":
        y = b.add("qglobal_avg_pool", [x], {**codes, "multiplier": 2.0**-7}) if case.codes else b.add("global_avg_pool", [x])
    elif case.step == "recode":  # read twice, so that the layer's epilogue cannot take it over
        first, y = b.codes("u4", source=x), b.codes("u3", source=x)
        y = b.add("concat", [b.add("qrecode", [first], {"k": 65536, "qmin": 0, "qmax": 7}, dtype="u3", scale=0.1), y])
    elif case.step == "slice_and_pad":
        cut = {"h": (0, case.size, 2), "w": (0, case.size, 2)}
        y = b.add("channel_pad", [b.add("strided_slice", [x], cut)], {"before": case.c // 2, "after": case.c // 2})
    else:
        y = b.add("concat", [x, x])
    if b.specs[y].shape[1:] != (1, 1):
        y = b.add("qglobal_avg_pool", [y], {**codes, "multiplier": 2.0**-7}, dtype="u8", scale=0.1) if case.codes else b.add("global_avg_pool", [y])
    return b.finish(y)


_METHODS = {
    "load": ("load_codes", "load_normalized"), "halo": ("halo",), "add": ("add_u8", "add_f32"), "max_pool": ("pool",),
    "global_avg_pool": ("pool",), "recode": ("recode",), "slice_and_pad": ("copy",), "concat": ("copy",),
}


class TimedStep:
    """A step of one tile of 16 images; a call runs its network and returns the seconds that the step took in it."""

    def __init__(self, graph: Graph, isa: str, methods: tuple[str, ...]) -> None:
        native = _native.extension()
        shape = graph.input.spec.shape
        plan = build_plan(graph, isa)
        self.index, self.step = next((i, s) for i, s in enumerate(plan.steps) if s.method in methods)
        self.work = step_work(self.step)
        self.images = pixels((shape[0], shape[1], shape[2]), LANES)
        self.output = np.empty((LANES, graph[graph.members[0].output].spec.shape[0]), np.float32)
        self.program = compile_plan(plan, shape, False)
        self.executor = native.Executor(isa, 1)
        self.clock_cost = native.clock_seconds() * self.step.calls(LANES, plan.images)

    @classmethod
    def of_layer(cls, layer: Layer, kind: str, isa: str) -> TimedStep:
        return cls(layer_graph(layer, kind), isa, ("conv_f32", "conv_u8", "dense_f32"))

    @classmethod
    def of_map(cls, case: MapStep, isa: str) -> TimedStep:
        return cls(map_graph(case), isa, _METHODS[case.step])

    def __call__(self) -> float:
        nanoseconds = self.executor.profile((self.program, [self.output], 0, LANES), self.images)[self.index]
        return max(nanoseconds * 1e-9 - self.clock_cost, 1e-9)
