"""Epochs of batches: which images each step sees, in which process, and how that repeats exactly.

Everything random is drawn from one :class:`torch.Generator` at the start of an epoch. Its state before the draw is all
that a checkpoint needs to repeat the epoch's batches exactly, from any step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from hce_engine.errors import RecipeError


@dataclass(frozen=True)
class Batch:
    """What one step sees. images: uint8 ``(B, C, H, W)``, channels-last in memory; labels: int64 ``(B,)``; index: int64
    ``(B,)``, the images' numbers in the split; variant: int64 ``(B,)``, which fixed augmentation each image has, None
    where augmentations are drawn anew."""

    images: Tensor
    labels: Tensor
    index: Tensor
    variant: Tensor | None = None


class Labels(Protocol):
    """What the order of an epoch needs to know of a split."""

    @property
    def labels(self) -> Tensor: ...


class Epochs(ABC):
    """The batches of one epoch, a pure function of the generator's state when :meth:`epoch` is called.

    The last, smaller batch is kept unless it would leave a process with a single image (batch norm needs two) or
    ``drop_last`` is set, which keeps every batch of one shape for compiled networks.

    variants: 0 draws new augmentations in every epoch. K > 0 draws K for every image once, from ``variant_seed``, and
    epochs choose among them, so that what depends on an image alone can be computed once.
    share: (rank, processes). Of every batch this process yields the rank-th part; the parts together are the batch that
    one process would see.
    """

    split: Labels
    batch_size: int
    drop_last: bool
    variants: int
    variant_seed: int
    share: tuple[int, int]

    @abstractmethod
    def _draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
        """What ``count`` augmentations are functions of: tensors of first size ``count``, on the CPU."""

    @abstractmethod
    def _images(self, order: Tensor, drawn: Sequence[Tensor], rows: Sequence[slice]) -> Iterator[Tensor]:
        """For each of ``rows`` the images ``order[rows]`` with the augmentations ``drawn[...][rows]``, where labels are."""

    def __post_init__(self) -> None:
        processes, smallest = self.share[1], min(self.batch_size, len(self.split.labels))
        if processes > 1 and smallest < 2 * processes:
            raise RecipeError("batches", expected=f"at least two images per process, {2 * processes}", got=str(smallest),
                              fix="raise batch_size or start fewer processes")

    @property
    def steps(self) -> int:
        full, rest = divmod(len(self.split.labels), self.batch_size)
        return max(1, full + (rest >= 2 * self.share[1] and not self.drop_last))

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from step ``start`` on.

        The generator advances by the whole epoch at the first draw, whatever ``start`` is.
        """
        labels = self.split.labels
        order = torch.randperm(len(labels), generator=generator)
        variant = None
        if self.variants:
            variant = torch.randint(0, self.variants, (len(labels),), generator=generator)
            drawn = tuple(table[variant, order] for table in self._table)
            variant = variant.to(labels.device)
        else:
            drawn = self._draw(generator, len(labels))
        rows = [self._rows(step) for step in range(start, self.steps)]
        images = self._images(order, drawn, rows)
        order = order.to(labels.device)
        for some, pixels in zip(rows, images, strict=True):
            index = order[some]
            yield Batch(pixels, labels[index], index, None if variant is None else variant[some])

    def of_variant(self, variant: int) -> Iterator[Tensor]:
        """All images in the split's order with fixed augmentation ``variant``: uint8 ``(B, C, H, W)``, whatever the share."""
        n = len(self.split.labels)
        rows = [slice(first, first + self.batch_size) for first in range(0, n, self.batch_size)]
        return self._images(torch.arange(n), [table[variant] for table in self._table], rows)

    @cached_property
    def _table(self) -> tuple[Tensor, ...]:
        """The draws of the fixed augmentations, each ``(K, N, ...)``."""
        n = len(self.split.labels)
        drawn = self._draw(torch.Generator().manual_seed(self.variant_seed), self.variants * n)
        return tuple(part.view(self.variants, n, *part.shape[1:]) for part in drawn)

    def _rows(self, step: int) -> slice:
        first, last = step * self.batch_size, min((step + 1) * self.batch_size, len(self.split.labels))
        rank, processes = self.share
        return slice(first + (last - first) * rank // processes, first + (last - first) * (rank + 1) // processes)
