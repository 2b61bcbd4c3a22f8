"""From what a user names to the splits of a run: which images are resident, which are decoded as they are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hce_engine.errors import DataError
from hce_engine.images import load_labelled
from hce_engine.images.class_folders import find_class_folders
from hce_engine.preprocess import IMAGENET, UINT8_NHWC, InputSpec

from .data import Split, digits, mean_codes, stratified, to_split
from .folder_data import AnySplit, FolderSplit
from .recipe import DataSection

DIGITS = "digits"
_COVERED = "shorter-side-center-crop"


def read_data(source: str | Path, section: DataSection) -> tuple[AnySplit, AnySplit]:
    """``(train, test)``: ``digits``, or whatever :func:`hce_engine.images.open_labelled` knows.

    With ``crop = "resized"`` it must be a folder of image files, which stay on disk; otherwise all images are in memory,
    those of files scaled until they cover ``size`` if the recipe has one. Where a source has one set for both splits, a
    fifth of every class is set aside as the test set.
    """
    whole: AnySplit
    test: AnySplit
    whole, test = _resident(source, section) if section.crop == "padded" else _on_disk(Path(source), section)
    if whole.class_names != test.class_names:
        raise DataError(f"data {source}", expected="the same classes for training and test",
                        got=f"{len(whole.class_names)} and {len(test.class_names)}", fix="correct the folders")
    if same_images(whole, test):
        rest, taken = stratified(whole.labels, len(whole) // 5, TEST_SEED)
        return whole.take(rest), whole.take(taken)
    return whole, test


TEST_SEED = 0  # of test sets that a source does not have itself: runs of all seeds are tested on the same images


def same_images(a: AnySplit, b: AnySplit) -> bool:
    """Whether a source has one set for both splits."""
    if isinstance(a, FolderSplit) and isinstance(b, FolderSplit):
        return a.root == b.root and a.names == b.names
    return len(a) == len(b) and a.fingerprint() == b.fingerprint()


def _on_disk(source: Path, section: DataSection) -> tuple[FolderSplit, FolderSplit]:
    if not source.is_dir():
        raise DataError(f"data {source}", expected='a folder of image files, which crop = "resized" is for',
                        got="a file" if source.exists() else "nothing of this name", fix="name the folder with train/ and val/")
    train, test = (FolderSplit.of(find_class_folders(source, name), section.size, section.workers) for name in ("train", "test"))
    return train, test


def _resident(source: str | Path, section: DataSection) -> tuple[Split, Split]:
    if str(source) == DIGITS:
        train, test = digits(TEST_SEED)
    else:
        side = section.size
        spec = InputSpec(UINT8_NHWC, (3, side, side), (0.0,) * 3, (1.0,) * 3, resize=_COVERED) if side else None
        found = [load_labelled(source, name, spec=spec) for name in ("train", "test")]
        train, test = (to_split(part.images, part.labels, part.class_names) for part in found)
    if section.size and train.shape[1:] != (section.size, section.size):
        raise DataError(f"data {source}", expected=f"images of the recipe's data.size, {section.size} x {section.size}",
                        got=" x ".join(map(str, train.shape[1:])), fix="leave data.size out: only image files are resized")
    return train, test


def input_for(arch_input: InputSpec, split: AnySplit, section: DataSection) -> InputSpec:
    """The architecture's own mean and std, at the size of the images, with the resize rule that they were read by."""
    if arch_input.shape[0] != split.shape[0]:
        raise DataError("training data", expected=f"images of {arch_input.shape[0]} channels, as the architecture takes",
                        got=f"{split.shape[0]}", fix="convert the images, or give the model an input_spec")
    rule = IMAGENET if section.crop == "resized" else _COVERED if section.size else arch_input.resize
    spec = replace(arch_input, shape=split.shape, resize=rule)
    mean_codes(spec)  # refuses float input
    return spec
