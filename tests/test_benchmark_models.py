"""benchmarks/models.py: a network that was never trained predicts classes apart, so that peers can be held to its predictions."""

from __future__ import annotations

import numpy as np

import hce_engine as hce
from benchmarks.models import gratings, make


def test_a_fitted_head_tells_new_images_apart_and_members_are_the_right_ones() -> None:
    artifact = make("resnet20", bits=4, ratio=0.4)
    assert [m.name for m in artifact.graph.voters] == ["q", "s"]
    images, labels = gratings(100, 32, seed=5)
    logits = hce.Engine(artifact, threads=1).members(images)["o"]
    best = np.sort(logits, axis=1)
    assert (logits.argmax(axis=1) == labels).mean() >= 0.9
    assert np.median(best[:, -1] - best[:, -2]) > 1.0


def test_gratings_are_the_same_every_time() -> None:
    first, again = gratings(20, 16, seed=1), gratings(20, 16, seed=1)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], gratings(20, 16, seed=2)[0])
