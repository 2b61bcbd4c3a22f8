"""The translation table: one function per family of ATen calls, from a traced call to graph nodes.

Every function receives a :class:`Call` (arguments by their schema names, defaults filled in) and returns the name of
the graph node that holds the result. A form that the closed set cannot express raises UnsupportedError; nothing is
approximated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from ..errors import UnsupportedError
from .builder import Builder, Value


@dataclass(frozen=True)
class Call:
    """One traced call. ``args`` maps the schema's argument names to fx nodes and plain values."""

    builder: Builder
    node: fx.Node
    args: Mapping[str, Any]
    values: Mapping[fx.Node, Value]

    def input(self, key: str = "self") -> str:
        source = self.args[key]
        if not isinstance(source, fx.Node):
            raise self.refuse("combine two tensors that depend on the image", f"the constant {source!r}")
        return self.builder.traced(self.node, source, self.values[source])

    def map(self, key: str = "self") -> str:
        name = self.input(key)
        if len(self.builder.specs[name].shape) != 3:
            raise self.refuse("apply it to maps (N, C, H, W)", f"input {self.builder.specs[name]}")
        return name

    def constant(self, key: str) -> np.ndarray | None:
        source = self.args[key]
        if source is None:
            return None
        value = self.values[source]
        if isinstance(value, str):
            raise self.refuse(f"keep {key} independent of the image", f"a {key} computed from the image")
        return np.ascontiguousarray(value.detach().cpu().to(torch.float32).numpy())

    def owner(self, key: str) -> str:
        """Path of the module that holds the parameter ``key``: the state-dict name without its last part."""
        source = self.args[key]
        path = self.builder.paths.get(source, "") if isinstance(source, fx.Node) else ""
        return path.rpartition(".")[0]

    def pair(self, key: str) -> list[int]:
        value = self.args[key]
        values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        return values * 2 if len(values) == 1 else values

    def refuse(self, fix: str, detail: str = "") -> UnsupportedError:
        return self.builder.unsupported(self.node, fix, detail)

    def emit(self, op: str, *inputs: str, attrs: Mapping[str, Any] | None = None,
             params: Mapping[str, np.ndarray] | None = None, owner: str = "") -> str:
        return self.builder.emit(self.node, op, inputs, attrs, params, owner)


def _conv2d(c: Call) -> str:
    x, weight, bias = c.map("input"), c.constant("weight"), c.constant("bias")
    assert weight is not None
    if c.args.get("transposed"):
        raise c.refuse("use a convolution that is not transposed", "transposed")
    dilation = c.pair("dilation")
    stride = c.pair("stride")
    if isinstance(c.args["padding"], str):
        padding = [0, 0]
        if c.args["padding"] == "same":
            spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(s % 2 for s in spans):
                raise c.refuse("use an odd kernel, which pads both sides alike", "padding='same' of an even kernel")
            padding = [s // 2 for s in spans]
    else:
        padding = c.pair("padding")
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(c.args["groups"]),
             "min": None, "max": None, "folded_norm": 0}
    params = {"weight": weight, "bias": np.zeros(weight.shape[0], np.float32) if bias is None else bias}
    return c.emit("conv2d", x, attrs=attrs, params=params, owner=c.owner("weight"))


def _linear(c: Call) -> str:
    x, weight, bias = c.input("input"), c.constant("weight"), c.constant("bias")
    assert weight is not None
    params = {"weight": weight, "bias": np.zeros(weight.shape[0], np.float32) if bias is None else bias}
    return c.emit("linear", x, attrs={"min": None, "max": None}, params=params, owner=c.owner("weight"))


def _batch_norm(c: Call) -> str:
    x, mean, var = c.input("input"), c.constant("running_mean"), c.constant("running_var")
    if c.args.get("training") or mean is None or var is None:
        raise c.refuse("use running statistics (track_running_stats=True, eval mode)", "statistics of the batch")
    gamma, beta = c.constant("weight"), c.constant("bias")
    params = {"gamma": np.ones_like(mean) if gamma is None else gamma,
              "beta": np.zeros_like(mean) if beta is None else beta, "mean": mean, "var": var}
    return c.emit("batch_norm", x, attrs={"eps": float(c.args["eps"])}, params=params, owner=c.owner("running_mean"))


def _add(c: Call) -> str:
    if c.args.get("alpha", 1) != 1:
        raise c.refuse("scale the operand inside its layer", f"alpha = {c.args['alpha']}")
    return c.emit("add", c.input("self"), c.input("other"), attrs={"min": None, "max": None})


