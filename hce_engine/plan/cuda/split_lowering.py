"""Convolutions with split operands: which layers they are, and in which forms their maps lie.

A convolution splits its result once, in its epilogue, if another one with split operands reads it, and writes it in float32 if
anything else does: a residual addition, a pool, a layer outside tensor cores, the logits. Residual streams are read by both and
written twice: four bytes more per value, against splitting each value again for each of nine taps and each warp. tf32x3 keeps
float32 maps alone and splits what it loads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...arithmetic import IEEE
from ...graph import Node
from . import split_select
from .lanes_plan import LaneMap, LaneWeights
from .split_weights import packed_bytes, weight_exponent

if TYPE_CHECKING:
    from .lanes_lowering import LanesLowering


def has_split_operands(node: Node, arithmetic: str) -> bool:
    """Whether a node runs on tensor cores: dense convolutions of enough input channels."""
    return (arithmetic != IEEE and node.op == "conv2d" and node.attrs["groups"] == 1
            and node.params["weight"].shape[1] >= split_select.LEAST_INPUTS)


def why_ieee(node: Node, arithmetic: str) -> str:
    """What a plan says of a convolution that stays in float32 although other layers do not; empty where none is split."""
    if arithmetic == IEEE or node.op != "conv2d":
        return ""
    groups, inputs = node.attrs["groups"], node.params["weight"].shape[1]
    return f", ieee: {f'{groups} groups' if groups > 1 else f'{inputs} input channels, bound by memory'}"


def forms(node: Node, readers: Sequence[Node], outputs: Collection[str], arithmetic: str) -> tuple[bool, bool]:
    """(float32, split): how a convolution with split operands writes its result."""
    if arithmetic == "tf32x3":
        return True, False
    split = any(has_split_operands(r, arithmetic) and r.inputs[0] == node.name for r in readers)
    others = any(not has_split_operands(r, arithmetic) or node.name in r.inputs[1:] for r in readers)
    return others or node.name in outputs or not split, split


def emit_conv2d(lowering: LanesLowering, node: Node, limits: tuple[float, float]) -> None:
    """The step of a convolution with split operands; sets its maps."""
    a, weight, arithmetic = node.attrs, node.params["weight"], lowering.arithmetic
    source = node.inputs[0]
    x = lowering.splits[source] if source in lowering.splits else lowering.map(source)
    plain, split = forms(node, lowering.consumers[node.name], lowering.outputs, arithmetic)
    writes: dict[str, LaneMap] = {}
    if plain:
        writes["y"] = lowering.new_map(node)
    if split:
        c, h, w = node.spec.shape
        writes["split"] = lowering.splits[node.name] = LaneMap(node.name, c, h, w, split=True)
    y = next(iter(writes.values()))
    oc, inputs, kh, kw = weight.shape
    lowering.reach(x, y, (kh, kw), a["stride"], a["padding"], a["dilation"])
    reads = {"x": x}
    if len(node.inputs) == 2:
        reads["residual"] = lowering.map(node.inputs[1])
    bias, pixels = node.params["bias"], lowering.tiles * y.height * y.width
    config = split_select.split_config(arithmetic, oc, pixels, split=x.split)
    weights = LaneWeights(node.name, weight, bias, 1, packed_bytes(oc, kh * kw, inputs, arithmetic) + bias.nbytes)
    cost = lowering.moved(reads, writes)
    cost = replace(cost, read=cost.read + weights.packed_bytes, macs=lowering.batch * y.height * y.width * weight.size,
                   walked=split_select.walked_macs(arithmetic, oc, kh * kw, inputs, pixels, config))
    how = "split already" if x.split else "split when loaded"
    reason = f"{how}, written {' and '.join(_FORM[key] for key in writes)}"
    lowering.emit((node,), f"conv2d_{arithmetic}", reason, reads, writes, weights=weights, config=config, cost=cost,
                  arithmetic=arithmetic, padding=tuple(a["padding"]), window=(kh, kw, *a["stride"], *a["dilation"]),
                  channels=(inputs, oc), limits=limits, factor=2.0 ** -weight_exponent(weight, arithmetic))


_FORM = {"y": "in float32", "split": "split"}
