"""Splits and batches of images that do not fit in memory: the counterparts of Split and Batches for folders of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hce_engine.images.class_folders import ClassFolders

from . import distributed
from .data import Split
from .epochs import Epochs
from .image_files import Decoder, Request, ResizedCrop, decoded

_AT_ONCE = 64  # images that a worker decodes at a time where no batch size is given


@dataclass(frozen=True)
class FolderSplit:
    """Labelled image files, decoded whenever they are looked at. See :class:`training.data.Split` for what it shares.

    root: folder of the class folders.  names: paths below it.  labels: int64 ``(N,)``.  side: height and width of the
    network's input.  workers: processes that decode.  Without augmentation an image is scaled until it covers 256/224 of
    the input, and the middle is cut out.
    """

    root: Path
    names: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    side: int
    workers: int = 0

    @staticmethod
    def of(folders: ClassFolders, side: int, workers: int) -> FolderSplit:
        return FolderSplit(folders.root, folders.names, torch.from_numpy(folders.labels), folders.class_names, side, workers)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one decoded image."""
        return (3, self.side, self.side)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to(self, device: torch.device | str) -> FolderSplit:
        """Labels, and every batch from now on, on ``device``."""
        return replace(self, labels=self.labels.to(device))

    def take(self, indices: Tensor) -> FolderSplit:
        names = tuple(self.names[i] for i in indices.tolist())
        return replace(self, names=names, labels=self.labels[indices.to(self.device)])

    def sample(self, indices: Tensor) -> Tensor:
        """The images of these numbers without augmentation, uint8 ``(n, C, H, W)``, channels-last in memory."""
        return torch.cat(list(self.take(indices).chunks(_AT_ONCE)))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in order without augmentation, ``size`` at a time: uint8 ``(B, C, H, W)``, channels-last in memory."""
        firsts = range(0, len(self), size)
        return self.decode([(name, 0) for name in self.names[first : first + size]] for first in firsts)

    def fingerprint(self) -> str:
        """Count, shape and a digest of names, labels and file sizes; contents are not read (ImageNet's are 150 GB)."""
        digest = hashlib.sha256(self.labels.cpu().numpy().tobytes())
        for name in self.names:
            digest.update(f"{name}\0{(self.root / name).stat().st_size}\0".encode("utf-8", "surrogateescape"))
        return f"{len(self)}x{'x'.join(map(str, self.shape))}:{digest.hexdigest()[:16]}"

    def decode(self, lists: Iterable[list[Request]], crop: ResizedCrop | None = None) -> Iterator[Tensor]:
        """Each list's images on this split's device, uint8 ``(B, C, H, W)``, channels-last in memory."""
        decoder = Decoder(self.root, self.side, crop)
        for images in decoded(decoder, lists, self.workers, pin_memory=self.device.type == "cuda"):
            yield images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FolderBatches(Epochs):
    """Batches of random resized crops, decoded ahead of their use."""

    split: FolderSplit
    batch_size: int
    augmentation: ResizedCrop
    drop_last: bool = False
    variants: int = 0
    variant_seed: int = 0
    share: tuple[int, int] = field(default_factory=distributed.share)

    def _draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
        return (torch.randint(0, 1 << 62, (count,), generator=generator),)

    def _images(self, order: Tensor, drawn: Sequence[Tensor], rows: Sequence[slice]) -> Iterator[Tensor]:
        def requests(some: slice) -> list[Request]:
            numbers = zip(order[some].tolist(), drawn[0][some].tolist(), strict=True)
            return [(self.split.names[number], seed) for number, seed in numbers]

        return self.split.decode(map(requests, rows), self.augmentation)


AnySplit = Split | FolderSplit


def pixel_batches(split: AnySplit, size: int = 500) -> Iterator[np.ndarray]:
    """All images in order without augmentation as the engine takes them: uint8 ``(B, H, W, C)``, contiguous."""
    return (images.permute(0, 2, 3, 1).cpu().numpy() for images in split.chunks(size))
