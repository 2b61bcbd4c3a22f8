"""Convolutions and networks in plain torch, batch norm folded, as the rivals that ours are held against.

``fused``: cuDNN's convolution with bias, residual and ReLU in one call; plain: torch's operations one after the other, for
torch.compile to fuse. Memory is channels_last, cuDNN benchmarks its algorithms, and TF32 is on or off as the kind says.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hce_engine.bench.peers.cuda_torch import float32_products


@dataclass(frozen=True)
class Kind:
    """bound: of the error of a layer against float64; network_bound: of a whole network's logits."""

    name: str
    dtype: torch.dtype
    tf32: bool
    bound: float
    network_bound: float


KINDS = (
    Kind("fp32", torch.float32, False, 1e-4, 1e-3), Kind("tf32", torch.float32, True, 2e-3, 1e-2),
    Kind("fp16", torch.float16, False, 2e-3, 1e-2), Kind("bf16", torch.bfloat16, False, 1e-2, 1e-1),
)


def precision(kind: Kind) -> AbstractContextManager[None]:
    """cuDNN as fast as ``kind`` allows; everything is put back."""
    return float32_products(tf32=kind.tf32)


def convolve(x: Tensor, conv: nn.Conv2d, fused: bool, relu: bool = True, residual: Tensor | None = None) -> Tensor:
    """relu(conv(x) + bias + residual)."""
    assert not isinstance(conv.padding, str)
    if not (fused and relu):
        y = conv(x) if residual is None else conv(x) + residual
        return F.relu(y) if relu else y
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if residual is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *options)
    return torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, conv.bias, *options)


class Block(nn.Module):
    """A residual block: convolutions in a row, the last one added to the shortcut."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        numbers = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        self.convolutions = nn.ModuleList(folded(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in numbers)
        shortcut = block.downsample if hasattr(block, "downsample") else block.shortcut
        if isinstance(shortcut, nn.Sequential):
            shortcut = folded(shortcut[0], shortcut[1])
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convolutions[:-1]:
            y = convolve(y, conv, self.fused)
        shortcut = self.shortcut(x)
        if self.fused:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        return convolve(y, self.convolutions[-1], self.fused, residual=shortcut)


class Folded(nn.Module):
    """A CIFAR or ImageNet ResNet of hce_engine.training.models with its batch norms folded; normalised images in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        self.stem = folded(network.conv1, network.bn1)
        self.pool = copy.deepcopy(network.maxpool) if hasattr(network, "maxpool") else nn.Identity()
        stages = [getattr(network, f"layer{i}") for i in (1, 2, 3, 4) if hasattr(network, f"layer{i}")]
        self.blocks = nn.Sequential(*(Block(block) for stage in stages for block in stage))
        self.head = network.fc if hasattr(network, "fc") else network.linear
        self.fused = False
        self.requires_grad_(False)

    def fuse(self, fused: bool) -> Folded:
        self.fused = fused
        for block in self.blocks:
            block.fused = fused
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(convolve(x, self.stem, self.fused)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def folded(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv.eval(), norm.eval()).requires_grad_(False)


@torch.no_grad()
def with_statistics(network: nn.Module, images: Tensor) -> nn.Module:
    """The network with the batch norm statistics of ``images``: random weights then keep maps in the range of a trained
    network, deep ones included."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches
    network.train()
    network(images)
    return network.eval()
