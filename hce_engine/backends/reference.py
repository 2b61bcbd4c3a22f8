"""The plain back end: one numpy expression per operation, slow and exact. Every other back end is compared with it.

Float32 operations accumulate in float64 and round once to float32, so a result is the closest one can name; the
integer operations are :mod:`hce_engine.numerics`. Works on ``(N, C, H, W)`` arrays, channel-first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import numerics
from ..graph import Graph, Node, TensorSpec

Array = np.ndarray


def _clamp(x: Array, node: Node) -> Array:
    low, high = node.attrs["min"], node.attrs["max"]
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype))  # np.maximum propagates NaN, as relu must
    if high is not None:
        x = np.minimum(x, np.asarray(high, x.dtype))
    return x


def _f32(x: Array) -> Array:
    return x.astype(np.float32)


def _normalize(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    shape = (1, -1, 1, 1)
    return x.astype(np.float32) * node.params["scale"].reshape(shape) + node.params["offset"].reshape(shape)


def _conv2d(node: Node, specs: list[TensorSpec], x: Array, residual: Array | None = None) -> Array:
    weight, a = node.params["weight"].astype(np.float64), node.attrs
    oc, cg, kh, kw = weight.shape
    windows = numerics.patches(x.astype(np.float64), (kh, kw), a["stride"], a["padding"], a["dilation"], 0.0)
    n, _, oh, ow = windows.shape[:4]
    y = np.empty((n, oc, oh, ow))
    per = oc // a["groups"]
    for g in range(a["groups"]):
        cols = windows[:, g * cg : (g + 1) * cg].transpose(0, 2, 3, 1, 4, 5).reshape(n * oh * ow, cg * kh * kw)
        rows = weight[g * per : (g + 1) * per].reshape(per, -1)
        y[:, g * per : (g + 1) * per] = (cols @ rows.T).reshape(n, oh, ow, per).transpose(0, 3, 1, 2)
    y += node.params["bias"].reshape(1, -1, 1, 1)
    if residual is not None:
        y += residual
    return _f32(_clamp(y, node))


def _linear(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    y = x.astype(np.float64) @ node.params["weight"].astype(np.float64).T + node.params["bias"]
    return _f32(_clamp(y, node))


def _batch_norm(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    shape = (1, -1, *[1] * (x.ndim - 2))  # maps, or vectors after a linear layer
    p = {k: v.astype(np.float64).reshape(shape) for k, v in node.params.items()}
    return _f32((x - p["mean"]) / np.sqrt(p["var"] + node.attrs["eps"]) * p["gamma"] + p["beta"])


def _windows(node: Node, x: Array, pad: float) -> Array:
    a = node.attrs
    return numerics.patches(x, tuple(a["kernel"]), a["stride"], a["padding"], (1, 1), pad)


def _max_pool2d(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    return _windows(node, x, -np.inf if x.dtype.kind == "f" else 0).max(axis=(-2, -1))


def _avg_pool2d(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    total = _windows(node, x.astype(np.float64), 0.0).sum(axis=(-2, -1))
    if node.attrs["count_include_pad"]:
        return _f32(total / np.prod(node.attrs["kernel"]))
    return _f32(total / _windows(node, np.ones_like(x[:1, :1], np.float64), 0.0).sum(axis=(-2, -1)))


def _channel_pad(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    pad = ((0, 0), (node.attrs["before"], node.attrs["after"]), (0, 0), (0, 0))
    return np.pad(x, pad, constant_values=specs[0].zero_point)


def _strided_slice(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    return x[:, :, slice(*node.attrs["h"]), slice(*node.attrs["w"])]


def _codes(node: Node) -> dict[str, Any]:
    return {"zero_point": node.spec.zero_point, "qmin": node.attrs["qmin"], "qmax": node.attrs["qmax"]}


def _qconv2d(node: Node, specs: list[TensorSpec], x: Array, residual: Array | None = None) -> Array:
    a = node.attrs
    acc = numerics.conv2d_accumulate(
        x, node.params["weight"], node.params["bias"], stride=a["stride"], padding=a["padding"],
        dilation=a["dilation"], groups=a["groups"], pad_code=np.asarray(a["pad_code"], np.uint8),
    )
    return numerics.requantize(
        acc, node.params["multiplier"], **_codes(node), residual=residual,
        residual_zero_point=specs[1].zero_point if residual is not None else 0,
        residual_multiplier=a["residual_multiplier"],
    )


def _qlinear(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    p = node.params
    acc = numerics.conv2d_accumulate(
        x[:, :, None, None], p["weight"][:, :, None, None], p["bias"], stride=(1, 1), padding=(0, 0), dilation=(1, 1),
        groups=1, pad_code=np.zeros(x.shape[1], np.uint8),
    )
    return numerics.logits(acc[:, :, 0, 0], p["multiplier"], p["offset"])


def _qadd(node: Node, specs: list[TensorSpec], a: Array, b: Array) -> Array:
    return numerics.add(
        a, b, zero_points=(specs[0].zero_point, specs[1].zero_point), multipliers=tuple(node.attrs["multipliers"]),
        **_codes(node),
    )


def _qrecode(node: Node, specs: list[TensorSpec], x: Array) -> Array:
    return numerics.recode(x, node.attrs["k"], zero_point_in=specs[0].zero_point, **_codes(node))


def _qpool(node: Node, specs: list[TensorSpec], windows: Array) -> Array:
    acc = numerics.pool_sum(windows, specs[0].zero_point)
    return numerics.requantize(acc, node.attrs["multiplier"], **_codes(node))


OPERATIONS: dict[str, Callable[..., Array]] = {
    "normalize": _normalize,
    "quantize_input": lambda node, specs, x: numerics.quantize_input(x, node.attrs["low"], node.attrs["multiplier"]),
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "linear": _linear,
    "add": lambda node, specs, a, b: _clamp(a + b, node),
    "clamp": lambda node, specs, x: _clamp(x, node),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": lambda node, specs, x: _f32(x.mean(axis=(2, 3), keepdims=True, dtype=np.float64)),
    "flatten": lambda node, specs, x: x.reshape(len(x), specs[0].elements),
    "channel_pad": _channel_pad,
    "strided_slice": _strided_slice,
    "concat": lambda node, specs, *xs: np.concatenate(xs, axis=1),
    "mean": lambda node, specs, *xs: mean_logits(list(xs)),
    "qconv2d": _qconv2d,
    "qlinear": _qlinear,
    "qadd": _qadd,
    "qrecode": _qrecode,
    "qavg_pool2d": lambda node, specs, x: _qpool(node, specs, _windows(node, x, specs[0].zero_point)),
    "qglobal_avg_pool": lambda node, specs, x: _qpool(node, specs, x[:, :, None, None]),
}


def mean_logits(logits: list[Array]) -> Array:
    """((z_0 + z_1) + ...) * f32(1 / n) in member order, each step rounded to binary32: the ensemble of every back end."""
    total = logits[0].astype(np.float32)
    for z in logits[1:]:
        total = total + z
    return total * np.float32(1.0 / len(logits)) if len(logits) > 1 else total


def evaluate(graph: Graph, images: Array) -> dict[str, Array]:
    """All node values for a batch. images ``(N, C, H, W)`` of the input's type. Keys are node names."""
    values: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op == "input":
            values[node.name] = images
            continue
        specs = [graph[name].spec for name in node.inputs]
        values[node.name] = OPERATIONS[node.op](node, specs, *(values[name] for name in node.inputs))
    return values


def images_at_once(height: int, width: int) -> int:
    """As many images as have the pixels of 64 images of 32x32, one at least, so that memory does not grow with their size."""
    return max(1, 64 * 32 * 32 // (height * width))


def run(graph: Graph, images: Array) -> dict[str, Array]:
    """Logits per member, ``{name: float32 (N, classes)}``; images ``(N, C, H, W)``, :func:`images_at_once` at a time.

    Rows of images that hold NaN or Inf are NaN for every member (docs/NUMERICS.md, input policy).
    """
    parts: dict[str, list[Array]] = {m.name: [] for m in graph.members}
    chunk = images_at_once(*images.shape[2:])
    for start in range(0, max(len(images), 1), chunk):  # an empty batch is one empty chunk
        batch = images[start : start + chunk]
        values = evaluate(graph, batch)
        bad = ~np.isfinite(batch).all(axis=(1, 2, 3)) if batch.dtype.kind == "f" else None
        for m in graph.members:
            z = values[m.output]
            if bad is not None and bad.any():
                z = np.where(bad[:, None], np.float32(np.nan), z)
            parts[m.name].append(z)
    return {name: np.concatenate(rows) for name, rows in parts.items()}
