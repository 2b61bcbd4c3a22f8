"""Progressive bit lowering: a network trained at some width is where training at a lower one starts.

The sequence 32 -> 8 -> 4 -> 3 bits loses less than the jump, because every stage starts near a solution (APoT, Li et al.,
ICLR 2020, starts each width from the next higher one in this way). What is taken over: weights, biases, batch norms,
and the grids whose width stays. A narrower grid of activations could also keep the clip that was learned; measured before any
training (ResNet-20 on CIFAR-10, LSQ, cross entropy of 1,000 test images; weights are searched in both columns), the search
for the least squared error is better everywhere:

                activations: search   the clip of before
    4 -> 3 bits     0.590               0.632
    4 -> 2 bits     2.46                2.82
    8 -> 4 bits     0.457               0.490
    8 -> 3 bits     0.599               0.684
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hce_engine.errors import InputError

from .calibrate import need_images
from .layout import Step
from .module import QuantModule
from .steps import ConvStep, Requantized
from .weights import Weights

Moments = tuple[Tensor, Tensor]  # mean and variance per channel


@torch.no_grad()
def lowered(module: QuantModule, w_bits: int, a_bits: int, images: Tensor) -> QuantModule:
    """A QuantModule of at most the widths of ``module``, with its weights, ready to be trained; ``module`` is left as it was.

    images: as for ``calibrate``, a few hundred of the training set. Grids whose width changes are searched anew for least
    squared error, layer by layer, so that each layer sees quantized inputs; the statistics of batch norms move to those of the
    coarser network (ConvStep.match_statistics). Method, edge bits and input range stay; batch norms are live again.
    Raises InputError for a width above that of ``module`` or outside 2 to 8, or fewer than two images.
    """
    for what, bits, had in (("weight", w_bits, module.w_bits), ("activation", a_bits, module.a_bits)):
        if bits > had:
            raise InputError("lowered", expected=f"at most the {had} {what} bits of the module", got=str(bits), fix="lower it")
    need_images("lowered", images, 2)
    result = QuantModule(
        module.graph, w_bits, a_bits, method=module.method, edge_bits=module.edge_bits,
        input_range=(module.layout.low, module.layout.high),
    ).to(images.device)
    _take_over(module, result)
    moments, was_training = _moments(module, images), module.training
    before = {step.name: step for step in module.layout.steps}

    def prepare(step: Step, part: nn.Module, inputs: list) -> None:
        if isinstance(part, Weights) and step.bits[0] != before[step.name].bits[0]:
            part.fit_weights("mse")
        if isinstance(part, ConvStep) and step.norm is not None:
            part.match_statistics(inputs[0], *moments[step.name])
        if isinstance(part, Requantized) and not _same_grid(before.get(step.name), step):
            part.quantizer.fit(part.real(inputs), "mse")

    result.eval().walk(images, prepare)
    result.train(was_training)
    return result


def _same_grid(before: Step | None, now: Step) -> bool:
    """Whether a step had codes of this width, around this zero."""
    return before is not None and before.codes is not None and now.codes is not None and (
        (before.codes.bits, before.codes.signed) == (now.codes.bits, now.codes.signed)
    )


def _take_over(module: QuantModule, result: QuantModule) -> None:
    """Copies all of ``module`` that has a place in ``result``; a step that only one of them has is a recode."""
    known = result.state_dict()
    result.load_state_dict({k: v for k, v in module.state_dict().items() if k in known}, strict=False)


def _moments(module: QuantModule, images: Tensor) -> dict[str, Moments]:
    """Mean and variance per channel of what each batch norm of ``module`` receives in evaluation, by step name."""
    result: dict[str, Moments] = {}

    def note(step: Step, part: nn.Module, inputs: list) -> None:
        if isinstance(part, ConvStep) and step.norm is not None:
            var, mean = torch.var_mean(part.before_norm(*inputs[0]), (0, 2, 3), correction=0)
            result[step.name] = mean, var

    was_training = module.training
    module.eval().walk(images, note)
    module.train(was_training)
    return result