def _clamp(low: str | float | None, high: str | float | None) -> Callable[[Call], str]:
    """Clamp between bounds that are numbers, or names of the call's arguments."""

    def handler(c: Call) -> str:
        bounds = [c.args[b] if isinstance(b, str) else b for b in (low, high)]
        if any(isinstance(b, fx.Node) for b in bounds):
            raise c.refuse("clamp between numbers", "a tensor as bound")
        attrs = {k: None if b is None else float(b) for k, b in zip(("min", "max"), bounds, strict=True)}
        return c.emit("clamp", c.input(), attrs=attrs)

    return handler


def _pool_attrs(c: Call) -> dict[str, Any]:
    kernel = c.pair("kernel_size")
    stride = c.pair("stride") if c.args["stride"] else kernel
    return {"kernel": kernel, "stride": stride, "padding": c.pair("padding")}


def _checked_pool(c: Call, name: str) -> str:
    traced, found = c.node.meta["val"], c.builder.specs[name].shape
    first = traced[0] if isinstance(traced, (list, tuple)) else traced
    if tuple(first.shape[1:]) != found:
        raise c.refuse("use ceil_mode=False", f"ceil_mode=True, which yields {tuple(first.shape[1:])} and not {found}")
    return name


def _max_pool2d(c: Call) -> str:
    if c.pair("dilation") != [1, 1]:
        raise c.refuse("use dilation 1", f"dilation {c.pair('dilation')}")
    return _checked_pool(c, c.emit("max_pool2d", c.map(), attrs=_pool_attrs(c)))


def _avg_pool2d(c: Call) -> str:
    x, attrs = c.map(), _pool_attrs(c)
    area = attrs["kernel"][0] * attrs["kernel"][1]
    if c.args["divisor_override"] not in (None, area):
        raise c.refuse("leave divisor_override unset", f"divisor_override = {c.args['divisor_override']}")
    if tuple(attrs["kernel"]) == c.builder.specs[x].shape[1:] and not any(attrs["padding"]):
        return c.emit("global_avg_pool", x)
    attrs["count_include_pad"] = int(bool(c.args["count_include_pad"]))
    return _checked_pool(c, c.emit("avg_pool2d", x, attrs=attrs))


