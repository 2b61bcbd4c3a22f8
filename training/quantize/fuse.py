"""Float nodes to steps: which nodes become one step of the integer pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hce_engine.graph import Graph, Node, TensorSpec

from .units import Pixels, Unit, check_clamp, depthwise_ones, linear_as_conv, refuse

_LOGIT_OPS = ("clamp", "add", "mean")
_CLAMPABLE = ("conv", "add", "pool")


def pixels_of(node: Node, image: Node, input_range: tuple[float, float]) -> Pixels:
    """The grid of image codes behind a ``normalize`` node.

    The mean is moved to the nearest code, so that a padded pixel, zero after normalisation, is a code exactly.
    Raises UnsupportedError when that code is outside 0..255.
    """
    scale, offset = (node.params[k].astype(np.float64) for k in ("scale", "offset"))
    if image.spec.dtype == "f32":
        low, high = input_range
        scale, offset = scale * (high - low) / 255, offset + scale * low
    if not (scale > 0).all():
        raise refuse(node, "a normalisation of positive scale", str(scale.tolist()), "use positive stds")
    zero = np.rint(-offset / scale)
    if not ((zero >= 0) & (zero <= 255)).all():
        raise refuse(
            node, "means inside the range of the images, so that padding is a code", str((-offset / scale).tolist()),
            "give the mean and the range in the same units",
        )
    return Pixels(scale, tuple(int(z) for z in zero))


@dataclass
class _Fuser:
    graph: Graph
    input_range: tuple[float, float]
    units: list[Unit] = field(default_factory=list)
    ends: dict[str, Unit] = field(default_factory=dict)  # float node -> the unit that yields its value
    vectors: dict[str, Unit] = field(default_factory=dict)  # the same, flattened for a reader of vectors
    images: dict[str, Pixels] = field(default_factory=dict)  # normalize node -> its grid

    def __post_init__(self) -> None:
        self.consumers = self.graph.consumers()
        self.position = {n.name: i for i, n in enumerate(self.graph.nodes)}
        self.outputs = {m.output for m in self.graph.members}
        self.logits: set[str] = set()

    def emit(self, kind: str, node: Node, inputs: list[Unit], end: str | None = None, **keys: object) -> Unit:
        unit = Unit(kind, node, inputs, end or node.name, **keys)  # type: ignore[arg-type]
        self.units.append(unit)
        self.ends[unit.end] = unit
        return unit

    def fresh(self, name: str) -> str:
        while name in self.graph:
            name += "_"
        return name

    def sole_reader(self, name: str) -> bool:
        return len(self.consumers[name]) == 1 and name not in self.outputs

    def read(self, name: str) -> Unit:
        """The unit that yields ``name``; a normalised image that is read by more than convolutions becomes a tensor."""
        if name in self.images and name not in self.ends:
            node = depthwise_ones(name, self.graph[name])
            return self.emit("conv", node, [self.image()], pixels=self.images[name], constant=True)
        if self.ends[name].kind == "pixels":
            raise refuse(self.ends[name].node, "a normalize node on the image", "none", "capture the model with mean and std")
        return self.ends[name]

    def read_vector(self, name: str) -> Unit:
        unit = self.read(name)
        if unit.kind in ("head", "float") or len(unit.shape) == 1:
            return unit
        if name not in self.vectors:
            spec = TensorSpec((int(np.prod(unit.shape)),))
            flat = Node(self.fresh(f"{unit.node.name}.flat"), "flatten", (unit.end,), spec, {}, {}, unit.node.source)
            self.vectors[name] = self.emit("move", flat, [unit])
        return self.vectors[name]

    def image(self) -> Unit:
        return self.ends[self.graph.input.name]

    def pixels(self, name: str) -> Pixels | None:
        """The grid of ``name`` if a convolution may read the image's codes in its place.

        Only the uint8 image may be padded with a code per channel; a float image is normalised to a signed map first.
        """
        return self.images.get(name) if self.graph.input.spec.dtype == "u8" else None

    def extends(self, name: str, kinds: tuple[str, ...]) -> Unit | None:
        """The unit that ``name`` ends, if one more node may be fused into it."""
        unit = self.ends.get(name)
        free = unit is not None and unit.end == name and unit.kind in kinds and unit.low is None and unit.high is None
        return unit if free and self.sole_reader(name) else None

    def grow(self, unit: Unit, node: Node) -> None:
        unit.end = node.name
        self.ends[node.name] = unit

    def conv(self, node: Node, image_or_map: str) -> None:
        low, high = check_clamp(node, node.attrs["min"], node.attrs["max"])
        pixels = self.pixels(image_or_map)
        inputs = [self.image() if pixels else self.read(image_or_map)]
        inputs += [self.read(name) for name in node.inputs[1:]]
        first = image_or_map in self.images
        self.emit("conv", node, inputs, pixels=pixels, residual=len(inputs) == 2, first=first, low=low, high=high)

    def linear(self, node: Node) -> None:
        if node.name in self.logits:
            self.emit("head", node, [self.read_vector(node.inputs[0])])
            return
        shape = self.read(node.inputs[0]).shape
        self.conv(linear_as_conv(node, shape if len(shape) == 3 else (*shape, 1, 1)), node.inputs[0])

    def batch_norm(self, node: Node) -> None:
        source = node.inputs[0]
        unit = self.extends(source, ("conv",))
        if unit is None or unit.norm is not None or unit.residual:
            shape = self.read(source).shape
            if len(node.spec.shape) == 1 and len(shape) == 3 and shape[1:] != (1, 1):
                raise refuse(
                    node, "a batch norm over channels", f"one over a flattened map {shape}", "put it before the flatten"
                )
            pixels = self.pixels(source)
            inputs = [self.image() if pixels else self.read(source)]
            unit = self.emit("conv", depthwise_ones(node.name, node), inputs, pixels=pixels, constant=True)
        unit.norm = node
        self.grow(unit, node)

    def add(self, node: Node) -> None:
        low, high = check_clamp(node, node.attrs["min"], node.attrs["max"])
        a, b = (self.read(name) for name in node.inputs)
        if a.shape != b.shape:
            raise refuse(node, "operands of one shape before flattening", f"{a.shape} and {b.shape}", "flatten after adding")
        candidates = [
            (self.position[name], i)
            for i, name in enumerate(node.inputs)
            if (unit := self.extends(name, ("conv",))) and not unit.residual and not unit.constant
        ]
        if candidates:
            unit, other = ((a, b), (b, a))[max(candidates)[1]]
            unit.inputs.append(other)
            unit.residual, unit.low, unit.high = True, low, high
            self.grow(unit, node)
        else:
            self.emit("add", node, [a, b], low=low, high=high)

    def clamp(self, node: Node) -> None:
        low, high = check_clamp(node, node.attrs["min"], node.attrs["max"])
        unit = self.extends(node.inputs[0], _CLAMPABLE)
        if unit is None:
            self.emit("recode", node, [self.read(node.inputs[0])], low=low, high=high)
        else:
            unit.low, unit.high = low, high
            self.grow(unit, node)

    def visit(self, node: Node) -> None:
        source = node.inputs[0] if node.inputs else ""
        if node.op == "input":
            name = node.name if node.spec.dtype == "u8" else self.fresh(f"{node.name}.codes")
            self.emit("pixels", replace(node, name=name), [], node.name)
        elif node.op == "normalize":
            if source != self.graph.input.name:
                raise refuse(node, "a normalisation of the image", f"one of %{source}", "use a batch norm inside the network")
            self.images[node.name] = pixels_of(node, self.graph.input, self.input_range)
        elif node.name in self.logits and node.op in _LOGIT_OPS:
            self.emit("float", node, [self.read(name) for name in node.inputs])
        elif node.op == "conv2d":
            self.conv(node, source)
        elif node.op in ("linear", "batch_norm", "add", "clamp"):
            getattr(self, node.op)(node)
        elif node.op == "flatten":
            self.ends[node.name] = self.read(source)
        elif node.op in ("avg_pool2d", "global_avg_pool"):
            if node.op == "avg_pool2d" and max(node.attrs["padding"]) and not node.attrs["count_include_pad"]:
                raise refuse(node, "averages over the whole window", "count_include_pad=False with padding", "pad explicitly")
            self.emit("pool", node, [self.read(source)])
        elif node.op == "concat":
            self.emit("concat", node, [self.read(name) for name in node.inputs])
        elif node.op in ("max_pool2d", "channel_pad", "strided_slice"):
            self.emit("move", node, [self.read(source)])
        else:
            raise refuse(node, "an operation with an integer form", node.op, "leave it out of the quantized member")

    def find_logits(self) -> None:
        """Nodes whose value goes nowhere but into logits, through element-wise operations only."""
        for node in reversed(self.graph.nodes):
            if all(c.op in _LOGIT_OPS and c.name in self.logits for c in self.consumers[node.name]):
                self.logits.add(node.name)
        computed: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "linear" and node.name in self.logits:
                computed.add(node.name)
            elif node.op in _LOGIT_OPS and node.name in self.logits:
                inside = [name in computed for name in node.inputs]
                if all(inside):
                    computed.add(node.name)
                elif any(inside) or node.op == "mean":
                    raise refuse(node, "logits of linear layers only", "a mix with maps", "end every branch in a linear layer")
        self.logits = computed


def fuse(graph: Graph, input_range: tuple[float, float]) -> tuple[list[Unit], str, dict[int, str]]:
    """Units in an order in which they can run, the name of the output step, and each unit's name by id."""
    member = graph.members[0]
    graph = graph.only(member.name)
    f = _Fuser(graph, input_range)
    f.find_logits()
    for node in graph.nodes:
        f.visit(node)
    last = f.read_vector(member.output)
    if last.kind not in ("head", "float"):
        size = last.shape[0]
        params = {"weight": np.eye(size, dtype=np.float32), "bias": np.zeros(size, np.float32)}
        node = Node(f.fresh(f"{member.output}.logits"), "linear", (last.end,), TensorSpec((size,)), {"min": None, "max": None}, params)
        last = f.emit("head", node, [last])
    for unit in f.units:
        if unit.kind == "head" and (unit.node.attrs["min"], unit.node.attrs["max"]) != (None, None):
            raise refuse(unit.node, "logits without a clamp", str(dict(unit.node.attrs)), "remove the activation of the last layer")
    units = _in_order(f.units)
    for unit in units:
        for slot, source in enumerate(unit.inputs):
            source.read_by.append((unit, slot))
    return units, last.node.name, {id(u): u.node.name for u in units}


def _in_order(units: list[Unit]) -> list[Unit]:
    """Topological order, stable; fusing an addition into a convolution can put its other operand behind it."""
    done: dict[int, Unit] = {}

    def place(unit: Unit) -> None:
        if id(unit) not in done:
            for source in unit.inputs:
                place(source)
            done[id(unit)] = unit

    for unit in units:
        place(unit)
    return list(done.values())
