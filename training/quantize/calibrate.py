"""Post-training quantization: step sizes from a few images, and batch norm statistics to match."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hce_engine.errors import InputError
from hce_engine.training.graph_module import GraphModule

from .layout import Step
from .module import QuantModule
from .scales import SEARCHES
from .steps import ConvStep, Requantized
from .weights import Weights


def need_images(who: str, images: Tensor, least: int) -> None:
    if images.ndim != 4 or len(images) < least:
        raise InputError(
            who, expected=f"at least {least} images (N, C, H, W)", got=str(tuple(images.shape)),
            fix="pass a few hundred training images; labels are not needed",
        )


@torch.no_grad()
def calibrate(module: QuantModule, images: Tensor, *, method: str = "mse", reestimate: bool = True) -> None:
    """Sets every step size, layer by layer in the network's order, so that each layer sees quantized inputs.

    images: ``(N, C, H, W)`` as forward takes them, all of them at once in memory; a few hundred suffice.
    method: ``mse`` (least squared error), ``min-max`` (clip nothing) or ``lsq`` (2 mean|v| / sqrt(hi)).
    reestimate: move each batch norm's statistics to those of its quantized input, before the step size behind it is
    chosen (ConvStep.match_statistics). Worth tens of points at 3 and 4 bits: quantized weights do not have the float
    network's statistics. The float network is the graph that the module was made from, so this belongs before training.
    Raises InputError for too few images or an unknown method.
    """
    if method not in SEARCHES:
        raise InputError("calibrate", expected="a method of " + ", ".join(SEARCHES), got=repr(method), fix="name one of them")
    need_images("calibrate", images, 2 if reestimate else 1)
    target = _float_statistics(module, images) if reestimate else {}

    def prepare(step: Step, part: nn.Module, inputs: list) -> None:
        if isinstance(part, Weights):
            part.fit_weights(method)
        if isinstance(part, ConvStep) and step.norm is not None and step.norm.name in target:
            part.match_statistics(inputs[0], *target[step.norm.name])
        if isinstance(part, Requantized):
            part.quantizer.fit(part.real(inputs), method)

    was_training = module.training
    module.eval()
    module.walk(images, prepare)
    module.train(was_training)


def _float_statistics(module: QuantModule, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance per channel at the input of each batch norm of the float network, by node name."""
    result: dict[str, tuple[Tensor, Tensor]] = {}
    twin = GraphModule(module.graph).to(images.device).eval()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            var, mean = torch.var_mean(inputs[0], [d for d in range(inputs[0].ndim) if d != 1], correction=0)
            result[name] = mean, var

        return note

    for node in module.graph.nodes:
        if node.op == "batch_norm":
            twin.of(node.name).register_forward_pre_hook(watch(node.name))
    twin(images)
    return result
