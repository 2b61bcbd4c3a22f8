"""Labelled data from CIFAR binaries, image folders and .npz: read exactly, or refused with the file's name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hce_engine.errors import DataError, InputError
from hce_engine.images import load_labelled, open_labelled
from hce_engine.preprocess import InputSpec


def spec(resize: str, shape: tuple[int, int, int] = (3, 8, 8)) -> InputSpec:
    return InputSpec("uint8_nhwc", shape, (0.0,) * shape[0], (1.0,) * shape[0], resize=resize)


@pytest.mark.parametrize("inside", [True, False])
def test_cifar10(cifar10: Path, inside: bool) -> None:
    path = cifar10 if inside else cifar10.parent
    data = load_labelled(path, "train")
    raw = np.concatenate([np.fromfile(cifar10 / f"data_batch_{i}.bin", np.uint8) for i in range(1, 6)]).reshape(35, 3073)
    assert np.array_equal(data.labels, raw[:, 0])
    assert data.labels.dtype == np.int64
    assert data.images.shape == (35, 32, 32, 3)
    assert data.images.flags.c_contiguous
    assert data.images[20, 3, 5, 2] == raw[20, 1 + 2 * 1024 + 3 * 32 + 5]
    assert data.class_names[2] == "bird"
    assert len(load_labelled(path, "test")) == 7


def test_cifar100_uses_the_fine_label(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("train", "test"):
        records = rng.integers(0, 20, (5, 3074)).astype(np.uint8)
        records[:, 1] = [0, 99, 5, 6, 7]
        records.tofile(tmp_path / f"{name}.bin")
    data = load_labelled(tmp_path, "test")
    assert data.labels.tolist() == [0, 99, 5, 6, 7]
    assert len(data.class_names) == 100


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 7 * 3073 - 1])
def test_cut_cifar_files(cifar10: Path, size: int) -> None:
    with open(cifar10 / "test_batch.bin", "r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=r"test_batch\.bin.*3073 bytes.*cut short"):
        load_labelled(cifar10)


def test_missing_and_foreign_cifar_files(cifar10: Path, tmp_path: Path) -> None:
    (cifar10 / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load_labelled(cifar10, "train")
    np.full((2, 3073), 11, np.uint8).tofile(cifar10 / "test_batch.bin")
    with pytest.raises(DataError, match="labels from 0 to 9"):
        load_labelled(cifar10)
    (cifar10 / "batches.meta.txt").write_text("cat\n")
    python = tmp_path / "python"
    python.mkdir()
    (python / "data_batch_1").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="pickles are not read"):
        load_labelled(python)


def test_class_names_must_be_complete(cifar10: Path) -> None:
    (cifar10 / "batches.meta.txt").write_text("cat\n")
    with pytest.raises(DataError, match="10 printable class names"):
        load_labelled(cifar10)
    (cifar10 / "batches.meta.txt").unlink()
    assert load_labelled(cifar10).class_names[9] == "9"


def test_image_folder(photos: Path) -> None:
    (photos / "README.txt").rename(photos / "cat" / "README.txt")
    data = load_labelled(photos)
    assert data.images.shape == (8, 4, 6, 3)
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.class_names == ("cat", "dog")
    assert np.array_equal(data.images[6], np.asarray(Image.open(photos / "dog" / "2.png")))
    assert np.array_equal(load_labelled(photos, "train").images, data.images)


def test_image_folder_with_splits(photos: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        (photos / split / "x").mkdir(parents=True)
        for i in range(count):
            (photos / "cat" / f"{i if split == 'train' else 3}.png").rename(photos / split / "x" / f"{i}.png")
    assert len(load_labelled(photos, "train")) == 3
    assert len(load_labelled(photos, "test")) == 1


def test_val_stands_for_test_where_there_is_none(photos: Path) -> None:
    for split, names in (("train", "012"), ("val", "3")):
        for label in ("cat", "dog"):
            (photos / split / label).mkdir(parents=True)
            for name in names:
                (photos / label / f"{name}.png").rename(photos / split / label / f"{name}.png")
    assert len(load_labelled(photos, "train")) == 6
    held_out = load_labelled(photos, "test")
    assert held_out.labels.tolist() == [0, 1]
    assert held_out.source.endswith("val")
    (photos / "val").rename(photos / "test")
    assert np.array_equal(load_labelled(photos, "test").images, held_out.images)


def test_class_folders_are_decoded_as_they_are_asked_for(photos: Path) -> None:
    (photos / "dog" / "1.png").write_bytes(b"")
    data = open_labelled(photos, skip_bad=True)
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not data.skipped
    for _ in range(2):
        parts = list(data.batches(3))
        assert [len(images) for images, _ in parts] == [3, 3, 1]
        assert np.concatenate([labels for _, labels in parts]).tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert [name for name, _ in data.skipped] == ["dog/1.png"]
    assert np.array_equal(data.take([6, 0]), np.stack([np.asarray(Image.open(photos / n)) for n in ("dog/2.png", "cat/0.png")]))
    with pytest.raises(DataError, match=r"dog/1\.png"):
        data.take([5])
    whole = open_labelled(photos, skip_bad=True)
    assert np.array_equal(load_labelled(photos, skip_bad=True).images, np.concatenate([i for i, _ in whole.batches(100)]))


def test_a_folder_without_any_readable_image(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="8 unreadable"):
        load_labelled(photos, skip_bad=True)


def test_sizes_differ(photos: Path) -> None:
    Image.new("RGB", (9, 9)).save(photos / "dog" / "9.png")
    with pytest.raises(DataError, match=r"9\.png.*one size"):
        load_labelled(photos)
    assert load_labelled(photos, spec=spec("squash")).images.shape == (9, 8, 8, 3)
    with pytest.raises(DataError, match="8 x 8 pixels"):
        load_labelled(photos, spec=spec("none"))


def test_grey_and_colour(photos: Path) -> None:
    assert load_labelled(photos, spec=spec("squash", (1, 8, 8))).images.shape == (8, 8, 8, 1)
    with pytest.raises(InputError, match="1 or 3 channels"):
        load_labelled(photos, spec=spec("squash", (4, 8, 8)), skip_bad=True)


@pytest.mark.parametrize("damage", ["cut", "text", "wide", "empty"])
def test_unreadable_images(photos: Path, damage: str) -> None:
    bad = photos / "cat" / "2.png"
    if damage == "cut":
        bad.write_bytes(bad.read_bytes()[:60])
    elif damage == "text":
        bad.write_text("%!PS-Adobe-3.0 EPSF-3.0")
    elif damage == "wide":
        Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(bad)
    else:
        bad.write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/2\.png.*--skip-bad"):
        load_labelled(photos)
    data = load_labelled(photos, skip_bad=True)
    assert len(data) == 7
    assert [name for name, _ in data.skipped] == ["cat/2.png"]


def test_folders_that_are_no_data(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(photos / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png outside"):
        load_labelled(photos)
    (tmp_path / "empty").mkdir()
    for path, match in ((tmp_path / "empty", "no image files"), (tmp_path / "none", "nothing of this name")):
        with pytest.raises(DataError, match=match):
            load_labelled(path)
    with pytest.raises(DataError, match="split"):
        load_labelled(photos, "validation")


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("test_images", "test_labels"), ("images", "labels")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, rng: np.random.Generator, names: tuple[str, str], save: object) -> None:
    images, labels = rng.integers(0, 256, (9, 5, 4, 3)).astype(np.uint8), np.arange(9, dtype=np.uint8)[:, None] % 3
    save(tmp_path / "d.npz", **{names[0]: images, names[1]: labels})  # type: ignore[operator]
    data = load_labelled(tmp_path / "d.npz")
    assert np.array_equal(data.images, images)
    assert data.labels.tolist() == labels[:, 0].tolist()
    assert data.class_names == ("0", "1", "2")


def test_npz_class_names_and_grey(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 5, 5), np.uint8), labels=np.array([1, 0]), class_names=np.array(["a", "b"]))
    data = load_labelled(tmp_path / "d.npz")
    assert data.images.shape == (2, 5, 5, 1)
    assert data.class_names == ("a", "b")


X, Y = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": X}, "name the arrays"),
        ({"images": X.astype(np.float32), "labels": Y}, "uint8"),
        ({"images": X[:0], "labels": Y[:0]}, "at least one"),
        ({"images": X, "labels": Y[:2]}, "3 integer labels"),
        ({"images": X, "labels": Y - 1}, "-1 to 1"),
        ({"images": X, "labels": Y + 2**40}, "labels from 0"),
        ({"images": X, "labels": Y.astype(float)}, "integer labels"),
        ({"images": X, "labels": Y, "class_names": np.array(["a", "b"])}, "0 to 1"),
        ({"images": X, "labels": Y, "class_names": np.array(["a", "b", "\x1b"])}, "printable"),
        ({"images": X, "labels": np.array([{}, [], None], object)}, "numbers"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=match):
        load_labelled(tmp_path / "d.npz")


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=X, labels=Y)
    raw = bytearray((tmp_path / "d.npz").read_bytes())
    for start in range(0, len(raw), 13):
        for change in (raw[:start], raw[:start] + b"\xff\xff\xff" + raw[start + 3 :]):
            (tmp_path / "d.npz").write_bytes(change)
            try:
                data = load_labelled(tmp_path / "d.npz")
            except DataError:
                continue
            assert data.images.shape == X.shape  # the change hit a field that nothing reads, such as a date
