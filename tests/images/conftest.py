"""Small data sets of every kind, written by the tests themselves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def cifar10(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = rng.integers(0, 256, (7, 3073)).astype(np.uint8)
        records[:, 0] = rng.integers(0, 10, 7)
        records.tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n")
    return folder


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two classes of four 6 x 4 images, and files that are no images."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "README.txt").write_text("no image")
    return tmp_path / "photos"
