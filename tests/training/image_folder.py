"""A small data set in ImageNet's layout, for tests: classes that differ in colour, images of different sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")


def write_folder(root: Path, train: int, val: int, side: int = 24) -> Path:
    """``root`` with ``train/<class>/*.jpeg`` and ``val/<class>/*.jpeg``, so many images per class; returns it."""
    rng = np.random.default_rng(0)
    for place, count in (("train", train), ("val", val)):
        for channel, name in enumerate(CLASSES):
            folder = root / place / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(side, 2 * side, 2)
                pixels = rng.integers(0, 160, (height, width, 3)).astype(np.uint8)
                pixels[..., channel] |= 0xC0
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG", quality=90)
    return root
