"""Graph -> steps for the CPU: one pass that gives each operation its step and each map its lanes.

A strided slice and its channel padding are one copy; layers.py has the fusions around layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node
from . import select, stages
from .caches import Caches
from .lanes import Lanes, strided
from .layers import ONE, Layers, chw, limits
from .plan import Map
from .spread import lines_of, size_of

SCRATCH = ("scratch", "sums")  # maps that hold no pixels


class Lowering(Layers):
    """One pass over the graph in topological order."""

    def __init__(
        self, graph: Graph, isa: str, choose_conv_f32: Callable[..., select.ConvChoice],
        choose_conv_u8: Callable[..., select.ConvU8Choice], images: int, packed: dict[Any, Any], caches: Caches,
    ) -> None:
        super().__init__(graph, isa, choose_conv_f32, choose_conv_u8, packed)
        winograd = {n.name for n in graph.nodes if n.op == "conv2d" and self.conv_choice(n).winograd}
        self.stages = stages.choose(graph, isa, images, winograd, caches)
        self.stores: dict[int, str] = {}  # id of the step that stores a member's logits -> member

    def load(self, node: Node) -> None:
        """Nothing yet: whoever reads the image names the lanes."""

    def qrecode(self, node: Node) -> None:
        lanes = self.lanes(node)
        x, y = self.value(node.inputs[0], lanes), self.define(node, lanes)
        self.emit((node,), "recode_u8", "codes of another scale", "recode", {"x": x}, {"y": y}, extent=y.extent,
                  recode=self.recode_arguments(node))

    def add(self, node: Node) -> None:
        lanes = self.lanes(node)
        reads = {key: self.value(name, lanes) for key, name in zip("ab", node.inputs, strict=False)}
        y = self.define(node, lanes)
        low, high = limits(node)
        self.emit((node,), "add_f32", "element-wise", "add_f32", reads, {"y": y}, extent=y.extent, scale=1.0, low=low,
                  high=high)

    def mean(self, node: Node) -> None:
        """((x0 + x1) + ...) * f32(1 / n), as backends.reference.mean_logits: every sum after the first is in place."""
        lanes = self.lanes(node)
        y = self.define(node, lanes)
        total, last = self.value(node.inputs[0], lanes), len(node.inputs) - 1
        for index, name in enumerate(node.inputs[1:] or (None,), start=min(1, last)):
            reads = {"a": total} if name is None else {"a": total, "b": self.value(name, lanes)}
            scale = float(np.float32(1.0 / len(node.inputs))) if index == last else 1.0
            self.emit((node,), "add_f32", "running sum of a mean", "add_f32", reads, {"y": y}, extent=y.extent,
                      scale=scale, low=-math.inf, high=math.inf)
            total = y

    def qadd(self, node: Node) -> None:
        lanes = self.lanes(node)
        a, b = node.inputs
        reads = {"a": self.value(a, lanes), "b": self.value(b, lanes)}
        y = self.define(node, lanes)
        self.emit((node,), "add_u8", "element-wise", "add_u8", reads, {"y": y},
                  extent=y.extent, zero_points=(self.graph[a].spec.zero_point, self.graph[b].spec.zero_point),
                  multipliers=tuple(node.attrs["multipliers"]), range=self.code_range(node))

    def pool(self, node: Node) -> None:
        codes = node.spec.dtype != "f32"
        kind = ("max" if node.op == "max_pool2d" else "avg") + ("_u8" if codes else "_f32")
        source = self.graph[node.inputs[0]]
        (kh, kw), stride, (ph, pw) = (node.attrs[key] for key in ("kernel", "stride", "padding")) if "kernel" in node.attrs else (
            size_of(source), ONE, (0, 0))
        lanes = self.lanes(node)
        if node.op in ("global_avg_pool", "qglobal_avg_pool") and self.averages(node, source):
            return
        if (ph or pw) and node.op != "max_pool2d":
            lanes = self.whole(node)  # an average counts the pixels inside the map, which differ from lane to lane
        lanes, x_lanes = strided(lanes, size_of(node), size_of(source), stride)
        cut = lanes.rows * lanes.columns > 1
        if not cut:
            x = self.value(source.name, x_lanes)
        else:
            # Windows reach into the halo, which holds the neighbours' pixels and, outside the map, what no maximum takes.
            lowest = np.uint32(0) if codes else np.float32(-np.inf).view(np.uint32)
            padding = np.broadcast_to(lowest, (lines_of(source),)) if ph or pw else None
            x = self.value(source.name, x_lanes, padding)
            bottom, right = (lanes.h - 1) * stride[0] + kh - ph - x.h, (lanes.w - 1) * stride[1] + kw - pw - x.w
            x.widen(ph, pw, max(bottom, 0), max(right, 0))
            x.surrounded = True
        y = self.define(node, lanes)
        average = codes and kind == "avg_u8"
        self.emit((node,), f"pool_{kind}", "window by window", "pool", {"x": x}, {"y": y}, kind=kind, input=(x.h, x.w),
                  output=y.extent, window=(kh, kw, *stride, ph, pw), halo=cut,
                  count_include_pad=bool(node.attrs.get("count_include_pad", 0)),
                  zero_point_in=source.spec.zero_point,
                  multiplier=node.attrs["multiplier"] if average else 0.0,
                  range=self.code_range(node) if average else (0, 0, 0))

    def averages(self, node: Node, source: Node) -> bool:
        """The averages of a map that lies in blocks, without regrouping it; False where it is whole, or has fewer images."""
        x = next(iter(self.maps.get(source.name, [])), None)
        if x is None or x.images != self.stages.images[node.name] or x.lanes.rows * x.lanes.columns == 1:
            return False
        codes = node.spec.dtype != "f32"
        y = self.define(node, self.lanes(node))
        self.emit((node,), "averages_u8" if codes else "averages_f32", "row by row over all blocks", "averages", {"x": x}, {"y": y},
                  lanes=x.lanes.numbers, extent=(*x.size, x.lines), codes=codes, zero_point_in=source.spec.zero_point,
                  multiplier=node.attrs["multiplier"] if codes else 0.0, range=self.code_range(node) if codes else (0, 0, 0))
        return True

    def copy(self, node: Node, source: str, y: Map, channels: tuple[int, int], rows: Sequence[int],
             columns: Sequence[int], extra: Sequence[Node] = (), fill: int | None = None) -> None:
        """One strided copy into ``y``. rows, columns: (start, step); channels: (count, first in y).  fill: the 4-byte value of
        all other channels, which otherwise keep theirs."""
        x = self.value(source, strided(y.lanes, y.size, size_of(self.graph[source]), (rows[1], columns[1]))[1])
        self.emit((*extra, node), "copy", "moves lines", "copy", {"x": x}, {"y": y}, input=(x.h, x.w), output=y.extent,
                  channels=channels, pixels=(rows[0], rows[1], columns[0], columns[1]), codes=node.spec.dtype != "f32", fill=fill)

    def slice_lanes(self, node: Node, sliced: Node) -> Lanes:
        """Lanes of ``node``, which a strided slice fills: whole maps unless each block starts within one step of its own."""
        (h0, _, sh), (w0, _, sw) = sliced.attrs["h"], sliced.attrs["w"]
        lanes = self.lanes(node) if h0 < sh and w0 < sw else self.whole(node)
        return strided(lanes, size_of(node), size_of(self.graph[sliced.inputs[0]]), (sh, sw))[0]

    def strided_slice(self, node: Node) -> None:
        users = self.consumers[node.name]
        if len(users) == 1 and users[0].op == "channel_pad" and node.name not in self.outputs:
            return  # joins the copy of channel_pad
        y = self.define(node, self.slice_lanes(node, node))
        h, w = node.attrs["h"], node.attrs["w"]
        self.copy(node, node.inputs[0], y, (node.spec.shape[0], 0), (h[0], h[2]), (w[0], w[2]))

    def channel_pad(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        channels, zero = (source.spec.shape[0], node.attrs["before"]), int(self.zeros(node)[0])
        joins = source.op == "strided_slice" and source.name not in self.maps
        y = self.define(node, self.slice_lanes(node, source) if joins else self.lanes(node))
        if joins:
            h, w = source.attrs["h"], source.attrs["w"]
            self.copy(node, source.inputs[0], y, channels, (h[0], h[2]), (w[0], w[2]), extra=(source,), fill=zero)
        else:
            self.copy(node, source.name, y, channels, (0, 1), (0, 1), fill=zero)

    def concat(self, node: Node) -> None:
        y = self.define(node, self.lanes(node))
        first = 0
        for name in node.inputs:
            channels = self.graph[name].spec.shape[0]
            self.copy(node, name, y, (channels, first), (0, 1), (0, 1))
            first += channels

    def flatten(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        c, h, w = chw(source.spec.shape)
        if self.dissolves(node):
            return  # the linear layers read the map itself
        x = self.value(source.name, self.whole(node, (h, w)))
        if h == w == 1:
            self.maps[node.name] = [x]
            return
        y = self.define(node, self.lanes(node))
        self.emit((node,), "flatten", "moves channels", "flatten", {"x": x}, {"y": y}, input=(h, w, c),
                  codes=node.spec.dtype != "f32")

    HANDLERS: dict[str, Callable[[Lowering, Node], None]] = {
        "normalize": load, "quantize_input": load, "conv2d": Layers.conv_f32, "linear": Layers.conv_f32,
        "qconv2d": Layers.conv_u8, "qlinear": Layers.conv_u8, "qrecode": qrecode, "add": add, "clamp": add, "mean": mean, "qadd": qadd,
        "max_pool2d": pool, "avg_pool2d": pool, "global_avg_pool": pool, "qavg_pool2d": pool,
        "qglobal_avg_pool": pool, "strided_slice": strided_slice, "channel_pad": channel_pad, "concat": concat,
        "flatten": flatten,
    }  # fmt: skip

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "input" or node.name in self.done:
                continue
            handler = self.HANDLERS.get(node.op)
            if handler is None:
                raise UnsupportedError(
                    f"cpu plan, {node.op} %{node.name}", expected="an operation of " + ", ".join(self.HANDLERS),
                    got=node.op, fix="lower the graph first (hce_engine.graph.passes.lower)",
                )
            handler(self, node)
        for member in self.graph.members:
            classes = self.graph[member.output].spec.shape[0]
            logits = self.value(member.output, self.whole(self.graph[member.output]))
            self.emit((self.graph[member.output],), "store_logits", f"member {member.name}", "store_logits", {"x": logits}, {},
                      classes=classes)
            self.stores[id(self.steps[-1])] = member.name
