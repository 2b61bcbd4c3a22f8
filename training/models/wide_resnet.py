"""Wide ResNets (Zagoruyko and Komodakis 2016): pre-activation blocks, 6n + 4 layers, 16-16k-32k-64k channels.

State-dict names are those of xternalz/WideResNet-pytorch. Batch norm and ReLU stand before each convolution, so the
batch norm that follows a sum has no convolution to be folded into; the lowered graph holds it as a depthwise layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine.training.models.init import he_normal


class PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        # A block that changes the width branches off after its first activation (the original's `equalInOut`).
        residual = x if self.convShortcut is None else self.convShortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        y = self.conv2(F.dropout(y, self.dropout, self.training))
        return residual + y


class Stage(nn.Module):
    """Blocks of one width, under the name ``layer`` that the public checkpoints use."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride, dropout)
        self.layer = nn.Sequential(
            first, *(PreActivationBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Images (N, 3, 32, 32), normalised -> logits (N, classes). ``depth`` = 6n + 4."""

    def __init__(self, depth: int, width: int, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet: expected depth 6n + 4 with n >= 1, got {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(blocks, 16, 16 * width, 1, dropout)
        self.block2 = Stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = Stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        he_normal(self, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1)
        return self.fc(torch.flatten(x, 1))
