"""``hce run``: rows for every kind of input, both formats, unreadable files, and nothing half-written."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hce_engine as hce
from hce_engine.cli.predictions import NO_CLASS, open_predictions, top_class


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    for i, image in enumerate(pixels[:5]):
        Image.fromarray(image).save(path / f"{i}.png")
    return path


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch", [1, 8, 256])
def test_an_array_gives_indexed_rows(run_hce: Callable, model: Path, tmp_path: Path, pixels: np.ndarray, batch: int) -> None:
    np.save(tmp_path / "images.npy", pixels)
    out = tmp_path / "p.csv"
    result = run_hce("run", model, tmp_path / "images.npy", "-o", out, "--batch", batch)
    assert result.code == 0, result.err
    rows = _rows(out)
    logits = hce.load(model, device="reference")(pixels).astype(np.float64)
    names = np.array(["ant", "bee", "cat", "dog"])[logits.argmax(axis=1)]
    assert [r["index"] for r in rows] == [str(i) for i in range(21)]
    assert [r["class"] for r in rows] == names.tolist()
    probability = np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose([float(r["probability"]) for r in rows], probability, atol=1e-4)


@pytest.mark.parametrize("command", ["run", "eval"])
def test_other_arithmetics_are_of_a_gpu(run_hce: Callable, model: Path, tmp_path: Path, pixels: np.ndarray, command: str) -> None:
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.zeros(len(pixels), np.int64))
    where = [tmp_path / "images.npz", "-o", tmp_path / "p.csv"] if command == "run" else ["--data", tmp_path / "images.npz"]
    result = run_hce(command, model, *where, "--device", "cpu", "--arithmetic", "tf32x3")
    assert result.code == 3
    assert "arithmetic tf32x3" in result.err and "device cuda" in result.err
    assert run_hce(command, model, *where, "--arithmetic", "tf32").code == 2
    result = run_hce(command, model, *where, "--device", "cpu", "--max-batch", 8)
    assert result.code == 3 and "max_batch: expected device cuda" in result.err
    assert not (tmp_path / "p.csv").exists()


def test_npz_holds_the_same(run_hce: Callable, model: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    np.savez(tmp_path / "images.npz", images=pixels)
    assert run_hce("run", model, tmp_path / "images.npz", "-o", tmp_path / "p.csv").code == 0
    assert run_hce("run", model, tmp_path / "images.npz", "-o", tmp_path / "p.npz").code == 0
    with np.load(tmp_path / "p.npz") as arrays:
        saved = dict(arrays)
    rows = _rows(tmp_path / "p.csv")
    assert saved["index"].tolist() == list(range(21))
    assert saved["class_names"][saved["class"]].tolist() == [r["class"] for r in rows]
    np.testing.assert_allclose(saved["probability"], [float(r["probability"]) for r in rows], atol=1e-6)


def test_a_folder_gives_file_names(run_hce: Callable, model: Path, tmp_path: Path, folder: Path) -> None:
    result = run_hce("run", model, folder, "-o", tmp_path / "p.csv", "--json", tmp_path / "run.json")
    assert result.code == 0, result.err
    assert [r["file"] for r in _rows(tmp_path / "p.csv")] == [f"{i}.png" for i in range(5)]
    assert json.loads((tmp_path / "run.json").read_text())["images"] == 5


def test_npz_holds_file_names_too(run_hce: Callable, model: Path, tmp_path: Path, folder: Path) -> None:
    assert run_hce("run", model, folder, "-o", tmp_path / "p.npz").code == 0
    with np.load(tmp_path / "p.npz") as saved:
        assert list(saved["file"]) == ["0.png", "1.png", "2.png", "3.png", "4.png"]
        assert saved["class"].shape == saved["probability"].shape == (5,)


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_file_name_may_be_any_bytes(
    run_hce: Callable, model: Path, tmp_path: Path, folder: Path, suffix: str
) -> None:
    name = os.fsdecode(b"\xff\xc3\xa9.png")
    os.rename(folder / "0.png", folder / name)
    out = tmp_path / f"p{suffix}"
    assert run_hce("run", model, folder, "-o", out).code == 0
    if suffix == ".csv":
        assert b"\n\xff\xc3\xa9.png," in out.read_bytes()
    else:
        with np.load(out) as saved:
            assert name in saved["file"]


def test_an_unreadable_image_stops_or_is_listed(run_hce: Callable, model: Path, tmp_path: Path, folder: Path) -> None:
    (folder / "2.png").write_bytes(b"no image")
    out = tmp_path / "p.csv"
    result = run_hce("run", model, folder, "-o", out)
    assert result.code == 2
    assert "2.png" in result.err
    assert not out.exists()
    result = run_hce("run", model, folder, "-o", out, "--skip-bad", "--json", tmp_path / "run.json")
    assert result.code == 0
    assert "skipped 2.png" in result.err
    assert [r["file"] for r in _rows(out)] == ["0.png", "1.png", "3.png", "4.png"]
    assert [s["name"] for s in json.loads((tmp_path / "run.json").read_text())["skipped"]] == ["2.png"]


def test_a_folder_without_a_readable_image_is_an_error(run_hce: Callable, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"no image")
    result = run_hce("run", model, tmp_path / "bad", "-o", tmp_path / "p.csv", "--skip-bad")
    assert result.code == 2
    assert "none of 1" in result.err
    assert not (tmp_path / "p.csv").exists()


def test_inputs_that_do_not_fit_are_refused(run_hce: Callable, model: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    out = tmp_path / "p.csv"
    for wrong in (pixels.astype(np.float32), pixels[:, :4], pixels.transpose(0, 3, 1, 2), pixels[0], pixels[:0]):
        np.save(tmp_path / "wrong.npy", wrong)
        result = run_hce("run", model, tmp_path / "wrong.npy", "-o", out)
        assert result.code == 2, result.err
        assert result.err.count("\n") == 1
        assert not out.exists()
    assert run_hce("run", model, tmp_path / "nothing", "-o", out).code == 2


def test_the_suffix_decides_the_format(run_hce: Callable, model: Path, tmp_path: Path, folder: Path) -> None:
    result = run_hce("run", model, folder, "-o", tmp_path / "p.txt")
    assert result.code == 2
    assert ".csv" in result.err


def test_a_full_disk_leaves_the_old_file(
    run_hce: Callable, model: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    out.write_text("before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run_hce("run", model, folder, "-o", out)
    assert result.code == 1
    assert "No space left" in result.err
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "photos"]


def test_a_row_of_nan_has_no_class(tmp_path: Path) -> None:
    logits = np.array([[0.0, 1.0], [np.nan, 0.0], [1e4, -1e4]], np.float32)
    labels, probability = top_class(logits)
    assert labels.tolist() == [1, NO_CLASS, 0]
    assert np.isnan(probability[1])
    assert probability[2] == 1.0
    with open_predictions(tmp_path / "p.csv", "index", None) as writer:
        writer.add(["0", "1", "2"], logits)
    assert [r["class"] for r in _rows(tmp_path / "p.csv")] == ["1", "", "0"]
