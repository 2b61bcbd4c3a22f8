"""Freeze: a QuantModule's learned grid as an integer graph, the one that the engine runs.

Every constant comes from the methods that QuantModule's own forward uses (docs/NUMERICS.md, "From training to integers").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hce_engine.dtypes import weight_dtype
from hce_engine.graph import Graph, Member, Node, TensorSpec, verify

from .quantize.layout import Codes, Step
from .quantize.module import QuantModule
from .quantize.quantizer import Quantizer
from .quantize.steps import ConvStep, HeadStep, PixelStep, PoolStep, recode_factor


def _f32(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().astype(np.float32)


def _int8(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy()).astype(np.int8)


def _bounds(quantizer: Quantizer, scale: Tensor, codes: Codes) -> dict[str, int]:
    low, high = quantizer.bounds(scale)
    return {"qmin": codes.zero_point + int(low), "qmax": codes.zero_point + int(high)}


class _Freezer:
    def __init__(self, module: QuantModule) -> None:
        self.module, self.plan = module, module.layout
        self.nodes: list[Node] = []
        self.scales: dict[str, Tensor] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.zeros: dict[str, list[int]] = {}  # code that stands for zero, per channel

    def emit(self, step: Step, op: str, spec: TensorSpec, attrs: dict[str, Any], params: dict[str, np.ndarray], **keys: Any) -> None:
        name, inputs = keys.get("name", step.name), keys.get("inputs", step.inputs)
        self.nodes.append(Node(name, op, tuple(inputs), spec, attrs, params, step.node.source))
        self.specs[name] = spec

    def spec(self, step: Step, scale: Tensor) -> TensorSpec:
        assert step.codes is not None
        return TensorSpec(step.codes.shape, step.codes.dtype, float(scale), step.codes.zero_point)

    def pixels(self, step: Step) -> None:
        source = self.plan.input
        pixel = self.module.of(step, PixelStep)
        self.zeros[step.name] = [int(z) for z in pixel.zero.flatten()]
        self.scales[step.name] = pixel.scale
        self.nodes.append(source)
        self.specs[source.name] = source.spec
        if pixel.is_float:
            step_size = float(np.float32(1 / pixel.multiplier))
            spec = TensorSpec(source.spec.shape, "u8", step_size, 0)
            attrs = {"low": pixel.low, "multiplier": pixel.multiplier}
            self.emit(step, "quantize_input", spec, attrs, {}, inputs=(source.name,))

    def requantized(self, step: Step) -> tuple[Tensor, Codes, dict[str, Any]]:
        """Scale, codes and code range of a step that has a quantizer; its scale is noted for its readers."""
        quantizer, codes = self.module.quantizers()[step.name], step.codes
        assert codes is not None
        scale = quantizer.scale()
        self.note(step, scale)
        return scale, codes, _bounds(quantizer, scale, codes)

    def note(self, step: Step, scale: Tensor) -> None:
        assert step.codes is not None
        self.scales[step.name] = scale
        self.zeros[step.name] = [step.codes.zero_point] * step.codes.shape[0]

    def conv(self, step: Step) -> None:
        conv, node = self.module.of(step, ConvStep), step.node
        scale, _, attrs = self.requantized(step)
        weight, bias, unit = conv.folded(self.scales[step.inputs[0]])
        w, zero = _int8(weight), np.asarray(self.zeros[step.inputs[0]])
        shift = _zero_sum(w, zero, node.attrs["groups"])
        params = {
            "weight": w, "bias": (bias.detach().cpu().double().numpy() - shift).astype(np.int32),
            "multiplier": _f32(unit / scale),
        }
        unpadded = [self.specs[step.inputs[0]].zero_point] * len(zero)
        pad = [int(z) for z in zero] if max(node.attrs["padding"]) else unpadded
        residual = float(self.scales[step.inputs[1]] / scale) if step.residual else 0.0
        geometry = {k: node.attrs[k] for k in ("stride", "padding", "dilation", "groups")}
        attrs |= geometry | {
            "weight_dtype": weight_dtype(step.bits[0]).name, "bits": list(step.bits), "pad_code": pad,
            "residual_multiplier": residual, "folded_norm": int(step.norm is not None or node.attrs["folded_norm"]),
        }
        self.emit(step, "qconv2d", self.spec(step, scale), attrs, params)

    def head(self, step: Step) -> None:
        head = self.module.of(step, HeadStep)
        s = head.weight_scale()
        w = _int8(head.round_weight(1 / s))
        zero = np.full(w.shape[1], self.zeros[step.inputs[0]][0])
        params = {
            "weight": w, "bias": (-(w.astype(np.int64) @ zero)).astype(np.int32),
            "multiplier": _f32(s * self.scales[step.inputs[0]]), "offset": _f32(head.bias),
        }
        attrs = {"weight_dtype": weight_dtype(step.bits[0]).name, "bits": list(step.bits)}
        self.emit(step, "qlinear", TensorSpec((w.shape[0],)), attrs, params)

    def add(self, step: Step) -> None:
        scale, _, attrs = self.requantized(step)
        multipliers = [float(self.scales[i] / scale) for i in step.inputs]
        self.emit(step, "qadd", self.spec(step, scale), {**attrs, "multipliers": multipliers}, {})

    def pool(self, step: Step) -> None:
        scale, _, attrs = self.requantized(step)
        pool, node = self.module.of(step, PoolStep), step.node
        height, width = self.specs[step.inputs[0]].shape[1:]
        kernel = (height, width) if pool.window is None else pool.window[0]
        factor = self.scales[step.inputs[0]] / (kernel[0] * kernel[1])
        window = {} if pool.window is None else {k: node.attrs[k] for k in ("kernel", "stride", "padding")}
        attrs = {**attrs, **window, "multiplier": float(factor / scale)}
        self.emit(step, "qglobal_avg_pool" if pool.window is None else "qavg_pool2d", self.spec(step, scale), attrs, {})

    def recode(self, step: Step) -> None:
        scale, _, attrs = self.requantized(step)
        k = int(recode_factor(self.scales[step.inputs[0]] / scale))
        self.emit(step, "qrecode", self.spec(step, scale), {**attrs, "k": k}, {})

    def concat(self, step: Step) -> None:
        scale, codes, attrs = self.requantized(step)
        parts = []
        for i, source in enumerate(step.inputs):
            parts.append(self.unused(f"{step.name}.recode{i}"))
            k = int(recode_factor(self.scales[source] / scale))
            spec = TensorSpec(self.specs[source].shape, codes.dtype, float(scale), codes.zero_point)
            self.emit(step, "qrecode", spec, {**attrs, "k": k}, {}, name=parts[-1], inputs=(source,))
        self.emit(step, "concat", self.spec(step, scale), {}, {}, inputs=parts)

    def unused(self, name: str) -> str:
        while name in {s.name for s in self.plan.steps}:
            name += "_"
        return name

    def move(self, step: Step) -> None:
        scale = self.scales[step.inputs[0]]
        self.note(step, scale)
        self.emit(step, step.node.op, self.spec(step, scale), dict(step.node.attrs), {})

    def logits(self, step: Step) -> None:
        self.emit(step, step.node.op, step.node.spec, dict(step.node.attrs), {})


def _zero_sum(weight: np.ndarray, zero: np.ndarray, groups: int) -> np.ndarray:
    """sum_{c,a,b} w[o,c,a,b] * zero[c]: what the zero point of the input adds to a sum, int64 [OC]."""
    oc, cg = weight.shape[:2]
    channels = np.arange(oc)[:, None] // (oc // groups) * cg + np.arange(cg)
    return (weight.astype(np.int64).sum(axis=(2, 3)) * zero[channels]).sum(axis=1)


@torch.no_grad()
def freeze(module: QuantModule) -> Graph:
    """The integer graph of a calibrated QuantModule, verified; same input and member as its float graph.

    Nodes carry the names of the layout's steps. Running statistics are folded; the module is left as it was.
    Raises GraphError if a sum could overflow int32.
    """
    freezer = _Freezer(module)
    for step in module.layout.steps:
        getattr(freezer, "logits" if step.kind == "float" else step.kind)(step)
    member = module.graph.members[0]
    return verify(Graph(tuple(freezer.nodes), (Member(member.name, module.layout.output, member.role),)))
