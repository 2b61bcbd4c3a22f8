"""GraphModule: a float graph as a trainable ``torch.nn.Module``.

The engine's graph is plain data; training needs parameters, running statistics and gradients. A GraphModule holds one
torch module per node, runs them in the graph's order, and gives the graph back with the values it has now. Whatever a
graph can express, and pruning can shrink, therefore trains without a model definition of its own.

Keys of the ``state_dict`` are node names, dots included: node ``layer1.0.conv1`` owns ``layer1.0.conv1.weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine.errors import GraphError, UnsupportedError
from hce_engine.graph import Graph, Node, verify


class Scope(nn.Module):
    """A level of the name tree; it exists so that keys keep the dots of node names."""


def attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` below ``root`` at the dotted path ``name``.

    A segment that ``nn.Module`` already uses as an attribute (``type``, ``half``...) gets a trailing underscore.
    """
    *path, last = name.split(".")
    scope = root
    for segment in path:
        segment = _free(scope, segment)
        if segment not in scope._modules:
            scope.add_module(segment, Scope())
        scope = scope._modules[segment]  # type: ignore[assignment]
    last = _free(scope, last)
    if last in scope._modules:  # a scope stands here because node "a.b" came before node "a"
        for key, child in scope._modules[last]._modules.items():  # type: ignore[union-attr]
            module.add_module(key, child)
    scope._modules[last] = module


def _free(scope: nn.Module, segment: str) -> str:
    while segment not in scope._modules and hasattr(scope, segment):
        segment += "_"
    return segment


def clamp(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """min(max(x, low), high), as relu where it is one."""
    if low is None and high is None:
        return x
    return F.relu(x) if (low, high) == (0, None) else torch.clamp(x, low, high)


class Normalize(nn.Module):
    """x * scale[c] + offset[c] in float32, channels_last in memory: the step from pixel values to the network's input."""

    scale: Tensor
    offset: Tensor

    def __init__(self, node: Node) -> None:
        super().__init__()
        for key in ("scale", "offset"):
            self.register_buffer(key, torch.from_numpy(node.params[key].reshape(1, -1, 1, 1).copy()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.scale + self.offset).contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Conv2d):
    """conv2d with the graph's optional residual input and clamp."""

    def __init__(self, node: Node, with_bias: bool) -> None:
        a, (oc, cg, *kernel) = node.attrs, node.params["weight"].shape
        super().__init__(
            cg * a["groups"], oc, tuple(kernel), stride=tuple(a["stride"]), padding=tuple(a["padding"]),
            dilation=tuple(a["dilation"]), groups=a["groups"], bias=with_bias,
        )
        self.low, self.high = a["min"], a["max"]
        load(self, node, {"weight": "weight", **({"bias": "bias"} if with_bias else {})})

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return clamp(y if residual is None else y + residual, self.low, self.high)


class Linear(nn.Linear):
    """linear with the graph's clamp."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.params["weight"].shape[1], node.params["weight"].shape[0])
        self.low, self.high = node.attrs["min"], node.attrs["max"]
        load(self, node, {"weight": "weight", "bias": "bias"})

    def forward(self, x: Tensor) -> Tensor:
        return clamp(super().forward(x), self.low, self.high)


NORM_KEYS = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}


def batch_norm(node: Node) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """The torch batch norm of a ``batch_norm`` node, over maps or over vectors."""
    kind = nn.BatchNorm2d if len(node.spec.shape) == 3 else nn.BatchNorm1d
    module = kind(node.spec.shape[0], eps=node.attrs["eps"])
    load(module, node, NORM_KEYS)
    return module


def load(module: nn.Module, node: Node, keys: Mapping[str, str]) -> None:
    """Copy the node's parameters into the module's tensors; ``keys`` maps tensor name to parameter name."""
    with torch.no_grad():
        for key, param in keys.items():
            getattr(module, key).copy_(torch.from_numpy(np.ascontiguousarray(node.params[param])))


class Apply(nn.Module):
    """A node without parameters: a function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def function_of(node: Node) -> Callable[..., Tensor] | None:
    """The function of a node that has no parameters, None for those that do (or that torch has no business with)."""
    a = node.attrs
    if node.op in ("add", "clamp"):
        low, high = a["min"], a["max"]
        return (lambda x, y: clamp(x + y, low, high)) if node.op == "add" else (lambda x: clamp(x, low, high))
    if node.op in ("max_pool2d", "avg_pool2d"):
        kernel, stride, padding = tuple(a["kernel"]), tuple(a["stride"]), tuple(a["padding"])
        if node.op == "max_pool2d":
            return lambda x: F.max_pool2d(x, kernel, stride, padding)
        include = bool(a["count_include_pad"])
        return lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include)
    if node.op == "channel_pad":
        pad = (0, 0, 0, 0, a["before"], a["after"])
        return lambda x: F.pad(x, pad)
    if node.op == "strided_slice":
        rows, columns = slice(*a["h"]), slice(*a["w"])
        return lambda x: x[:, :, rows, columns]
    return {
        "global_avg_pool": lambda x: x.mean((2, 3), keepdim=True),
        "flatten": lambda x: x.flatten(1),
        "concat": lambda *xs: torch.cat(xs, 1),
        "mean": lambda *xs: torch.stack(xs).mean(0),
    }.get(node.op)


