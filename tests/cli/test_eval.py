"""``hce eval`` on class folders: what a folder is called decides which class of the model it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hce_engine as hce
from hce_engine import artifact

CLASSES = ("ant", "bee", "cat", "dog")  # those of the fixture ``model``


@pytest.fixture
def answers(model: Path, labelled: Path) -> tuple[np.ndarray, np.ndarray]:
    images = np.load(labelled)["images"]
    return images, hce.Engine(artifact.load(model), device="reference")(images).argmax(axis=1)


def write(root: Path, images: np.ndarray, names: list[str]) -> Path:
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def test_some_of_the_classes_are_evaluated_by_their_names(
    run_hce: Callable, model: Path, answers: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, predicted = answers
    names = ["bee"] * 5 + [CLASSES[k] for k in predicted[5:]]
    right = sum(name == CLASSES[k] for name, k in zip(names, predicted, strict=True))
    assert "ant" not in names and right >= 5, "without the first class, numbers of the folder's own are wrong for all"
    write(tmp_path / "data" / "val", images, names)
    result = run_hce("eval", model, "--data", tmp_path / "data", "--batch", 4, "--json", tmp_path / "eval.json")
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "eval.json").read_text())
    assert (facts["total"], facts["correct"]["ensemble"]) == (37, right)


def test_a_class_that_the_model_does_not_know_is_named(
    run_hce: Callable, model: Path, answers: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    data = write(tmp_path / "data", answers[0][:3], ["bee", "fox", "dog"])
    result = run_hce("eval", model, "--data", data)
    assert result.code == 2
    assert "got 'fox'" in result.err and "'ant', 'bee'" in result.err


def test_labels_that_the_model_does_not_have(run_hce: Callable, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 4]))
    result = run_hce("eval", model, "--data", tmp_path / "d.npz")
    assert result.code == 2
    assert "labels below 4" in result.err
