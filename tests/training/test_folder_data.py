"""Splits and batches of image files: what memory would hold, decoded when it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hce_engine.images import load_labelled
from hce_engine.images.class_folders import find_class_folders
from hce_engine.preprocess import InputSpec
from hce_engine.training.epochs import Batch
from hce_engine.training.folder_data import FolderBatches, FolderSplit
from hce_engine.training.image_files import ResizedCrop

from .image_folder import CLASSES, write_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), train=5, val=2)


def split(root: Path, workers: int = 0) -> FolderSplit:
    return FolderSplit.of(find_class_folders(root, "train"), 16, workers)


def epoch(batches: FolderBatches, seed: int = 0, start: int = 0) -> list[Batch]:
    return list(batches.epoch(torch.Generator().manual_seed(seed), start))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and torch.equal(x.index, y.index)
        for x, y in zip(a, b, strict=True))


def by_number(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {number: image for batch in batches for number, image in zip(batch.index.tolist(), batch.images, strict=True)}


def test_a_split_shows_what_evaluation_sees(root: Path) -> None:
    spec = InputSpec("uint8_nhwc", (3, 16, 16), (0.0,) * 3, (1.0,) * 3, resize="imagenet-center-crop")
    data, memory = split(root), load_labelled(root, "train", spec=spec)
    assert (len(data), data.classes, data.class_names, data.shape) == (15, 3, CLASSES, (3, 16, 16))
    assert data.labels.tolist() == memory.labels.tolist()
    want = torch.from_numpy(memory.images).permute(0, 3, 1, 2)
    chunks = list(data.chunks(4))
    assert [len(images) for images in chunks] == [4, 4, 4, 3]
    assert torch.equal(torch.cat(chunks), want)
    assert chunks[0].is_contiguous(memory_format=torch.channels_last)
    index = torch.tensor([7, 0, 12])
    assert torch.equal(data.sample(index), want[index])
    assert torch.equal(torch.cat(list(data.take(index).chunks(2))), want[index])
    assert data.take(index).labels.tolist() == [1, 0, 2]


def test_a_fingerprint_sees_names_labels_and_sizes(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=2, val=1)
    before = split(root).fingerprint()
    assert before.startswith("6x3x16x16:")
    assert split(root, workers=2).fingerprint() == before
    file = root / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert split(root).fingerprint() != before
    file.write_bytes(content)
    assert split(root).fingerprint() == before
    file.rename(file.with_name("other.JPEG"))
    assert split(root).fingerprint() != before


def test_an_epoch_shows_every_image_once_and_repeats_from_any_step(root: Path) -> None:
    batches = FolderBatches(split(root), 4, ResizedCrop())
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first, after = list(batches.epoch(generator)), generator.get_state()
    assert [len(batch.labels) for batch in first] == [4, 4, 4, 3] and batches.steps == 4
    assert sorted(torch.cat([batch.index for batch in first]).tolist()) == list(range(15))
    for batch in first:
        assert torch.equal(batch.labels, split(root).labels[batch.index])
        assert batch.images.shape[1:] == (3, 16, 16) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        means = batch.images.float().mean((2, 3))
        assert torch.equal(means.argmax(1), batch.labels), "an image and its label go together"
    generator.set_state(state)
    assert equal(list(batches.epoch(generator, start=2)), first[2:])
    assert torch.equal(generator.get_state(), after)
    before, other = by_number(first), by_number(epoch(batches, seed=4))
    assert not any(torch.equal(before[i], other[i]) for i in range(15)), "another epoch cuts every image anew"


def test_workers_change_nothing(root: Path) -> None:
    batches = [FolderBatches(split(root, workers), 4, ResizedCrop()) for workers in (0, 1)]
    assert equal(epoch(batches[0], start=1), epoch(batches[1], start=1))


def test_fixed_augmentations_are_the_same_in_every_epoch(root: Path) -> None:
    batches = FolderBatches(split(root), 4, ResizedCrop(), variants=2, variant_seed=9)
    tables = [torch.cat(list(batches.of_variant(k))) for k in range(2)]
    assert not torch.equal(*tables)
    for batch in epoch(batches, 0) + epoch(batches, 1):
        assert batch.variant is not None
        want = torch.stack([tables[v][i] for v, i in zip(batch.variant.tolist(), batch.index.tolist(), strict=True)])
        assert torch.equal(batch.images, want)


def test_shares_together_are_the_batch_of_one_process(root: Path) -> None:
    whole = epoch(FolderBatches(split(root), 6, ResizedCrop()))
    parts = [epoch(FolderBatches(split(root), 6, ResizedCrop(), share=(rank, 2))) for rank in range(2)]
    assert len(whole) == 3
    for batch, *shares in zip(whole[:2], *parts, strict=False):
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert torch.equal(torch.cat([share.index for share in shares]), batch.index)


def test_only_the_share_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = ResizedCrop.apply

    def apply(self: ResizedCrop, image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
        seen.append(side)
        return real(self, image, side, rng)

    monkeypatch.setattr(ResizedCrop, "apply", apply)
    shown = epoch(FolderBatches(split(root), 4, ResizedCrop(), share=(1, 2)))
    assert len(seen) == sum(len(batch.labels) for batch in shown) == 6  # the last three would leave a process with one
