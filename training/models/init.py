"""Initial weights as the papers prescribe them."""

from __future__ import annotations

from typing import Literal

from torch import nn


def he_normal(module: nn.Module, *, mode: Literal["fan_in", "fan_out"] = "fan_in", linear: bool = False) -> None:
    """He et al. 2015: convolutions from N(0, 2 / fan), batch norms identity, biases zero.

    mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients. linear: also draws linear layers
    so (they keep PyTorch's default otherwise).
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d) or (linear and isinstance(m, nn.Linear)):
            nn.init.kaiming_normal_(m.weight, mode=mode, nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
