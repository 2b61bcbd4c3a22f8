"""QuantModule: the integer pipeline of a network, in floating point, with gradients.

It runs the same layout (quantize.layout) with the same multipliers that :func:`hce_engine.training.freeze.freeze` turns
into an integer graph; in evaluation the two agree in their codes except where a float32 sum falls on a rounding
boundary. Steps, of weights per output channel and of activations per tensor, are trained as the method says that
methods.py names: LSQ, PACT or DoReFa. All of them freeze to the same kind of integer graph.

Batch norm: it stays a batch norm while training starts (weights are quantized before it, see ConvStep), and
``freeze_bn`` changes to the folded form with fixed statistics for the last epochs. Of the variants tried in the
literature this is the one that trains at 3 and 4 bits: folding the statistics into the weights *before* quantizing
makes every grid jump with the batch, and frozen statistics from the start are those of a network that quantization has
already changed. The sequence is: calibrate (which re-estimates the statistics), train, ``freeze_bn``, train a
little more, freeze.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from hce_engine.graph import Graph
from hce_engine.training.graph_module import Apply, attach, function_of, last_read, require_float_member

from .layout import EDGE_BITS, Layout, Step, layout
from .methods import Method, method_of
from .quantizer import Quantizer
from .steps import AddStep, ConvStep, HeadStep, MoveStep, PixelStep, PoolStep, RecodeStep, Requantized, Value
from .units import Pixels

M = TypeVar("M", bound=nn.Module)


def _module(step: Step, plan: Layout, method: Method) -> nn.Module:
    if step.kind == "pixels":
        pixels = _pixels(plan)
        return PixelStep(plan, pixels.zero, pixels.unit)
    if step.kind == "float":
        function = function_of(step.node)
        assert function is not None, step.node.op
        return Apply(function)
    if step.kind == "move":
        return MoveStep(step)
    kinds = {
        "conv": ConvStep, "add": AddStep, "pool": PoolStep, "recode": RecodeStep, "concat": RecodeStep, "head": HeadStep,
    }
    return kinds[step.kind](step, method)


def _pixels(plan: Layout) -> Pixels:
    """The grid of the image; every reader of it has the one normalisation."""
    return next(s.pixels for s in plan.steps if s.pixels is not None)


class QuantModule(nn.Module):
    """The fake-quantized twin of a float graph with one member.

    graph: unfolded (batch norms stay trainable) or lowered.  w_bits, a_bits: 2 to 8.  method: ``lsq``, ``pact`` or
    ``dorefa`` (methods.py).  edge_bits: of the weights of the first and last layer and of the last one's input, 2 to 8; the
    pixels and the residual stream have 8.  input_range: range of the values of a float32 image; uint8 pixels need none.

    forward(x): images as GraphModule takes them -> float32 logits ``(N, classes)``. ``state_dict`` is the checkpoint; its
    keys are node names. Fresh step sizes are placeholders: call ``calibrate`` first.
    Raises UnsupportedError for a node without an integer form, InputError for widths out of range or an unknown method.
    """

    def __init__(
        self, graph: Graph, w_bits: int, a_bits: int, *, method: str = "lsq", edge_bits: int = EDGE_BITS,
        input_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        grids = method_of(method)
        self.graph = require_float_member(graph, "QuantModule")
        self.layout = layout(graph, w_bits, a_bits, edge_bits=edge_bits, input_range=input_range)
        self.w_bits, self.a_bits, self.edge_bits, self.method = w_bits, a_bits, edge_bits, method
        position = {step.name: i for i, step in enumerate(self.layout.steps)}
        self.output = position[self.layout.output]
        steps: list[tuple[Step, nn.Module, tuple[int, ...]]] = []
        for step in self.layout.steps:
            module = _module(step, self.layout, grids)
            attach(self, step.name, module)
            steps.append((step, module, tuple(position[name] for name in step.inputs)))
        self._steps = tuple(steps)
        self._finished = last_read([positions for _, _, positions in steps], self.output)
        self.bn_frozen = False
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.walk(x)

    def walk(
        self, x: Tensor, before: Callable[[Step, nn.Module, list], None] | None = None,
        after: Callable[[Step, Value | Tensor], None] | None = None,
    ) -> Tensor:
        """The forward pass, watched step by step; returns the logits.

        ``before(step, module, inputs)`` is called before a step runs (calibration sets its grid there), ``after(step, value)``
        with what it yields: codes minus zero point and their scale, or logits. A value is dropped after its last reader.
        """
        values: list[Value | Tensor | None] = []
        for (step, module, positions), finished in zip(self._steps, self._finished, strict=True):
            inputs = [values[i] for i in positions]
            if before is not None:
                before(step, module, inputs)
            value = self._run(module, x, inputs)
            if after is not None:
                after(step, value)
            values.append(value)
            for i in finished:
                values[i] = None
        return cast(Tensor, values[self.output])

    @staticmethod
    def _run(module: nn.Module, x: Tensor, inputs: list) -> Value | Tensor:
        if isinstance(module, PixelStep):
            return module(x)
        if isinstance(module, MoveStep):
            codes, scale = inputs[0]
            return module.function(codes), scale
        if isinstance(module, Requantized):
            return module(inputs)
        return module(*inputs)

    @torch.no_grad()
    def codes(self, x: Tensor) -> dict[str, np.ndarray]:
        """uint8 codes of every step that yields codes, by step name: what the frozen graph's nodes of that name yield."""
        result: dict[str, np.ndarray] = {}

        def note(step: Step, value: Value | Tensor) -> None:
            if step.codes is not None:
                zero = torch.tensor(_pixels(self.layout).zero).view(1, -1, 1, 1) if step.kind == "pixels" else step.codes.zero_point
                result[step.name] = (value[0].cpu() + zero).to(torch.uint8).contiguous().numpy()

        self.walk(x, after=note)
        return result

    def of(self, step: Step, kind: type[M]) -> M:
        """The module of a step, which is of the given kind."""
        module = self._steps[self.layout.steps.index(step)][1]
        assert isinstance(module, kind)
        return module

    def quantizers(self) -> dict[str, Quantizer]:
        """The activation quantizers by step name."""
        return {s.name: m.quantizer for s, m, _ in self._steps if isinstance(m, Requantized)}

    def train(self, mode: bool = True) -> QuantModule:
        super().train(mode)
        if mode and self.bn_frozen:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def freeze_bn(self, frozen: bool = True) -> None:
        """From now on train with the running statistics, folded as the engine folds them (or no longer)."""
        self.bn_frozen = frozen
        self.train(self.training)
