"""A small residual network and a recipe for it, as a user's own files would hold them."""

from __future__ import annotations

from torch import Tensor, nn

from hce_engine.training.recipe import Recipe, parse


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.second, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.first(x)).relu()
        return (self.norm2(self.second(y)) + x).relu()


class Small(nn.Module):
    def __init__(self, num_classes: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, stride, padding=1, bias=False), nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


def coarse(num_classes: int) -> Small:
    """For larger images: the stem takes every fourth pixel."""
    return Small(num_classes, stride=4)


def recipe(**changes: object) -> Recipe:
    """Seconds of training; tables in ``changes`` are merged into the sections, None removes one."""
    values: dict = {
        "arch": f"{__name__}:Small",
        "data": {"holdout": 15, "padding": 1},
        "o": {"epochs": 3, "lr": 0.05, "batch_size": 16},
        "q": {"epochs": 2, "lr": 0.01, "batch_size": 16, "calibration_images": 32, "distill": 0.5},
        "s": {"epochs": 2, "lr": 0.02, "batch_size": 16, "rounds": 2, "round_epochs": 1, "flops_ratio": 0.7},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse({key: value for key, value in values.items() if value is not None}, "test")