def _adaptive_avg_pool2d(c: Call) -> str:
    x = c.map()
    size = list(c.builder.specs[x].shape[1:])
    out = [s if o is None else int(o) for s, o in zip(size, c.args["output_size"], strict=True)]
    if out == size:
        return x
    if out == [1, 1]:
        return c.emit("global_avg_pool", x)
    if any(s % o for s, o in zip(size, out, strict=True)):
        raise c.refuse("use an output size that divides the input's", f"adaptive pooling of {size} to {out}")
    kernel = [s // o for s, o in zip(size, out, strict=True)]
    attrs = {"kernel": kernel, "stride": kernel, "padding": [0, 0], "count_include_pad": 1}
    return c.emit("avg_pool2d", x, attrs=attrs)


def _mean(c: Call) -> str:
    x = c.map()
    if sorted(int(d) % 4 for d in c.args["dim"] or ()) != [2, 3]:
        raise c.refuse("take the mean over both pixel axes, mean((2, 3))", f"mean over axes {c.args['dim']}")
    pooled = c.emit("global_avg_pool", x)
    return pooled if c.args["keepdim"] else c.emit("flatten", pooled)


def _reshape(c: Call) -> str:
    """view, reshape, flatten, squeeze, unsqueeze: the order of an image's elements stays, only the shape changes.

    A shape that is neither a map nor a vector, such as (C, 1) between two squeezes, has no node: the name of the
    producer is passed on, and whoever reads it must first bring it to a shape that has one.
    """
    source = c.args["self"]
    value = c.values[source]
    if not isinstance(value, str):
        raise c.refuse("keep constants out of the data flow", "a constant")
    spec, want = c.builder.specs[value], c.builder.shape(c.node)
    if want == spec.shape or len(want) not in (1, 3):
        return value
    if len(want) == 1:
        return c.emit("flatten", value)
    raise c.refuse("keep maps as they are until the head flattens them", f"{spec.shape} to {want}")


def _cat(c: Call) -> str:
    sources = list(c.args["tensors"])
    names = [c.builder.traced(c.node, s, c.values[s]) for s in sources]
    if int(c.args["dim"]) % len(sources[0].meta["val"].shape) != 1 or len(c.builder.specs[names[0]].shape) != 3:
        raise c.refuse("concatenate the channels of maps, dim=1", f"dim = {c.args['dim']}")
    return c.emit("concat", *names)


def _pad(c: Call) -> str:
    x, pad = c.map(), [int(p) for p in c.args["pad"]]
    if c.args.get("mode", "constant") != "constant" or c.args.get("value") not in (None, 0):
        raise c.refuse("pad with zeros", f"mode {c.args.get('mode', 'constant')!r}, value {c.args.get('value')}")
    pad += [0] * (8 - len(pad))
    if any(pad[:4]) or any(pad[6:]):
        raise c.refuse("give padding of pixels to the convolution or pooling that follows", f"pixels padded by {pad[:4]}")
    if not any(pad):
        return x
    return c.emit("channel_pad", x, attrs={"before": pad[4], "after": pad[5]})


def _slice(c: Call) -> str:
    source = c.args["self"]
    rank, dim = len(source.meta["val"].shape), int(c.args["dim"])
    dim += rank if dim < 0 else 0
    size = int(source.meta["val"].shape[dim])
    start, stop, step = slice(c.args["start"], c.args["end"], c.args["step"]).indices(size)
    if (start, stop, step) == (0, size, 1):
        return c.input()
    x = c.map()
    if dim not in (2, 3):
        raise c.refuse("slice pixels only, x[:, :, a:b:s, a:b:s]", f"a slice of axis {dim}")
    _, h, w = c.builder.specs[x].shape
    attrs = {"h": [0, h, 1], "w": [0, w, 1], "hw"[dim - 2]: [start, stop, step]}
    parent = next(n for n in c.builder.nodes if n.name == x)
    other = "wh"[dim - 2]
    if parent.op == "strided_slice" and list(parent.attrs["hw"[dim - 2]]) == [0, size, 1] and len(source.users) == 1:
        c.builder.discard(parent)  # x[:, :, ::2, ::2] is traced as two slices, and one node does both
        return c.emit("strided_slice", parent.inputs[0], attrs={**attrs, other: parent.attrs[other]})
    return c.emit("strided_slice", x, attrs=attrs)


def _identity(c: Call) -> str:
    if c.node.meta["val"].dtype != torch.float32:
        raise c.refuse("keep the network in float32", f"conversion to {c.node.meta['val'].dtype}")
    name = c.values[c.args["self"]]
    assert isinstance(name, str)
    return name


_TABLE: dict[str, Callable[[Call], str]] = {
    "conv2d": _conv2d, "convolution": _conv2d, "linear": _linear,
    "batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "add": _add, "relu": _clamp(0.0, None), "relu6": _clamp(0.0, 6.0), "hardtanh": _clamp("min_val", "max_val"),
    "clamp": _clamp("min", "max"), "clamp_min": _clamp("min", None), "clamp_max": _clamp(None, "max"),
    "max_pool2d": _max_pool2d, "max_pool2d_with_indices": _max_pool2d, "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d, "_adaptive_avg_pool2d": _adaptive_avg_pool2d, "mean": _mean,
    "view": _reshape, "_unsafe_view": _reshape, "reshape": _reshape, "flatten": _reshape, "squeeze": _reshape,
    "unsqueeze": _reshape, "cat": _cat, "pad": _pad, "constant_pad_nd": _pad, "slice": _slice,
    "clone": _identity, "contiguous": _identity, "detach": _identity, "alias": _identity, "to": _identity,
    "_to_copy": _identity,
}


def translate(builder: Builder, node: fx.Node, values: Mapping[fx.Node, Value]) -> Value:
    """The value of a traced call: a graph node's name, or a tensor if nothing in it depends on the image."""
    if node.target is operator.getitem:  # of a call that returns statistics or indices beside its result
        source, index = node.args
        if index != 0:
            raise builder.unsupported(node, "use the first result only", f"result {index} of {source}")
        return values[source]  # type: ignore[index]
    if all(not isinstance(values[n], str) for n in node.all_input_nodes):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::") if schema is not None else ["", ""]
    handler = _TABLE.get(name[1]) if name[0] == "aten" else None
    if schema is None or handler is None:
        raise builder.unsupported(node, "replace it by supported operations")
    bound = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    bound.update({a.name: v for a, v in zip(schema.arguments, node.args, strict=False)})
    bound.update(node.kwargs)
    return handler(Call(builder, node, bound, values))
