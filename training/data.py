"""Images in memory for training: a resident uint8 tensor, and batched augmentation on pixel codes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hce_engine.errors import DataError
from hce_engine.preprocess import UINT8_NHWC, InputSpec

from . import distributed
from .epochs import Batch as Batch
from .epochs import Epochs

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

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.class_names)

    def take(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices], self.class_names)

    def sample(self, indices: Tensor) -> Tensor:
        """The images of these numbers, uint8 ``(n, C, H, W)``, channels-last in memory."""
        return self.images[indices.to(self.device)].permute(0, 3, 1, 2)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in order, ``size`` at a time: uint8 ``(B, C, H, W)`` views, channels-last in memory."""
        return (self.images[first : first + size].permute(0, 3, 1, 2) for first in range(0, len(self), size))

    def fingerprint(self) -> str:
        """Count, shape and a digest of labels and pixels."""
        digest = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        return f"{len(self)}x{'x'.join(map(str, self.shape))}:{digest.hexdigest()[:16]}"


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
class Batches(Epochs):
    """Batches of images in memory; ``pad_code``, uint8 ``(C,)``, fills what a crop takes from outside of an image."""

    split: Split
    batch_size: int
    augmentation: Augmentation
    pad_code: Tensor
    drop_last: bool = False
    variants: int = 0
    variant_seed: int = 0
    share: tuple[int, int] = field(default_factory=distributed.share)

    def _draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
        offsets = torch.randint(0, 2 * self.augmentation.padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return offsets, flips & self.augmentation.flip

    def _images(self, order: Tensor, drawn: Sequence[Tensor], rows: Sequence[slice]) -> Iterator[Tensor]:
        order, offsets, flips = (values.to(self.split.device) for values in (order, *drawn))
        for some in rows:
            images = self.split.images[order[some]]
            if self.augmentation.padding or self.augmentation.flip:
                images = crop_and_flip(images, offsets[some], flips[some], self.augmentation.padding, self.pad_code)
            yield images.permute(0, 3, 1, 2)
