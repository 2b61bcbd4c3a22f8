"""Splits, augmentation on pixel codes, and epochs that repeat exactly."""

import numpy as np
import pytest
import torch

from hce_engine.errors import DataError, RecipeError
from hce_engine.preprocess import InputSpec
from hce_engine.training.data import (
    Augmentation,
    Batches,
    crop_and_flip,
    digits,
    mean_codes,
    stratified,
    to_split,
)

PAD = torch.tensor([10, 20, 30], dtype=torch.uint8)


def images(count, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def split(count=10, classes=3):
    return to_split(images(count).numpy(), np.arange(count) % classes, [f"c{i}" for i in range(classes)])


def test_centre_crop_without_flip_changes_nothing():
    x = images(3)
    out = crop_and_flip(x, torch.full((3, 2), 2), torch.zeros(3, dtype=torch.bool), 2, PAD)
    assert torch.equal(out, x)


@pytest.mark.parametrize(("dy", "dx", "flip"), [(0, 0, False), (4, 1, True), (2, 3, True), (3, 4, False)])
def test_crop_and_flip_equal_a_padded_window(dy, dx, flip):
    x = images(1)
    padded = np.empty((10, 10, 3), np.uint8)
    padded[:] = PAD.numpy()
    padded[2:8, 2:8] = x[0].numpy()
    want = padded[dy : dy + 6, dx : dx + 6]
    want = want[:, ::-1] if flip else want
    out = crop_and_flip(x, torch.tensor([[dy, dx]]), torch.tensor([flip]), 2, PAD)
    assert np.array_equal(out[0].numpy(), want)


def test_an_epoch_shows_every_image_once_and_repeats_from_its_state():
    data = split(10)
    batches = Batches(data, 4, Augmentation(0, False), PAD)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = list(batches.epoch(generator))
    after = generator.get_state()
    assert [len(b.labels) for b in first] == [4, 4, 2] and batches.steps == 3
    seen = torch.cat([b.images for b in first]).permute(0, 2, 3, 1)
    assert sorted(s.numpy().tobytes() for s in seen) == sorted(i.numpy().tobytes() for i in data.images)
    generator.set_state(state)
    again = list(batches.epoch(generator, start=1))
    assert torch.equal(generator.get_state(), after)
    for a, b in zip(first[1:], again, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


def test_a_batch_names_its_images():
    data = split(10)
    for batch in Batches(data, 4, Augmentation(0, False), PAD).epoch(torch.Generator()):
        assert torch.equal(batch.images.permute(0, 2, 3, 1), data.images[batch.index]) and batch.variant is None
        assert torch.equal(batch.labels, data.labels[batch.index])


def test_batches_are_channels_last_uint8():
    x = next(iter(Batches(split(), 4, Augmentation(2, True), PAD).epoch(torch.Generator()))).images
    assert x.shape == (4, 3, 6, 6) and x.dtype == torch.uint8
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_a_last_batch_of_one_image_is_dropped():
    assert Batches(split(9), 4, Augmentation(0, False), PAD).steps == 2
    assert Batches(split(10), 4, Augmentation(0, False), PAD, drop_last=True).steps == 2


def test_stratified_takes_each_class_in_proportion():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rest, taken = stratified(labels, 10, seed=1)
    assert torch.bincount(labels[taken]).tolist() == [5, 3, 2]
    assert sorted(torch.cat([rest, taken]).tolist()) == list(range(100))
    assert torch.equal(stratified(labels, 10, seed=1)[1], taken)
    assert not torch.equal(stratified(labels, 10, seed=2)[1], taken)


def test_stratified_counts_exactly_when_shares_are_uneven():
    _, taken = stratified(torch.tensor([0] * 7 + [1] * 7 + [2] * 7), 10, seed=0)
    assert len(taken) == 10


def test_stratified_refuses_more_than_there_is():
    with pytest.raises(DataError, match="hold-out"):
        stratified(torch.zeros(5, dtype=torch.int64), 5, seed=0)


def test_digits_are_real_halves_that_share_no_image():
    train, test = digits(0)
    assert (len(train), len(test)) == (899, 898)
    assert train.shape == (3, 32, 32) and train.images.dtype == torch.uint8
    assert int(train.images.max()) == 255
    counts = torch.bincount(train.labels) - torch.bincount(test.labels)
    assert counts.abs().max() <= 1
    blocks = train.images.reshape(-1, 8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1, :1]).all()


def test_mean_codes_are_the_nearest_pixel():
    spec = InputSpec("uint8_nhwc", (3, 4, 4), (0.485, 0.0, 1.0), (1.0, 1.0, 1.0))
    assert mean_codes(spec).tolist() == [124, 0, 255]


def test_bad_data_is_refused():
    with pytest.raises(DataError, match="labels from 0 to 1"):
        to_split(images(3).numpy(), np.array([0, 1, 2]), ["a", "b"])
    with pytest.raises(DataError, match="uint8"):
        to_split(images(3).numpy().astype(np.float32), np.array([0, 1, 0]), ["a", "b"])


def whole(batches, seed=0):
    return list(batches.epoch(torch.Generator().manual_seed(seed)))


def test_a_fixed_augmentation_of_an_image_is_always_the_same():
    batches = Batches(split(10), 4, Augmentation(2, True), PAD, variants=3, variant_seed=5)
    tables = [torch.cat(list(batches.of_variant(k))) for k in range(3)]
    seen = set()
    for seed in range(20):
        for batch in whole(batches, seed):
            for image, index, variant in zip(batch.images, batch.index.tolist(), batch.variant.tolist(), strict=True):
                assert torch.equal(image, tables[variant][index])
                seen.add((variant, index))
    assert len(seen) == 30  # epochs choose among all of them
    assert any(not torch.equal(tables[0][i], tables[1][i]) for i in range(10))


def test_fixed_augmentations_depend_on_their_seed_alone():
    def table(size, seed):
        return torch.cat(list(Batches(split(10), size, Augmentation(2, True), PAD, variants=2, variant_seed=seed).of_variant(1)))

    assert torch.equal(table(4, 5), table(7, 5)) and not torch.equal(table(4, 5), table(4, 6))


def test_an_epoch_of_fixed_augmentations_can_start_anywhere():
    batches = Batches(split(10), 4, Augmentation(2, True), PAD, variants=3)
    rest = list(batches.epoch(torch.Generator().manual_seed(1), start=1))
    for a, b in zip(whole(batches, 1)[1:], rest, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.variant, b.variant)


@pytest.mark.parametrize("variants", [0, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_together_are_the_batches_of_one_process(processes, variants):
    def batches(share):
        return Batches(split(22), 8, Augmentation(2, True), PAD, variants=variants, share=share)

    alone = whole(batches((0, 1)))
    shares = [whole(batches((rank, processes))) for rank in range(processes)]
    assert [len(b.labels) for b in alone] == [8, 8, 6]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert min(len(p.labels) for p in parts) >= 2
        for name in ("images", "labels", "index", *(["variant"] if variants else [])):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(p, name) for p in parts]))


def test_a_last_batch_too_small_to_share_is_dropped():
    assert Batches(split(19), 8, Augmentation(0, False), PAD, share=(0, 2)).steps == 2
    with pytest.raises(RecipeError, match="two images per process"):
        Batches(split(22), 4, Augmentation(0, False), PAD, share=(0, 3))
