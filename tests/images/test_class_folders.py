"""Which folder holds the classes of a split, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hce_engine.errors import DataError
from hce_engine.images import open_labelled
from hce_engine.images.class_folders import find_class_folders


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


@pytest.mark.parametrize(("folder", "split"), [("val", "test"), ("test", "test"), ("train", "train")])
def test_one_split_alone_is_that_split(tmp_path: Path, folder: str, split: str) -> None:
    write(tmp_path, f"{folder}/cat/0.png", f"{folder}/dog/0.png", f"{folder}/dog/1.png")
    found = find_class_folders(tmp_path, split)
    assert found.root == tmp_path / folder
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 1, 1]
    other = {"test": "train", "train": "test"}[split]
    with pytest.raises(DataError, match=rf"for the {other} split, got classes in {folder} only"):
        open_labelled(tmp_path, other)


def test_a_split_is_found_beside_other_folders(tmp_path: Path) -> None:
    write(tmp_path, "val/cat/0.png", "val/dog/0.png", "__MACOSX/val/cat/0.png", "test/unlabelled.png")
    assert find_class_folders(tmp_path, "test").root == tmp_path / "val"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, split: str) -> None:
    found = find_class_folders(write(tmp_path, "bus/0.png", "car/0.png", "train/0.png"), split)
    assert (found.root, found.class_names) == (tmp_path, ("bus", "car", "train"))


@pytest.mark.parametrize("names", [("val/0.png",), ("train/0.png", "test/0.png"), ("Valid/cat/0.png", "training/dog/0.png")])
def test_splits_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"named after classes, got only .*name the splits train and test"):
        find_class_folders(write(tmp_path, *names), "test")
