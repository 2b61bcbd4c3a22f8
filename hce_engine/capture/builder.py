"""What a capture writes into: graph nodes with their names, and where in the user's code each one came from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..errors import UnsupportedError
from ..graph import Node, TensorSpec
from ..graph.ops import OPS, ShapeError

Value = str | torch.Tensor  # name of the graph node that holds a traced tensor, or a constant

SUPPORTED = (
    "conv2d, linear, batch norm, add of two tensors of one shape, relu, relu6, hardtanh, clamp, max_pool2d, avg_pool2d, "
    "adaptive_avg_pool2d, mean over pixels, flatten, concat of channels, zero padding of channels, strided slices of "
    "pixels, dropout"
)
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def location(node: fx.Node) -> tuple[str, int] | None:
    """(file, line) of the innermost frame outside torch that led to ``node``."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    for file, line in reversed(frames):
        if not os.path.abspath(file).startswith(_TORCH + os.sep):
            return file, int(line)
    return None


def _short(place: tuple[str, int] | None) -> str | None:
    """``folder/file.py:line``: the same on every machine, so artifacts do not carry a user's paths."""
    if place is None:
        return None
    return f"{'/'.join(os.path.normpath(place[0]).split(os.sep)[-2:])}:{place[1]}"


def _legal(path: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_.]", "_", path)[:180]
    return name if re.match(r"[A-Za-z_]", name) else f"m.{name}"


class Builder:
    """Nodes in the order of execution, with unique names taken from module paths."""

    def __init__(self, nodes: Sequence[Node], *, batch: int, owner: str) -> None:
        self.nodes = list(nodes)
        self.specs = {n.name: n.spec for n in nodes}
        self.batch = batch
        self.owner = owner
        self.paths: dict[fx.Node, str] = {}  # parameter placeholder -> its name in the state dict

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The traced tensor's shape without the batch axis; it must not mix images."""
        full = tuple(int(d) for d in node.meta["val"].shape)
        if not full or full[0] != self.batch:
            raise self.unsupported(node, "keep the batch axis first and of its own")
        return full[1:]

    def unsupported(self, node: fx.Node, fix: str, detail: str = "") -> UnsupportedError:
        """The error for an operation outside the closed set: names it, its module and the user's line."""
        schema = getattr(node.target, "_schema", None)
        name = schema.name.split("::")[-1] if schema is not None else str(node.target)
        place, path = location(node), _module_path(node)
        where = f"{place[0]}:{place[1]}" if place else f"module {path[0]!r}" if path and path[0] else self.owner
        what = f"{name}{f' ({detail})' if detail else ''}" + (f" in module {path[0]!r}" if path and path[0] else "")
        return UnsupportedError(f"capture of {self.owner}, {where}", expected=SUPPORTED, got=what, fix=fix)

    def emit(
        self, node: fx.Node, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, np.ndarray] | None = None, owner: str = "",
    ) -> str:
        """Appends ``op`` for the traced ``node`` and returns its name. owner: path of the module that holds params."""
        attrs, params = attrs or {}, params or {}
        try:
            shape = OPS[op].infer([self.specs[i] for i in inputs], attrs, params)
        except ShapeError as error:
            raise self.unsupported(node, "use operands of these shapes", f"expected {error}") from None
        name = self._unique(owner or self._name(node, op))
        spec = TensorSpec(tuple(int(d) for d in shape))
        self.nodes.append(Node(name, op, tuple(inputs), spec, attrs, params, _short(location(node))))
        self.specs[name] = spec
        return name

    def discard(self, node: Node) -> None:
        """Takes back a node that nothing reads, so that its name is free for the one that replaces it."""
        self.nodes.remove(node)
        del self.specs[node.name]

    def traced(self, node: fx.Node, source: fx.Node, value: Value) -> str:
        """The graph node that holds ``source``, in exactly the shape that was traced."""
        if not isinstance(value, str):
            raise self.unsupported(node, "use parameters in convolutions, linear layers and batch norms only",
                                   "an operand that does not depend on the image")
        if self.specs[value].shape != self.shape(source):
            raise self.unsupported(node, "bring maps to (C, H, W) or (F,) first",
                                   f"a tensor of shape (N, {', '.join(map(str, self.shape(source)))})")
        return value

    def logits(self, node: fx.Node, value: Value) -> str:
        """A module's output as a member's output."""
        name = self.traced(node, node, value)
        if len(self.specs[name].shape) != 1:
            raise self.unsupported(node, "end the module with logits (N, classes)",
                                   f"an output of shape (N, {', '.join(map(str, self.specs[name].shape))})")
        return name

    def _name(self, node: fx.Node, op: str) -> str:
        path = _module_path(node)
        if path is None:
            return op
        leaf = path[1].startswith("torch.nn.modules.") and not path[1].startswith("torch.nn.modules.container.")
        return path[0] if leaf and path[0] else f"{path[0]}.{op}" if path[0] else op

    def _unique(self, path: str) -> str:
        base = name = _legal(path)
        count = 0
        while name in self.specs:
            count += 1
            name = f"{base}_{count}"
        return name


def _module_path(node: fx.Node) -> tuple[str, str] | None:
    """(path, type) of the innermost module that was running."""
    stack = node.meta.get("nn_module_stack")
    return None if not stack else list(stack.values())[-1][:2]
