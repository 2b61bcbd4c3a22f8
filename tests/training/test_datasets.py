"""What a run trains on and what it is tested on, from the data that a user names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hce_engine.errors import DataError, RecipeError
from hce_engine.images import load_labelled
from hce_engine.preprocess import UINT8_NHWC, InputSpec
from hce_engine.training.data import Split
from hce_engine.training.datasets import input_for, read_data
from hce_engine.training.folder_data import FolderSplit
from hce_engine.training.recipe import DataSection

from .image_folder import CLASSES, write_folder
from .own_network import recipe

RESIZED = DataSection(holdout=0, crop="resized", size=16)
ARCH = InputSpec(UINT8_NHWC, (3, 32, 32), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), train=4, val=2)


def test_resized_images_stay_on_disk(root: Path) -> None:
    train, test = read_data(root, RESIZED)
    assert isinstance(train, FolderSplit) and isinstance(test, FolderSplit)
    assert (train.root, len(train), test.root, len(test)) == (root / "train", 12, root / "val", 6)
    assert train.class_names == CLASSES
    spec = input_for(ARCH, train, RESIZED)
    assert (spec.shape, spec.mean, spec.resize) == ((3, 16, 16), ARCH.mean, "imagenet-center-crop")
    assert torch.equal(next(test.chunks(6)), torch.from_numpy(load_labelled(root, "test", spec=spec).images).permute(0, 3, 1, 2))


def test_padded_images_are_in_memory_at_one_size(root: Path) -> None:
    section = DataSection(size=12)
    train, _ = read_data(root, section)
    assert isinstance(train, Split) and train.shape == (3, 12, 12)
    spec = input_for(ARCH, train, section)
    assert spec.resize == "shorter-side-center-crop"
    assert np.array_equal(train.images.numpy(), load_labelled(root, "train", spec=spec).images)
    assert input_for(ARCH, train, DataSection()).resize == "none"


def test_one_set_for_both_is_divided(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "train", tmp_path / "one")
    train, test = read_data(tmp_path / "one", RESIZED)
    assert isinstance(train, FolderSplit) and isinstance(test, FolderSplit)
    assert (len(train), len(test)) == (10, 2) and not set(train.names) & set(test.names)


def test_what_does_not_fit_is_named(root: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=r"a folder of image files.*got a file"):
        read_data(tmp_path / "d.npz", RESIZED)
    with pytest.raises(DataError, match=r"a folder of image files.*nothing"):
        read_data("digits", RESIZED)
    with pytest.raises(DataError, match=r"data\.size, 9 x 9.*got 8 x 8"):
        read_data(tmp_path / "d.npz", DataSection(size=9))
    with pytest.raises(DataError, match="one size"):
        read_data(root, DataSection())
    shutil.copytree(root, tmp_path / "missing")
    shutil.rmtree(tmp_path / "missing" / "val" / CLASSES[1])
    with pytest.raises(DataError, match=r"same classes.*3 and 2"):
        read_data(tmp_path / "missing", RESIZED)
    with pytest.raises(RecipeError, match=r"data\.size above 0"):
        recipe(data={"crop": "resized"})
