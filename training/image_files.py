"""Image files decoded for training: what one image becomes, and batches of them made by worker processes.

A random crop is a function of a seed that comes with the request, never of the worker or of the time, so that an epoch
repeats exactly from any step and with any number of workers.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hce_engine.errors import DataError
from hce_engine.images.files import open_image, read_image
from hce_engine.preprocess import IMAGENET, UINT8_NHWC, InputSpec
from hce_engine.threads import available_threads

_ASPECT = (3 / 4, 4 / 3)  # of the window, width over height
_TRIES = 10
Request = tuple[str, int]  # path below the root; seed of the random crop, of no account where there is none


@dataclass(frozen=True)
class ResizedCrop:
    """A random window resized to the network's input, mirrored half of the time if ``flip``.

    Its area is uniform in ``min_area`` to 1 of the image's, its aspect ratio log-uniform in 3/4 to 4/3, its place uniform
    (Szegedy et al. 2015, "Going deeper with convolutions", section 6; ten tries and the central fall-back as in
    torchvision's RandomResizedCrop).
    """

    min_area: float = 0.08
    flip: bool = True

    def window(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, inside the image."""
        for _ in range(_TRIES):
            area = width * height * rng.uniform(self.min_area, 1)
            aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                break
        else:  # an image so long that hardly any window fits: the largest central one of an allowed aspect
            w, h = min(width, round(height * _ASPECT[1])), min(height, round(width / _ASPECT[0]))
            left, top = (width - w) // 2, (height - h) // 2
            return left, top, left + w, top + h
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        return left, top, left + w, top + h

    def apply(self, image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 ``(side, side, C)``: bilinear and antialiased, from the window's pixels alone."""
        window = self.window(*image.size, rng)  # not as box= of resize: that filter reads beyond it
        pixels = np.asarray(image.crop(window).resize((side, side), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels


@dataclass(frozen=True)
class Decoder(Dataset[Tensor | dict[str, str]]):
    """Turns lists of requests into uint8 ``(B, side, side, 3)``, RGB; so small that workers start at once.

    crop: None for the one that accuracies are measured with.
    """

    root: Path
    side: int
    crop: ResizedCrop | None = None

    @property
    def spec(self) -> InputSpec:
        """How images are cut for evaluation, here as in the artifact."""
        return InputSpec(UINT8_NHWC, (3, self.side, self.side), (0.0,) * 3, (1.0,) * 3, resize=IMAGENET)

    def image(self, request: Request) -> np.ndarray:
        name, seed = request
        if self.crop is None:
            return read_image(self.root / name, 3, self.spec)
        return self.crop.apply(open_image(self.root / name, 3), self.side, np.random.default_rng(seed))

    def __getitem__(self, requests: Sequence[Request]) -> Tensor | dict[str, str]:
        """The images, or the parts of the error that a file met: typed errors do not survive the way between processes."""
        images = np.empty((len(requests), self.side, self.side, 3), np.uint8)
        try:
            for i, request in enumerate(requests):
                images[i] = self.image(request)
        except DataError as error:
            return {"who": error.who, "expected": error.expected, "got": error.got, "fix": error.fix}
        return torch.from_numpy(images)


def decoded(decoder: Decoder, requests: Iterable[Sequence[Request]], workers: int, pin_memory: bool = False) -> Iterator[Tensor]:
    """The images of each list of requests, uint8 ``(B, side, side, 3)``, in order, decoded ahead by ``workers`` processes.

    0 workers: in this process, when asked for. Never more than this machine has processors. Workers are children of a
    server process that was started afresh (a fork of this one would inherit locks of its threads), so a program that
    calls this from a file must do so below ``if __name__ == "__main__":``. Raises DataError for an unreadable file.
    """
    workers = min(workers, available_threads())
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports torch once, not once per worker
    loader = DataLoader(
        decoder, batch_size=None, sampler=requests, num_workers=workers, multiprocessing_context=context,
        pin_memory=pin_memory, generator=torch.Generator(),
    )
    for images in loader:
        if isinstance(images, dict):
            raise DataError(**images)
        yield images
