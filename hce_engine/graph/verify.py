"""The legality of a graph, checked after capture, after every pass, and on every load of an artifact.

Nothing here trusts the graph: names, arity, attributes and parameters are compared with the table in
:mod:`hce_engine.graph.ops`, shapes are inferred again, ranges of codes and accumulators are proven.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import numerics
from ..dtypes import DTYPES
from ..errors import GraphError
from .graph import Graph, Node
from .ops import INT, INTS, NUMBER, OPS, OPTIONAL, PAIR, TEXT, TRIPLE, ShapeError
from .spec import TensorSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}\Z")
_DIMENSION_LIMIT = 1 << 20
_ELEMENT_LIMIT = 1 << 31
_MULTIPLIER_LIMIT = 1e18  # keeps f32(acc) * m finite: 2^31 * 1e18 < 3.4e38


def _fail(node: Node | str, expected: str, got: str, fix: str = "rebuild the graph from its model") -> GraphError:
    where = node if isinstance(node, str) else f"{node.op} %{node.name}" + (f" ({node.source})" if node.source else "")
    return GraphError(where, expected=expected, got=got, fix=fix)


def _is_int(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**31


def _is_number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)


def _is_ints(v: Any, count: int | None = None) -> bool:
    return isinstance(v, (list, tuple)) and all(map(_is_int, v)) and (count is None or len(v) == count)


_KINDS: Mapping[str, Any] = {
    INT: _is_int,
    PAIR: lambda v: _is_ints(v, 2) and min(v) >= 0,
    TRIPLE: lambda v: _is_ints(v, 3),
    NUMBER: _is_number,
    OPTIONAL: lambda v: v is None or _is_number(v),
    TEXT: lambda v: isinstance(v, str),
    INTS: _is_ints,
    "numbers": lambda v: isinstance(v, (list, tuple)) and all(map(_is_number, v)),
}


def _check_spec(node: Node) -> None:
    spec = node.spec
    if spec.dtype not in DTYPES:
        raise _fail(node, "an element type of " + ", ".join(DTYPES), repr(spec.dtype))
    if len(spec.shape) not in (1, 3) or not all(_is_int(d) and 1 <= d <= _DIMENSION_LIMIT for d in spec.shape):
        raise _fail(node, "a shape (C, H, W) or (F,) of sizes from 1 to 2^20", str(spec.shape))
    if spec.elements > _ELEMENT_LIMIT:
        raise _fail(node, "at most 2^31 elements per image", str(spec.elements))
    if spec.scale is not None and not (_is_number(spec.scale) and 0 < spec.scale < _MULTIPLIER_LIMIT):
        raise _fail(node, "a finite positive scale", repr(spec.scale))
    if spec.type.is_float and (spec.scale is not None or spec.zero_point):
        raise _fail(node, "no scale on a float tensor", str(spec))
    if not _is_int(spec.zero_point) or not 0 <= spec.zero_point <= max(spec.type.qmax, 0):
        raise _fail(node, f"a zero point inside {spec.dtype}", repr(spec.zero_point))


def _check_table(node: Node, inputs: list[TensorSpec]) -> None:
    op = OPS[node.op]
    low, high = op.arity
    if not low <= len(inputs) <= high:
        raise _fail(node, f"{low} to {high} inputs", str(len(inputs)))
    if set(node.attrs) != set(op.attrs):
        raise _fail(node, f"exactly the attributes {sorted(op.attrs)}", str(sorted(node.attrs)))
    for key, kind in op.attrs.items():
        if not _KINDS[kind](node.attrs[key]):
            raise _fail(node, f"{key} to be of kind {kind}", repr(node.attrs[key])[:80])
    if set(node.params) != set(op.params):
        raise _fail(node, f"exactly the parameters {sorted(op.params)}", str(sorted(node.params)))
    for key, kind in op.params.items():
        value = node.params[key]
        if not isinstance(value, np.ndarray) or value.dtype != np.dtype(kind):
            raise _fail(node, f"{key} as {kind} array", f"{getattr(value, 'dtype', type(value).__name__)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise _fail(node, f"finite values in {key}", "NaN or Inf")
    for spec in inputs:
        if spec.dtype not in op.reads:
            raise _fail(node, f"inputs of type {' or '.join(op.reads)}", spec.dtype)


def _check_output(node: Node, inputs: list[TensorSpec]) -> None:
    op = OPS[node.op]
    try:
        shape = op.infer(inputs, node.attrs, node.params)
    except (ShapeError, ZeroDivisionError) as error:
        raise _fail(node, *str(error).split(", got ", 1)) if ", got " in str(error) else _fail(
            node, str(error), f"inputs {[str(s) for s in inputs]}"
        ) from None
    if tuple(shape) != node.spec.shape:
        raise _fail(node, f"output shape {tuple(shape)}", str(node.spec.shape))
    if op.yields == ("same",):
        first = inputs[0]
        for spec in [*inputs[1:], node.spec]:
            if (spec.dtype, spec.scale, spec.zero_point) != (first.dtype, first.scale, first.zero_point):
                raise _fail(node, f"one type and quantization everywhere, {first}", str(spec))
    elif node.spec.dtype not in op.yields:
        raise _fail(node, f"output of type {' or '.join(op.yields)}", node.spec.dtype)


def _check_attrs(node: Node) -> None:
    attrs = node.attrs
    for key in ("stride", "dilation", "kernel"):
        if key in attrs and min(attrs[key]) < 1:
            raise _fail(node, f"{key} of at least 1", str(attrs[key]))
    for key in ("stride", "dilation", "kernel", "padding"):  # so that kernels may count pixels in 32 bits
        if key in attrs and max(attrs[key]) > _DIMENSION_LIMIT:
            raise _fail(node, f"{key} of at most 2^20", str(attrs[key]))
    if attrs.get("min") is not None and attrs.get("max") is not None and attrs["min"] > attrs["max"]:
        raise _fail(node, "min <= max", f"{attrs['min']} > {attrs['max']}")
    if node.op == "channel_pad" and min(attrs["before"], attrs["after"]) < 0:
        raise _fail(node, "padding of at least 0 channels", str(dict(attrs)))
    if "count_include_pad" in attrs and attrs["count_include_pad"] not in (0, 1):
        raise _fail(node, "count_include_pad of 0 or 1", str(attrs["count_include_pad"]))
    if attrs.get("folded_norm", 0) not in (0, 1):
        raise _fail(node, "folded_norm of 0 or 1", str(attrs["folded_norm"]))
    if node.op == "batch_norm" and not attrs["eps"] > 0:
        raise _fail(node, "eps above 0", str(attrs["eps"]))
    if node.op == "batch_norm" and (node.params["var"] < 0).any():
        raise _fail(node, "variances of at least 0", "a negative variance")
    for key in ("bias", "multiplier", "offset"):
        if key in node.params and node.op != "normalize" and node.params[key].shape != node.params["weight"].shape[:1]:
            raise _fail(node, f"{key} of shape {node.params['weight'].shape[:1]}", str(node.params[key].shape))


def _check_image_edges(node: Node, image: str, inputs: list[TensorSpec]) -> None:
    """What only the image may feed, and the padding that only the image may have."""
    if node.op in ("normalize", "quantize_input") and node.inputs[0] != image:
        raise _fail(node, "the input node as operand", f"%{node.inputs[0]}")
    if "pad_code" in node.attrs and node.inputs[0] != image and set(node.attrs["pad_code"]) != {inputs[0].zero_point}:
        raise _fail(node, f"the zero point {inputs[0].zero_point} as pad code", str(node.attrs["pad_code"])[:80])


def _check_codes(node: Node, inputs: list[TensorSpec]) -> None:
    """Code ranges, and the proof that no accumulator of a quantized node overflows."""
    attrs, spec = node.attrs, node.spec
    if "qmin" in attrs and not 0 <= attrs["qmin"] <= spec.zero_point <= attrs["qmax"] <= spec.type.qmax:
        raise _fail(node, f"0 <= qmin <= zero_point <= qmax <= {spec.type.qmax}",
                    f"{attrs['qmin']}, {spec.zero_point}, {attrs['qmax']}")
    if "weight_dtype" in attrs:
        wtype = DTYPES.get(attrs["weight_dtype"])
        if wtype is None or not wtype.is_weight_code:
            raise _fail(node, "weight_dtype s3, s4 or s8", repr(attrs["weight_dtype"]))
        weight = node.params["weight"]
        if weight.size and (int(weight.min()) < wtype.qmin or int(weight.max()) > wtype.qmax):
            raise _fail(node, f"weight codes in [{wtype.qmin}, {wtype.qmax}]", f"[{weight.min()}, {weight.max()}]")
        bits, stored = tuple(attrs["bits"]), (wtype.bits, inputs[0].type.bits)
        if not (2 <= bits[0] <= stored[0] and 2 <= bits[1] <= stored[1]):
            raise _fail(node, f"bits of at least 2 and at most those in storage, {stored}", str(bits))
        bound = int(numerics.accumulator_bound(weight, node.params["bias"], inputs[0].type.qmax).max(initial=0))
        if bound > numerics.INT32_LIMIT:
            raise _fail(node, "a sum below 2^31", f"a bound of {bound}", "use fewer bits or a smaller bias")
        if (np.abs(node.params["multiplier"]) > _MULTIPLIER_LIMIT).any():
            raise _fail(node, "multipliers below 1e18", str(np.abs(node.params["multiplier"]).max()))
    if "pad_code" in attrs:
        codes = attrs["pad_code"]
        if len(codes) != inputs[0].shape[0] or not all(0 <= c <= inputs[0].type.qmax for c in codes):
            raise _fail(node, f"{inputs[0].shape[0]} pad codes in {inputs[0].dtype}", str(codes)[:80])
    numbers = [attrs[k] for k in ("multiplier", "residual_multiplier") if k in attrs] + list(attrs.get("multipliers", ()))
    if any(abs(v) > _MULTIPLIER_LIMIT for v in numbers):
        raise _fail(node, "multipliers below 1e18", str(numbers))
    if any(float(np.float32(v)) != v for v in numbers):
        raise _fail(node, "multipliers that are binary32 values", str(numbers))
    if node.op == "qadd" and len(attrs["multipliers"]) != 2:
        raise _fail(node, "two multipliers", str(attrs["multipliers"]))
    if node.op == "qrecode" and not 0 < attrs["k"] < numerics.RECODE_K_LIMIT:
        raise _fail(node, "0 < k < 2^23, so that the product fits int32", str(attrs["k"]))
    if node.op == "qconv2d" and (len(inputs) == 2) != (attrs["residual_multiplier"] != 0):
        raise _fail(node, "residual_multiplier 0 without, and not 0 with a residual", str(attrs["residual_multiplier"]))
    if "pool" in node.op:
        window = math.prod(attrs["kernel"]) if "kernel" in attrs else inputs[0].elements // inputs[0].shape[0]
        largest = inputs[0].type.qmax if node.op in ("qavg_pool2d", "qglobal_avg_pool") else 1
        if window * largest > numerics.INT32_LIMIT:
            raise _fail(node, "a pooling window whose size and sum of codes fit int32", f"{window} pixels")


def verify(graph: Graph) -> Graph:
    """Returns ``graph`` if it is legal; raises GraphError that names the first offending node otherwise."""
    seen: dict[str, TensorSpec] = {}
    for node in graph.nodes:
        if not isinstance(node.name, str) or not _NAME.match(node.name):
            raise _fail("graph", "node names of letters, digits, _ and .", repr(node.name)[:80])
        if node.name in seen:
            raise _fail(node, "unique node names", "a second node of this name")
        if node.op not in OPS:
            raise _fail(node, "an operation of " + ", ".join(OPS), repr(node.op)[:80])
        for name in node.inputs:
            if name not in seen:
                raise _fail(node, "inputs that stand earlier in the graph", repr(name)[:80])
        _check_spec(node)
        inputs = [seen[name] for name in node.inputs]
        _check_table(node, inputs)
        _check_attrs(node)
        if node.op == "input":
            if seen:
                raise _fail(node, "one input, at the start of the graph", "another input")
            if len(node.spec.shape) != 3 or node.spec.dtype not in OPS["input"].yields:
                raise _fail(node, "images (C, H, W) of type u8 or f32", str(node.spec))
        else:
            if not seen:
                raise _fail(node, "an input node first", node.op)
            _check_output(node, inputs)
        _check_codes(node, inputs)
        _check_image_edges(node, graph.nodes[0].name, inputs)
        seen[node.name] = node.spec
    if not graph.members:
        raise _fail("graph", "at least one member", "none")
    names = [m.name for m in graph.members]
    if len(set(names)) != len(names):
        raise _fail("graph", "unique member names", str(names))
    for member in graph.members:
        if not _NAME.match(member.name) or member.name == "ensemble":
            raise _fail("graph", "member names of letters, digits, _ and ., other than 'ensemble'", repr(member.name)[:80])
        if member.role not in ("vote", "reference"):
            raise _fail(f"member {member.name}", "role vote or reference", repr(member.role)[:80])
        if member.output not in seen:
            raise _fail(f"member {member.name}", "an output that is a node", repr(member.output)[:80])
        spec = seen[member.output]
        if spec.dtype != "f32" or len(spec.shape) != 1:
            raise _fail(f"member {member.name}", "float32 logits (classes,)", str(spec))
    if len({seen[m.output].shape for m in graph.members}) != 1:
        raise _fail("graph", "members with the same number of classes", str([seen[m.output].shape for m in graph.members]))
    if not graph.voters:
        raise _fail("graph", "at least one member that votes", "none")
    return graph
