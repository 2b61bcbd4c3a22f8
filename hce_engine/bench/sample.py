"""The images of a comparison: those that results are checked on, and those that int8 peers choose their ranges from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..images import open_labelled
from ..images.files import to_input
from ..preprocess import UINT8_NHWC, InputSpec

_FROM_DATA, _RANDOM = 512, 64


@dataclass(frozen=True)
class Sample:
    """images, calibration: as the engine takes them.  source: where they are from.  real: whether they are data."""

    images: np.ndarray
    calibration: np.ndarray
    source: str
    real: bool


def from_data(path: Path, spec: InputSpec) -> Sample:
    """512 test and 512 training images drawn with seed 0; all of them if there are fewer. Raises DataError."""
    parts = []
    for split in ("test", "train"):
        labelled = open_labelled(path, split, spec=spec)
        count = len(labelled.labels)
        drawn = np.sort(np.random.default_rng(0).permutation(count)[:_FROM_DATA])
        parts.append(to_input(labelled.take(drawn), spec))
    images, calibration = parts
    source = f"{path.name}: checked on {len(images)} test images, int8 ranges from {len(calibration)} training images"
    return Sample(images, calibration, source, real=True)


def random_images(spec: InputSpec) -> Sample:
    """64 and 64 images of noise with seed 0: enough for times, not for agreement of classes."""
    draw = np.random.default_rng(0)
    shape = (2 * _RANDOM, *spec.array_shape)
    if spec.kind == UINT8_NHWC:
        both = draw.integers(0, 256, shape, dtype=np.uint8)
    else:
        both = draw.uniform(spec.low, spec.high, shape).astype(np.float32)
    return Sample(both[:_RANDOM], both[_RANDOM:], f"{_RANDOM} and {_RANDOM} images of noise, seed 0", real=False)