def require_float_member(graph: Graph, who: str) -> Graph:
    """``graph`` if it is a legal float graph with exactly one member; a typed error otherwise."""
    if len(graph.members) != 1:
        raise GraphError(
            who, expected="a graph with one member", got=f"{len(graph.members)} members",
            fix="take one member with Graph.only(name)",
        )
    for node in graph.nodes:
        if node.op.startswith("q"):
            raise UnsupportedError(
                who, expected="a float graph", got=f"{node.op} %{node.name}",
                fix="train the float graph and quantize it afterwards",
            )
    return verify(graph)


def last_read(reads: Sequence[Sequence[int]], output: int) -> tuple[tuple[int, ...], ...]:
    """For every step of a pass, the values that nobody reads after it: they can be dropped. ``output`` never is.

    reads: for every step, the positions of the values that it reads.
    """
    last = {value: step for step, values in enumerate(reads) for value in values if value != output}
    return tuple(tuple(value for value, step in last.items() if step == at) for at in range(len(reads)))


class GraphModule(nn.Module):
    """The trainable form of a single-member float graph.

    forward(x): images ``(N, C, H, W)`` of the graph's own values (0..255 for uint8 pixels; any float type or uint8)
    -> float logits ``(N, classes)``. In training mode batch norms use and update batch statistics.

    A bias that is zero and feeds nothing but a batch norm is no parameter: its gradient would be zero.
    Raises GraphError for several members, UnsupportedError for quantized operations.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = require_float_member(graph, "GraphModule")
        consumers = graph.consumers()
        position = {node.name: i for i, node in enumerate(graph.nodes)}
        self.output = position[graph.members[0].output]
        steps: list[tuple[nn.Module, tuple[int, ...]]] = []
        for node in graph.nodes[1:]:
            module = self._module(node, [c.op for c in consumers[node.name]])
            attach(self, node.name, module)
            steps.append((module, tuple(position[name] for name in node.inputs)))
        self._steps = tuple(steps)
        self._finished = last_read([inputs for _, inputs in steps], self.output)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def _module(node: Node, read_by: list[str]) -> nn.Module:
        if node.op == "normalize":
            return Normalize(node)
        if node.op == "conv2d":
            return Conv2d(node, bool(node.params["bias"].any()) or set(read_by) != {"batch_norm"})
        if node.op == "batch_norm":
            return batch_norm(node)
        if node.op == "linear":
            return Linear(node)
        function = function_of(node)
        assert function is not None, node.op  # verify() admits no other float operation
        return Apply(function)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor | None] = [x]
        for (module, inputs), finished in zip(self._steps, self._finished, strict=True):
            values.append(module(*[values[i] for i in inputs]))
            for i in finished:  # without gradients, memory holds what is still to be read and no more
                values[i] = None
        return cast(Tensor, values[self.output])

    def of(self, name: str) -> nn.Module:
        """The module of the node ``name``."""
        names = [node.name for node in self.graph.nodes[1:]]
        return self._steps[names.index(name)][0]

    def to_graph(self) -> Graph:
        """The graph with the values of now (float32 copies), verified."""
        modules = {node.name: module for node, (module, _) in zip(self.graph.nodes[1:], self._steps, strict=True)}

        def update(node: Node) -> Node:
            if node.op not in ("conv2d", "linear", "batch_norm"):
                return node
            keys = NORM_KEYS if node.op == "batch_norm" else {"weight": "weight", "bias": "bias"}
            params = dict(node.params)
            for key, param in keys.items():
                value = getattr(modules[node.name], key)
                if value is not None:
                    params[param] = np.ascontiguousarray(value.detach().float().cpu().numpy()).copy()
            return replace(node, params=params)

        return verify(self.graph.map(update))
