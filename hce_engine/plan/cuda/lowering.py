"""Graph -> steps for the GPU: maps and fused epilogues. Which configuration each step gets is decided in select.py, once
all halos are known.

Fusions decided here: an input recoding runs in the epilogue of the step that made the codes, where that can (convolutions
and additions); a strided slice and its channel padding are one gather; global pool, flatten and head are one launch where
the pooled codes are u8 and go nowhere else; a flatten is a name for the map it reads, and a head over it is a convolution
whose kernel is the map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node, TensorSpec, verify
from ...kernels.configurations import HEAD_CLASSES
from ...kernels.description import Codes, Geometry, Pair
from . import arena, select
from .plan import Layer, Logits, Map, Plan, Value
from .storage import map_bits
from .tuned import Tuned

MEANS_LIMIT = 16  # operands of one mean
ONE: Pair = (1, 1)
ZERO: Pair = (0, 0)
FLATTEN_LIMIT = 4096  # features of a vector that a product with the identity may lay out


@dataclass
class Draft:
    """A step before its configuration is known; fields as of :class:`plan.Step`. kind: ``u4xs4`` and the like."""

    nodes: Sequence[Node]
    launcher: str
    reason: str
    reads: dict[str, Value]
    writes: dict[str, Value]
    arguments: dict[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    layer: Layer | None = None
    weight_dtype: str = ""
    kind: str = ""


def _chw(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _pair(values: Sequence[int]) -> Pair:
    return (values[0], values[1])


def runnable(node: Node) -> bool:
    """Whether the GPU has a kernel for a node: all quantized operations, and means of logits."""
    if node.op in ("input", "qlinear", "mean"):
        return True
    return node.op in Lowering.HANDLERS and not node.spec.type.is_float


def require_runnable(graph: Graph) -> None:
    """Raises UnsupportedError for the first float node; it names the member, and those that can run."""
    if all(map(runnable, graph.nodes)):
        return
    nodes = {m.name: graph.only(m.name).nodes for m in graph.members}
    good = [name for name, own in nodes.items() if all(map(runnable, own))]
    member, node = next((name, n) for name, own in nodes.items() for n in own if not runnable(n))
    if good:
        fix = f"name the quantized members, members={tuple(good)!r} or --members {','.join(good)}, or use device cpu"
    else:
        fix = "use device cpu, which runs every member"
    raise UnsupportedError(
        f"device cuda, member {member!r}, {node.op} %{node.name}", expected="operations of quantized members",
        got=f"{node.op} of {node.spec.dtype}, which only the cpu device has", fix=fix,
    )


class Lowering:
    """One pass over the graph in topological order; ``values`` holds where each node's value lies."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.consumers = graph.consumers()
        self.values: dict[str, Value] = {}
        self.images: dict[tuple[int, ...], Map] = {}  # pad codes -> the image as codes with that halo
        self.drafts: list[Draft] = []
        self.done: set[str] = set()  # nodes computed inside another node's step
        self.pooled: dict[str, Node] = {}  # head -> the global pool that it computes as well

    # -- values -----------------------------------------------------------------------------------------------------

    def new_map(self, node: Node, spec: TensorSpec | None = None) -> Map:
        spec = spec or node.spec
        c, h, w = _chw(spec.shape)
        residual = any(u.op == "qconv2d" and node.name in u.inputs[1:] for u in self.consumers[node.name])
        bits = map_bits(spec.dtype, c, wide=residual or node.op == "concat")
        return Map(node.name, spec.dtype, c, h, w, bits, np.full(c, spec.zero_point, np.uint8))

    def map(self, name: str) -> Map:
        """The map of a node; the image as codes is loaded when first read."""
        value = self.image_map(None) if name == self.graph.input.name else self.values[name]
        assert isinstance(value, Map)
        return value

    def image_map(self, pad: tuple[int, ...] | None) -> Map:
        """The pixels as codes, loaded once per set of pad codes; None: any, for readers that see no halo."""
        node = self.graph.input
        if pad is None:
            padded = [u for u in self.consumers[node.name] if u.op == "qconv2d" and max(u.attrs["padding"])]
            pad = tuple(padded[0].attrs["pad_code"]) if padded else (0,) * node.spec.shape[0]
        if pad not in self.images:
            image = self.images[pad] = self.new_map(node)
            image.pad = np.array(pad, np.uint8)
            self.emit((node,), "load_pixels", "pixels are codes", {}, {"y": image})
        return self.images[pad]

    def emit(
        self, nodes: Sequence[Node], launcher: str, reason: str, reads: Mapping[str, Value], writes: Mapping[str, Value],
        **keys: Any,
    ) -> None:
        known = {key: keys.pop(key) for key in ("geometry", "layer", "weight_dtype", "kind") if key in keys}
        self.drafts.append(Draft(nodes, launcher, reason, dict(reads), dict(writes), keys, **known))

    @staticmethod
    def codes(node: Node) -> Codes:
        return Codes(node.spec.zero_point, node.attrs["qmin"], node.attrs["qmax"])

    def outputs(self, node: Node) -> tuple[list[Node], dict[str, Value], tuple[Codes, int] | None]:
        """(nodes, maps, recoding) of a step whose epilogue can recode: the first recoding among the consumers is fused,
        and the codes themselves are written only if anyone else reads them."""
        recode = next((u for u in self.consumers[node.name] if u.op == "qrecode"), None)
        writes: dict[str, Value] = {}
        if recode is None or len(self.consumers[node.name]) > 1:
            writes["y"] = self.values[node.name] = self.new_map(node)
        if recode is None:
            return [node], writes, None
        self.done.add(recode.name)
        writes["recoded"] = self.values[recode.name] = self.new_map(recode)
        return [node, recode], writes, (self.codes(recode), recode.attrs["k"])

    # -- convolution and linear -------------------------------------------------------------------------------------

    def convolution(self, node: Node) -> None:
        source, a = self.graph[node.inputs[0]], node.attrs
        padded = max(a["padding"]) > 0
        is_image = source.op == "input"
        x = self.image_map(tuple(a["pad_code"]) if padded else None) if is_image else self.map(source.name)
        weight, groups = node.params["weight"], a["groups"]
        geometry = Geometry(_pair(weight.shape[2:]), _pair(a["stride"]), _pair(a["padding"]), _pair(a["dilation"]),
                            _pair(node.spec.shape[1:]))
        x.widen(geometry.halo(x.height, x.width))
        macs, launcher = weight.size, "conv2d"
        if groups == 1:
            reason = "implicit matrix product"
        elif groups == x.channels == weight.shape[0]:
            launcher, reason = "depthwise_conv2d", "one channel each: no matrix product"
        else:
            weight = block_diagonal(weight, groups)
            reason = f"{groups} groups as one block-diagonal weight: {groups}x the products, for want of a grouped kernel"
        layer = Layer(node.name, weight, node.params["bias"], node.params["multiplier"], None, source.spec.type.qmax, macs,
                      geometry.dilation[1])
        nodes, writes, recoded = self.outputs(node)
        reads: dict[str, Value] = {"x": x}
        residual = None
        if len(node.inputs) == 2:
            reads["residual"] = self.map(node.inputs[1])
            residual = (self.graph[node.inputs[1]].spec.zero_point, a["residual_multiplier"])
        self.emit(nodes, launcher, reason, reads, writes, geometry=geometry, layer=layer, weight_dtype=a["weight_dtype"],
                  kind=f"{source.spec.dtype}x{a['weight_dtype']}", codes=self.codes(node), recoded=recoded, residual=residual)

    def linear(self, node: Node) -> None:
        a, p = node.attrs, node.params
        logits = self.values[node.name] = Logits(node.name, node.spec.shape[0])
        pool = self.pooled.get(node.name)
        source = self.graph[node.inputs[0]].spec
        kind = f"{source.dtype}x{a['weight_dtype']}"

        def layer(weight: np.ndarray) -> Layer:
            return Layer(node.name, weight, p["bias"], p["multiplier"], p["offset"], source.type.qmax, weight.size)

        if pool is not None:
            nodes = [pool, self.graph[node.inputs[0]], node]
            self.emit(nodes, "head", "global pool and head in one launch", {"x": self.map(pool.inputs[0])},
                      {"logits": logits}, layer=layer(p["weight"][:, :, None, None]), weight_dtype=a["weight_dtype"], kind=kind,
                      zero_point_in=self.graph[pool.inputs[0]].spec.zero_point, pool_multiplier=pool.attrs["multiplier"],
                      pooled=self.codes(pool))
            return
        x = self.map(node.inputs[0])
        weight = p["weight"].reshape(-1, *x.extent)
        if (x.height, x.width) == ONE:
            self.emit([node], "gemm", "one vector per image", {"x": x}, {"logits": logits}, layer=layer(weight),
                      weight_dtype=a["weight_dtype"], kind=kind, codes=None, recoded=None, residual=None)
            return
        geometry = Geometry((x.height, x.width), ONE, ZERO, ONE, ONE)
        self.emit([node], "conv2d", "a head over a map: its kernel is the map", {"x": x}, {"logits": logits},
                  geometry=geometry, layer=layer(weight), weight_dtype=a["weight_dtype"], kind=kind, codes=None,
                  recoded=None, residual=None)

    # -- everything else --------------------------------------------------------------------------------------------

    def quantize_input(self, node: Node) -> None:
        y = self.values[node.name] = self.new_map(node)
        self.emit((node,), "quantize_floats", "float images to codes; marks NaN and Inf", {}, {"y": y}, low=node.attrs["low"],
                  multiplier=node.attrs["multiplier"])

    def qrecode(self, node: Node) -> None:
        x = self.map(node.inputs[0])
        y = self.values[node.name] = self.like(node, x)
        self.emit((node,), "recode", "codes of another scale, made by a step that cannot recode", {"x": x}, {"y": y},
                  zero_point_in=self.graph[node.inputs[0]].spec.zero_point, codes=self.codes(node), factor=node.attrs["k"])

    def like(self, node: Node, x: Map) -> Map:
        """The map of an element-wise node: a vector that was flattened keeps the map's order."""
        return self.new_map(node, TensorSpec(x.extent, node.spec.dtype, node.spec.scale, node.spec.zero_point))

    def qadd(self, node: Node) -> None:
        a, b = (self.map(name) for name in node.inputs)
        if a.extent != b.extent:
            a, b = (self.laid_out(node, name) for name in node.inputs)
        nodes, writes, recoded = self.outputs(node)
        for key, value in writes.items():  # flattened operands: the result lies as they do
            assert isinstance(value, Map)
            if value.extent != a.extent:
                writes[key] = self.values[value.name] = self.like(self.graph[value.name], a)
        self.emit(nodes, "add", "element-wise", {"a": a, "b": b}, writes,
                  zero_points=tuple(self.graph[name].spec.zero_point for name in node.inputs),
                  multipliers=tuple(node.attrs["multipliers"]), codes=self.codes(node), recoded=recoded)

    def laid_out(self, node: Node, name: str) -> Map:
        """A flattened map as a vector in its own right: a convolution with the identity, which moves codes exactly.
        Needed only where two maps of different sizes meet as vectors."""
        x, spec = self.map(name), self.graph[name].spec
        if (x.height, x.width) == ONE:
            return x
        size, zero = spec.elements, spec.zero_point
        if size > FLATTEN_LIMIT:
            raise UnsupportedError(
                f"device cuda, {node.op} %{node.name}", expected=f"vectors of at most {FLATTEN_LIMIT} features",
                got=f"{size} of a flattened map", fix="use device cpu",
            )
        y = Map(f"{name}.vector", spec.dtype, size, 1, 1, map_bits(spec.dtype, size, wide=False), np.full(size, zero, np.uint8))
        identity = np.eye(size, dtype=np.int8).reshape(size, *x.extent)
        bias, ones = np.full(size, -zero, np.int32), np.ones(size, np.float32)
        layer = Layer(y.name, identity, bias, ones, None, spec.type.qmax, 0)
        self.emit((self.graph[name],), "conv2d", "lays out a flattened map: a product with the identity", {"x": x}, {"y": y},
                  geometry=Geometry((x.height, x.width), ONE, ZERO, ONE, ONE), layer=layer, weight_dtype="s8",
                  kind=f"{spec.dtype}xidentity", codes=Codes(zero, 0, spec.type.qmax), recoded=None, residual=None)
        return y

    def pool(self, node: Node) -> None:
        source = self.graph[node.inputs[0]]
        if node.op == "qglobal_avg_pool" and node.spec.dtype == "u8":
            users = self.consumers[node.name]
            heads = self.consumers[users[0].name] if len(users) == 1 and users[0].op == "flatten" else []
            if len(heads) == 1 and heads[0].op == "qlinear" and heads[0].spec.shape[0] <= HEAD_CLASSES:
                self.pooled[heads[0].name] = node
                self.done.add(users[0].name)
                return
        x = self.map(source.name)
        y = self.values[node.name] = self.new_map(node)
        a = node.attrs
        if node.op == "qglobal_avg_pool":
            geometry = Geometry((x.height, x.width), ONE, ZERO, ONE, ONE)
        else:
            geometry = Geometry(_pair(a["kernel"]), _pair(a["stride"]), _pair(a["padding"]), ONE, (y.height, y.width))
        if node.op == "max_pool2d":
            y.bits = max(y.bits, x.bits)
            self.emit((node,), "max_pool", "moves the largest codes", {"x": x}, {"y": y}, geometry=geometry)
        else:
            self.emit((node,), "average_pool", "sums windows", {"x": x}, {"y": y}, geometry=geometry,
                      zero_point_in=source.spec.zero_point, multiplier=a["multiplier"], codes=self.codes(node))

    def gather(self, nodes: Sequence[Node], source: str, y: Map, reason: str, **where: Any) -> None:
        arguments = {"first_channel": 0, "rows": (0, 1), "columns": (0, 1), "whole": True, **where}
        x = self.map(source)
        y.bits = max(y.bits, x.bits)
        self.emit(nodes, "gather", reason, {"x": x}, {"y": y}, fill_code=nodes[-1].spec.zero_point, **arguments)

    @staticmethod
    def steps_of(node: Node) -> dict[str, Pair]:
        (h0, _, hs), (w0, _, ws) = node.attrs["h"], node.attrs["w"]
        return {"rows": (h0, hs), "columns": (w0, ws)}

    def strided_slice(self, node: Node) -> None:
        users = self.consumers[node.name]
        if len(users) == 1 and users[0].op == "channel_pad":
            return  # one gather with it
        y = self.values[node.name] = self.new_map(node)
        self.gather((node,), node.inputs[0], y, "every n-th pixel", **self.steps_of(node))

    def channel_pad(self, node: Node) -> None:
        y = self.values[node.name] = self.new_map(node)
        source, first = self.graph[node.inputs[0]], node.attrs["before"]
        if source.op == "strided_slice" and source.name not in self.values:
            self.gather((source, node), source.inputs[0], y, "slice and zero maps in one", first_channel=first,
                        **self.steps_of(source))
        else:
            self.gather((node,), source.name, y, "zero maps", first_channel=first)

    def concat(self, node: Node) -> None:
        y = self.values[node.name] = self.new_map(node)
        first = 0
        for name in node.inputs:
            self.gather((node,), name, y, f"channels from {first} on", first_channel=first, whole=False)
            first += self.graph[name].spec.shape[0]

    def flatten(self, node: Node) -> None:
        self.values[node.name] = self.map(node.inputs[0])

    def mean(self, node: Node) -> None:
        y = self.values[node.name] = Logits(node.name, node.spec.shape[0])
        self.average((node,), [self.values[name] for name in node.inputs], y)

    def average(self, nodes: Sequence[Node], logits: Sequence[Value], out: Logits) -> None:
        if len(logits) > MEANS_LIMIT:
            raise UnsupportedError("device cuda, mean of logits", expected=f"at most {MEANS_LIMIT} members",
                                   got=str(len(logits)), fix="use device cpu, or fewer members")
        reads = {f"logits{i}": value for i, value in enumerate(logits)}
        self.emit(nodes, "ensemble_mean", f"mean of {len(logits)} logits, in order", reads, {"out": out})

    HANDLERS: dict[str, Callable[[Lowering, Node], None]] = {
        "quantize_input": quantize_input, "qconv2d": convolution, "qlinear": linear, "qrecode": qrecode, "qadd": qadd,
        "max_pool2d": pool, "qavg_pool2d": pool, "qglobal_avg_pool": pool, "strided_slice": strided_slice,
        "channel_pad": channel_pad, "concat": concat, "flatten": flatten, "mean": mean,
    }  # fmt: skip

    def run(self) -> dict[str, Logits]:
        """Makes all drafts; returns member -> logits, and the ensemble's."""
        for node in self.graph.nodes:
            if node.op != "input" and node.name not in self.done:
                self.HANDLERS[node.op](self, node)
        outputs: dict[str, Logits] = {}
        for member in self.graph.members:
            value = self.values[member.output]
            assert isinstance(value, Logits)
            if self.graph.input.spec.type.is_float and value not in outputs.values():
                self.emit((self.graph[member.output],), "mark", "rows of images with NaN or Inf", {"logits": value},
                          {"out": value})
            outputs[member.name] = value
        voters = self.graph.voters
        if len(voters) > 1:
            ensemble = Logits("ensemble", outputs[voters[0].name].classes)
            self.average([self.graph[m.output] for m in voters], [outputs[m.name] for m in voters], ensemble)
            outputs["ensemble"] = ensemble
        else:
            outputs["ensemble"] = outputs[voters[0].name]
        return outputs


