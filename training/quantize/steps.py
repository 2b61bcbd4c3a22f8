"""The steps of the integer pipeline as differentiable modules.

Values are codes minus zero point, held in float32, with their scale beside them: integers times integers below 2^24
are exact in float32, zero padding is the zero point, and the multipliers here are the ones that freeze writes down.
Every step but the head is one form, codes = round(clip(sum_i t_i * (f_i / s))): integer terms t_i, real factors f_i, own
step s. ``real`` gives the same sum before division by s, which is what calibration looks at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine import numerics
from hce_engine.graph import Node
from hce_engine.training.graph_module import batch_norm, function_of

from .layout import Layout, Step
from .methods import Method
from .quantizer import Quantizer, floor_half_ste, round_ste
from .scales import SCALE_FLOOR
from .weights import Weights

Value = tuple[Tensor, Tensor]  # codes minus zero point, scale


def exact(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which sums of codes are not rounded to bfloat16, whatever the rest of the step is run in.

    The bias is of the size of the sum and of the other sign: what rounding does to the sum before it is added is many
    codes of the difference. With a live batch norm, which subtracts the mean of what was rounded, it is noise.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


_BIAS_LIMIT = 2.0**26  # codes of a folded bias; leaves int32 room for any sum of fewer than 65,000 products


class PixelStep(nn.Module):
    """The image as codes minus the code of a padded pixel: uint8 pixels as they are, float images on a grid of 256."""

    zero: Tensor
    scale: Tensor

    def __init__(self, plan: Layout, zero: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.is_float = plan.input.spec.dtype == "f32"
        self.low, self.multiplier = input_grid(plan)

    def forward(self, x: Tensor) -> Value:
        x = x.float()
        if self.is_float:
            x = ((x - self.low) * self.multiplier).clamp(0, 255).round()
        return (x - self.zero).contiguous(memory_format=torch.channels_last), self.scale


def input_grid(plan: Layout) -> tuple[float, float]:
    """low and multiplier of quantize_input, as binary32 values."""
    low = torch.tensor(plan.low, dtype=torch.float32)
    return float(low), float(255 / (torch.tensor(plan.high, dtype=torch.float32) - low))


class Requantized(nn.Module, ABC):
    """A step with a grid of its own: codes = quantizer(sum_i t_i * (f_i / s))."""

    quantizer: Quantizer

    @abstractmethod
    def terms(self, inputs: list[Value]) -> list[Value]:
        """Integer terms t_i and their real factors f_i."""

    def real(self, inputs: list[Value]) -> Tensor:
        """The values that are about to be quantized: what calibration looks at."""
        parts = [t * f for t, f in self.terms(inputs)]
        return sum(parts[1:], parts[0])

    def forward(self, inputs: list[Value]) -> Value:
        scale = self.quantizer.scale()
        (first, factor), *rest = self.terms(inputs)
        u = first * (factor / scale)
        for t, f in rest:
            u = u + t * (f / scale)
        return self.quantizer(u, scale), scale


class ConvStep(Requantized, Weights):
    """conv2d with its batch norm: codes of weights times codes of activations, summed, times one factor per channel.

    Weights are quantized *before* the batch norm, one step per output channel, and its scale f = gamma / sqrt(var + eps)
    goes into the factor of the sum; the sign of f goes into the codes, so factors are positive. With steps per
    channel this is the same set of networks as quantizing folded weights, but quantization does not move when the statistics
    do. Two forms of one function:

    * norm live (training before ``freeze_bn``): the batch norm normalises the quantized sum by the batch's statistics,
      as LSQ trains; low-bit networks need this, since their statistics are not those of the float network.
    * norm frozen, or evaluation: the running statistics, folded, with the bias rounded to the int32 that freeze writes.

    A channel whose factor is so small that its bias would not fit (a batch norm gamma of zero or nearly so) gets a factor
    at which the bias is 2^26 codes; its weights are then rounded on that coarser grid, to zero in the limit.
    """

    def __init__(self, step: Step, method: Method) -> None:
        super().__init__()
        a, node = step.node.attrs, step.node
        groups, weight = a["groups"], torch.from_numpy(node.params["weight"].copy())
        scale = None
        if step.pixels is not None:
            oc, cg = weight.shape[:2]
            channels = torch.arange(oc)[:, None] // (oc // groups) * cg + torch.arange(cg)
            scale = torch.from_numpy(step.pixels.scale / step.pixels.unit).float()[channels].view(oc, cg, 1, 1)
        self.init_weights(weight, step.bits[0], input_scale=scale, tanh=method.tanh_weights, constant=step.constant)
        self.norm = None if step.norm is None else batch_norm(_as_map(step.norm))
        bias = torch.from_numpy(node.params["bias"].copy())
        self.bias = nn.Parameter(bias) if step.norm is None or bool(bias.any()) else None
        self.geometry = (tuple(a["stride"]), tuple(a["padding"]), tuple(a["dilation"]), groups)
        assert step.codes is not None
        self.quantizer = method.activations(step.codes)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and offset per output channel that follow the convolution, from the running statistics."""
        zero = self.weight.new_zeros(len(self.weight))
        bias = zero if self.bias is None else self.bias
        if self.norm is None:
            return zero + 1, bias
        mean, var = statistics(self.norm)
        f = self.norm.weight * torch.rsqrt(var + self.norm.eps)
        return f, (bias - mean) * f + self.norm.bias

    def folded(self, s_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weight codes [OC, C/g, KH, KW], bias codes [OC] (zero point not folded in), real value of one unit of the sum [OC]."""
        f, b = self.affine()
        s = self.weight_scale()
        natural = s * f.abs() * s_in
        unit = torch.maximum(natural, (b.abs() / _BIAS_LIMIT).detach()).clamp_min(SCALE_FLOOR * SCALE_FLOOR)
        shrink = (natural / unit).detach()  # 1 but for channels whose bias would not fit
        sign = torch.where(f < 0, -1.0, 1.0)
        return self.round_weight(sign * shrink / s), round_ste(b / unit), unit

    def terms(self, inputs: list[Value]) -> list[Value]:
        (x, s_in), *rest = inputs
        if self.norm is None or not self.norm.training:
            codes, bias, unit = self.folded(s_in)
            with exact(x):
                sums = F.conv2d(x, codes, None, *self.geometry) + bias.view(1, -1, 1, 1)
            return [(sums, unit.view(1, -1, 1, 1)), *rest]
        return [(self.norm(self.before_norm(x, s_in)), torch.ones_like(s_in)), *rest]

    def before_norm(self, x: Tensor, s_in: Tensor) -> Tensor:
        """The quantized convolution in real values, as its batch norm receives it."""
        assert self.norm is not None
        s = self.weight_scale()
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0)
        y = F.conv2d(x, self.round_weight(sign / s), None, *self.geometry).float() * (sign * s * s_in).view(1, -1, 1, 1)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    @torch.no_grad()
    def match_statistics(self, value: Value, float_mean: Tensor, float_var: Tensor) -> None:
        """Moves the running statistics so that, on the images at hand, the quantized channel leaves its batch norm with
        the mean and variance that the float channel has there.

        float_mean, float_var: of the float network at the input of this batch norm, on the same images. Taking the
        statistics of a few hundred images as they are would also import their sampling noise, and the difference
        between them and the augmented images of training.
        """
        assert self.norm is not None
        y = self.before_norm(*value)
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        running_mean, running_var = statistics(self.norm)
        growth = (var + self.norm.eps) / (float_var + self.norm.eps)
        running_mean.copy_(mean - (float_mean - running_mean) * growth.sqrt())
        running_var.mul_(growth)


def statistics(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _as_map(node: Node) -> Node:
    """A batch norm over vectors is one over 1x1 maps here."""
    return replace(node, spec=replace(node.spec, shape=(node.spec.shape[0], 1, 1))) if len(node.spec.shape) == 1 else node


class AddStep(Requantized):
    """The sum of two streams of codes."""

    def __init__(self, step: Step, method: Method) -> None:
        super().__init__()
        assert step.codes is not None
        self.quantizer = method.activations(step.codes)

    def terms(self, inputs: list[Value]) -> list[Value]:
        return inputs


class PoolStep(AddStep):
    """Average pooling: the integer sum of a window, times scale / count."""

    def __init__(self, step: Step, method: Method) -> None:
        super().__init__(step, method)
        a = step.node.attrs
        whole = step.node.op == "global_avg_pool"
        self.window = None if whole else (tuple(a["kernel"]), tuple(a["stride"]), tuple(a["padding"]))

    def terms(self, inputs: list[Value]) -> list[Value]:
        ((x, s_in),) = inputs
        if self.window is None:
            return [(x.sum((2, 3), keepdim=True), s_in / (x.shape[2] * x.shape[3]))]
        kernel, stride, padding = self.window
        sums = F.avg_pool2d(x, kernel, stride, padding, divisor_override=1)
        return [(sums, s_in / (kernel[0] * kernel[1]))]


class RecodeStep(AddStep):
    """Codes of one scale to codes of another in integers: floor(r * k / 2^16 + 1/2), k = round(2^16 * s_in / s).

    With several inputs, a concat on one common scale.
    """

    def real(self, inputs: list[Value]) -> Tensor:
        return torch.cat([x * s for x, s in inputs], 1)

    def forward(self, inputs: list[Value]) -> Value:
        scale = self.quantizer.scale()
        return torch.cat([self._recode(value, scale) for value in inputs], 1), scale

    def _recode(self, value: Value, scale: Tensor) -> Tensor:
        x, s_in = value
        ratio = s_in / scale
        exact = recode_factor(ratio) / 65536
        return self.quantizer(x * (ratio + (exact - ratio).detach()), scale, floor_half_ste)


def recode_factor(ratio: Tensor) -> Tensor:
    """k of the integer recode, as a float holding an integer that the engine accepts."""
    return torch.round(ratio * 65536).clamp(1, numerics.RECODE_K_LIMIT - 1)


class HeadStep(Weights):
    """The last linear: float logits = sum * (s_w[o] * s_in) + bias[o]."""

    def __init__(self, step: Step, method: Method) -> None:
        super().__init__()
        self.init_weights(torch.from_numpy(step.node.params["weight"].copy()), step.bits[0], tanh=method.tanh_weights)
        self.bias = nn.Parameter(torch.from_numpy(step.node.params["bias"].copy()))

    def forward(self, value: Value) -> Tensor:
        x, s_in = value
        s = self.weight_scale()
        with exact(x):
            return F.linear(x, self.round_weight(1 / s)) * (s * s_in) + self.bias


class MoveStep(nn.Module):
    """Codes that only change place."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        function = function_of(step.node)
        assert function is not None, step.node.op
        self.function = function
