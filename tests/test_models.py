"""The shipped artifacts: whole, small, described truly, and as accurate as their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hce_engine
from benchmarks import model_cards
from hce_engine import artifact
from hce_engine.images import load_labelled
from hce_engine.ledger import ledger

MODELS = sorted(model_cards.MODELS.glob("*.hce"))
BUDGETS = {"resnet20": 0.568, "resnet56": 0.478}
pytestmark = pytest.mark.skipif(not (model_cards.MODELS.parent / "README.md").exists(), reason="not in a checkout")


def test_a_model_ships() -> None:
    assert "hce-resnet20-cifar10" in [path.stem for path in MODELS]


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_an_artifact_is_what_it_claims(path: Path) -> None:
    loaded = artifact.load(path)
    assert path.stat().st_size < 6_000_000
    assert {m.name: m.role for m in loaded.graph.members} == {"q": "vote", "s": "vote", "o": "reference"}
    assert loaded.provenance["checkpoint"] is None, "trained from scratch"
    assert set(loaded.provenance["members"]) == {"o", "q", "s"}
    assert ledger(loaded.graph)["flops_ratio"] <= BUDGETS[loaded.provenance["arch"]]
    assert loaded.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    if "resnet56" in path.stem:
        assert loaded.accuracy["o"] >= 0.92


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_the_card_is_up_to_date(path: Path) -> None:
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert text == model_cards.card(path), "run python -m benchmarks.model_cards"


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_the_card_is_right_to_the_image(path: Path, cifar10: Path) -> None:
    measured = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    test = load_labelled(cifar10, "test")
    logits = hce_engine.load(path).members(test.images)
    for name, count in measured["correct"].items():
        assert int((np.asarray(logits[name]).argmax(1) == test.labels).sum()) == count, name