def block_diagonal(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights ``[OC, C, KH, KW]`` that are 0 outside their group, from ``[OC, C / groups, KH, KW]``."""
    oc, cg, kh, kw = weight.shape
    full = np.zeros((oc, groups * cg, kh, kw), weight.dtype)
    per = oc // groups
    for g in range(groups):
        full[g * per : (g + 1) * per, g * cg : (g + 1) * cg] = weight[g * per : (g + 1) * per]
    return full


def build_plan(graph: Graph, batch: int, gpu: str | None = None) -> Plan:
    """The plan of all members of ``graph`` (they share the nodes they have in common) for ``batch`` images.

    gpu: name of the GPU whose measured configurations are used, where there are any; None: defaults.
    The graph must be lowered. Raises GraphError, or UnsupportedError for float nodes.
    """
    verify(graph)
    require_runnable(graph)
    lowering = Lowering(graph)
    outputs = lowering.run()
    shape = graph.input.spec.shape
    float_images = graph.input.spec.type.is_float
    image_bytes = graph.input.spec.elements * (4 if float_images else 1)
    tuned = Tuned(gpu)
    steps = tuple(select.step(draft, batch, image_bytes, tuned) for draft in lowering.drafts)
    slots = arena.place(steps)
    return Plan(batch, tuple(m.name for m in graph.members), steps, slots, outputs, shape, float_images)
