"""Images for training: a resident uint8 tensor, seeded epochs, and batched augmentation on pixel codes.

Everything random is drawn from one :class:`torch.Generator` at the start of an epoch. Its state before the draw is all
that a checkpoint needs to repeat the epoch's batches exactly, from any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hce_engine.errors import DataError, RecipeError
from hce_engine.preprocess import UINT8_NHWC, InputSpec

from . import distributed

DIGITS_SIDE = 32


@dataclass(frozen=True)
class Split:
    """Labelled images in memory. images: uint8 ``(N, H, W, C)``; labels: int64 ``(N,)``, 0 <= label < classes."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(
                "training data", expected="uint8 images (N, H, W, C) and one label each",
                got=f"{tuple(self.images.shape)} {self.images.dtype} and {len(self.labels)} labels",
                fix="pass pixels, not normalised values",
            )
        if not len(self.labels):
            raise DataError("training data", expected="at least one image", got="none", fix="choose another split or folder")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise DataError(
                "training data", expected=f"labels from 0 to {len(self.class_names) - 1}", got=f"{low} to {high}",
                fix="number the classes from 0 without gaps",
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, h, w, c = self.images.shape
        return (c, h, w)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.class_names)

    def take(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices], self.class_names)

    def nchw(self, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` as a uint8 ``(B, C, H, W)`` view whose memory is channels-last."""
        return self.images[start:stop].permute(0, 3, 1, 2)


def to_split(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Split:
    """A :class:`Split` that shares the memory of contiguous numpy arrays: uint8 ``(N, H, W, C)``, integer ``(N,)``."""
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels).astype(np.int64, copy=False)),
        tuple(class_names),
    )


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices ``(rest, taken)``: ``count`` images taken in proportion to the classes, both in ascending order.

    Every class gives floor(count * share); what rounding leaves over goes to the classes with the largest remainders.
    """
    if not 0 < count < len(labels):
        raise DataError(
            "hold-out", expected=f"between 1 and {len(labels) - 1} images", got=str(count),
            fix="lower holdout in the recipe, or use a larger training set",
        )
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    sizes = torch.bincount(labels).double()
    exact = sizes * count / len(labels)
    quota = exact.floor().long()
    remainder_order = torch.argsort(exact - quota, descending=True, stable=True)
    quota[remainder_order[: count - int(quota.sum())]] += 1
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, want in enumerate(quota.tolist()):
        members = torch.nonzero(labels == label).flatten()
        taken[members[torch.randperm(len(members), generator=generator)[:want]]] = True
    return torch.nonzero(~taken).flatten(), torch.nonzero(taken).flatten()


def digits(seed: int = 0) -> tuple[Split, Split]:
    """scikit-learn's bundled handwritten digits as ``(train, test)``: 899 and 898 images, uint8 32x32x3.

    1,797 real 8x8 images (values 0..16, UCI optical digits test set) become grey RGB pixels: each pixel is repeated 4x4
    after scaling by 255/16, so nothing is invented between them. Half of each class is held out for the test.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "digits", expected="scikit-learn, which carries the images", got="no such package",
            fix='pip install "hce-engine[demo]"',
        ) from None
    bunch = load_digits()
    grey = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    factor = DIGITS_SIDE // grey.shape[1]
    grey = grey.repeat(factor, axis=1).repeat(factor, axis=2)
    whole = to_split(np.repeat(grey[..., None], 3, axis=3), bunch.target, [str(d) for d in range(10)])
    train, test = stratified(whole.labels, len(whole) // 2, seed)
    return whole.take(train), whole.take(test)


def mean_codes(spec: InputSpec) -> Tensor:
    """uint8 ``(C,)``: the pixel code nearest to the mean, which stands for zero in normalised space."""
    if spec.kind != UINT8_NHWC:
        raise DataError(
            "training data", expected="uint8 pixels", got=f"an architecture that takes {spec.kind}",
            fix="train on pixels; float32 input is for inference",
        )
    return torch.tensor([min(255, max(0, round(255 * m))) for m in spec.mean], dtype=torch.uint8)


@dataclass(frozen=True)
class Augmentation:
    """Zero-padded random crop and horizontal flip. ``padding`` pixels on each side; 0 and False change nothing."""

    padding: int = 4
    flip: bool = True


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int, pad_code: Tensor) -> Tensor:
    """Shifted and mirrored copies.

    images uint8 ``(B, H, W, C)``; offsets int64 ``(B, 2)`` in 0..2*padding (row, column of the window in the padded
    image; ``padding`` is no shift); flips bool ``(B,)``; pad_code uint8 ``(C,)`` fills the border.
    Returns uint8 ``(B, H, W, C)``.
    """
    b, h, w, c = images.shape
    padded = pad_code.to(images.device).expand(b, h + 2 * padding, w + 2 * padding, c).clone()
    padded[:, padding : padding + h, padding : padding + w] = images
    columns = torch.arange(w, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(0), columns)  # [B, W]
    rows = offsets[:, :1] + torch.arange(h, device=images.device)  # [B, H]
    columns = offsets[:, 1:] + columns
    return padded[torch.arange(b, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class Batch:
    """What one step sees. images: uint8 ``(B, C, H, W)``, channels-last in memory; labels: int64 ``(B,)``; index: int64
    ``(B,)``, the images' numbers in the split; variant: int64 ``(B,)``, which fixed augmentation each image has, None
    where augmentations are drawn anew."""

    images: Tensor
    labels: Tensor
    index: Tensor
    variant: Tensor | None = None


@dataclass(frozen=True)
class Batches:
    """The batches of one epoch, a pure function of the generator's state when :meth:`epoch` is called.

    The last, smaller batch is kept unless it would leave a process with a single image (batch norm needs two) or
    ``drop_last`` is set, which keeps every batch of one shape for compiled networks.

    variants: 0 draws new crops and flips in every epoch. K > 0 draws K for every image once, from ``variant_seed``, and
    epochs choose among them, so that what depends on an image alone can be computed once.
    share: (rank, processes). Of every batch this process yields the rank-th part; the parts together are the batch that
    one process would see.
    """

    split: Split
    batch_size: int
    augmentation: Augmentation
    pad_code: Tensor
    drop_last: bool = False
    variants: int = 0
    variant_seed: int = 0
    share: tuple[int, int] = field(default_factory=distributed.share)

    def __post_init__(self) -> None:
        processes = self.share[1]
        if processes > 1 and min(self.batch_size, len(self.split)) < 2 * processes:
            raise RecipeError("batches", expected=f"at least two images per process, {2 * processes}",
                              got=str(min(self.batch_size, len(self.split))), fix="raise batch_size or start fewer processes")

    @property
    def steps(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return max(1, full + (rest >= 2 * self.share[1] and not self.drop_last))

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from step ``start`` on.

        The generator advances by the whole epoch at the first draw, whatever ``start`` is.
        """
        n, device = len(self.split), self.split.images.device
        order = torch.randperm(n, generator=generator)
        if self.variants:
            variant = torch.randint(0, self.variants, (n,), generator=generator)
            offsets, flips = (table[variant, order] for table in self._table)
            variant = variant.to(device)
        else:
            variant = None
            offsets, flips = self._draw(generator, n)
        order, offsets, flips = order.to(device), offsets.to(device), flips.to(device)
        for step in range(start, self.steps):
            rows = self._rows(step)
            index = order[rows]
            yield Batch(self._augmented(index, offsets[rows], flips[rows]), self.split.labels[index], index,
                        None if variant is None else variant[rows])

    def of_variant(self, variant: int) -> Iterator[Tensor]:
        """All images in the split's order with fixed augmentation ``variant``: uint8 ``(B, C, H, W)``, whatever the share."""
        device = self.split.images.device
        offsets, flips = (table[variant].to(device) for table in self._table)
        for index in torch.arange(len(self.split), device=device).split(self.batch_size):
            yield self._augmented(index, offsets[index], flips[index])

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Offsets ``(K, N, 2)`` and flips ``(K, N)`` of the fixed augmentations."""
        n = len(self.split)
        offsets, flips = self._draw(torch.Generator().manual_seed(self.variant_seed), self.variants * n)
        return offsets.view(self.variants, n, 2), flips.view(self.variants, n)

    def _draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        offsets = torch.randint(0, 2 * self.augmentation.padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return offsets, flips & self.augmentation.flip

    def _rows(self, step: int) -> slice:
        first, last = step * self.batch_size, min((step + 1) * self.batch_size, len(self.split))
        rank, processes = self.share
        return slice(first + (last - first) * rank // processes, first + (last - first) * (rank + 1) // processes)

    def _augmented(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        images = self.split.images[index]
        if self.augmentation.padding or self.augmentation.flip:
            images = crop_and_flip(images, offsets, flips, self.augmentation.padding, self.pad_code)
        return images.permute(0, 3, 1, 2)
