"""Whole runs on images that stay on disk, and on CIFAR-100's files: killed and resumed, from data to the engine."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import hce_engine as hce
from hce_engine.errors import RecipeError
from hce_engine.images import load_labelled
from hce_engine.training import checkpoint, loop
from hce_engine.training.export import members_of
from hce_engine.training.recipe import Recipe
from hce_engine.training.run import train

from .image_folder import CLASSES, write_folder
from .own_network import recipe


class Killed(BaseException):
    pass


def small(workers: int = 0) -> Recipe:
    phase = {"epochs": 1, "batch_size": 8}
    return recipe(
        data={"holdout": 6, "crop": "resized", "size": 16, "workers": workers}, o={**phase, "epochs": 2}, q=phase,
        s={**phase, "rounds": 1, "round_epochs": 1}, objective={"cached_augmentations": 2},
    )


def test_a_killed_run_on_image_files_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_folder(tmp_path / "images", train=9, val=3)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(small(), data, whole, progress=False)
    result = json.loads((whole / "result.json").read_text())
    assert result["total"] == 9 and result["accuracy"]["o"] > 0.5  # chance is a third

    made, real = count(), loop.step

    def step(*arguments: object) -> object:
        if next(made) in (1, 4, 8):
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", step)
        for _ in range(3):
            with pytest.raises(Killed):
                train(small(), data, cut, progress=False)
    assert train(small(), data, cut, progress=False) == result
    for name in ("o.pt", "q.pt", "s.pt"):
        a, b = (checkpoint.load_graph(run / name) for run in (whole, cut))
        assert all(np.array_equal(x.params[k], y.params[k]) for x, y in zip(a.nodes, b.nodes, strict=True) for k in x.params)

    (data / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG").unlink()
    with pytest.raises(RecipeError, match="another data"):
        train(small(), data, cut, progress=False)


def test_cifar_100_trains_builds_and_evaluates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, images in (("train", 200), ("test", 100)):
        records = rng.integers(0, 256, (images, 3074)).astype(np.uint8)
        records[:, 0], records[:, 1] = rng.integers(0, 20, images), np.arange(images) % 100
        records.tofile(tmp_path / f"{name}.bin")
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine {i}" for i in range(100)))
    phase = {"epochs": 1, "batch_size": 50}
    short = recipe(data={"holdout": 100}, o=phase, q=phase, s={**phase, "rounds": 1, "round_epochs": 0})
    result = train(short, tmp_path, tmp_path / "run", progress=False)
    run = members_of(tmp_path / "run")
    hce.build(dict(run.members), run.input, path=tmp_path / "model.hce", reference="o", classes=run.classes)
    engine, test = hce.load(tmp_path / "model.hce"), load_labelled(tmp_path, "test")
    assert engine.artifact.classes == tuple(f"fine {i}" for i in range(100))
    assert test.labels.tolist() == list(range(100))
    logits = engine.members(test.images)
    assert logits["q"].shape == (100, 100)
    assert {name: int((z.argmax(1) == test.labels).sum()) for name, z in logits.items()} == result["correct"]
