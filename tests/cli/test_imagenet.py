"""The ImageNet recipes that ship, cut to seconds: from image files through training and building to the engine."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import hce_engine as hce
from hce_engine.images import load_labelled
from hce_engine.training.models.mobilenet import InvertedResidual
from hce_engine.training.models.resnet_imagenet import Bottleneck
from hce_engine.training.recipe import load_recipe

from ..training.image_folder import CLASSES, write_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("imagenet"), train=4, val=2, side=40)


def bottlenecks(num_classes: int) -> nn.Sequential:
    """ResNet-50's kinds of layers, few and narrow."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    shortcut = nn.Sequential(nn.Conv2d(16, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
    blocks = (Bottleneck(16, 16, 2, shortcut), Bottleneck(64, 16, 1, None))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def inverted_residuals(num_classes: int) -> nn.Sequential:
    """MobileNetV2's kinds of layers, few and narrow."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    blocks = (InvertedResidual(16, 16, 1, 1), InvertedResidual(16, 24, 2, 6), InvertedResidual(24, 24, 1, 6))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))


def cut(name: str, path: Path) -> Path:
    """One short epoch per phase on 48 x 48 pixels; in every other way the recipe that ships as ``name``."""
    phase = "epochs = 1\nlr = 1e-4\nbatch_size = 8\ngrad_clip = 1.0\n"
    path.write_text(
        f'extends = "{name}"\ncompile = false\nprecision = "fp32"\n[data]\nholdout = 3\nsize = 48\nworkers = 0\n[o]\n{phase}'
        f"[q]\n{phase}calibration_images = 8\nfrozen_norm_epochs = 0\n[s]\n{phase}rounds = 1\nround_epochs = 0\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "layers", "ratio"),
    [("hce-mobilenetv2-imagenet", inverted_residuals, 0.718), ("hce-resnet50-imagenet", bottlenecks, 0.447)],
)
def test_a_recipe_ends_in_the_engine(
    run_hce: Callable, photos: Path, tmp_path: Path, name: str, layers: Callable, ratio: float
) -> None:
    arch = f"{__name__}:{layers.__name__}"
    run, model, facts = tmp_path / "run", tmp_path / "model.hce", tmp_path / "facts.json"
    result = run_hce("train", cut(name, tmp_path / "cut.toml"), "--arch", arch, "--data", photos, "--out", run, "--device", "cpu")
    assert result.code == 0, result.err
    trained = json.loads((run / "result.json").read_text())
    assert ratio - 0.05 < trained["ledger"]["flops_ratio"] <= ratio
    result = run_hce("build", run, "-o", model)
    assert result.code == 0, result.err
    engine = hce.load(model)
    assert (engine.input.shape, engine.input.resize) == ((3, 48, 48), "imagenet-center-crop")
    assert engine.artifact.classes == CLASSES

    result = run_hce("eval", model, "--data", photos, "--batch", 4, "--json", facts)
    assert result.code == 0, result.err
    assert json.loads(facts.read_text())["correct"] == trained["correct"], "the engine sees what the run was tested on"
    result = run_hce("run", model, photos / "val", "-o", tmp_path / "p.csv")
    assert result.code == 0, result.err
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logits = np.asarray(engine(load_labelled(photos, "test", spec=engine.input).images))
    assert [row["class"] for row in rows] == [CLASSES[label] for label in logits.argmax(1)]
    assert [row["file"].split("/")[0] for row in rows] == [name for name in CLASSES for _ in range(2)]


def test_the_recipes_state_the_papers_targets() -> None:
    resnet, mobile = load_recipe("hce-resnet50-imagenet"), load_recipe("hce-mobilenetv2-imagenet")
    for recipe, ratio, share in ((resnet, 0.447, 0.3), (mobile, 0.718, 0.5)):
        assert recipe.s is not None and recipe.q is not None
        assert (recipe.s.flops_ratio, recipe.objective.w_ce, recipe.objective.w_diff) == (ratio, share, 1 - share)
        assert (recipe.data.crop, recipe.data.size) == ("resized", 224)
