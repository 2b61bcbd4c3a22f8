"""What passes as the same network, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.bench.checks import LARGEST_ERROR, largest_error, logits_of, same_as, same_classes, same_logits
from hce_engine.bench.peers import Session
from tests.bench.conftest import members

LOGITS = np.random.default_rng(0).normal(0, 10, (600, 10)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_float_logits_are_judged_by_their_size(scale: float) -> None:
    ours = LOGITS * np.float32(scale)
    assert same_logits(ours * np.float32(1 + 1e-6), ours).passed
    assert not same_logits(ours * np.float32(1 + 1e-4), ours).passed
    broken = ours.copy()
    broken[3, 4] = np.nan
    assert not same_logits(broken, ours).passed


def test_other_floats_are_judged_by_their_rounding_and_depth() -> None:
    graph = members()["s"]  # three convolutions
    assert largest_error("fp32", graph) == largest_error("ieee", graph) == largest_error("tf32x3", graph) == LARGEST_ERROR
    assert largest_error("tf32", graph) == largest_error("fp16", graph) == pytest.approx(4 * 3**0.5 / 2048)
    assert largest_error("bf16", graph) == pytest.approx(8 * largest_error("fp16", graph))
    ours = LOGITS * np.float32(1 + 1e-3)
    assert same_logits(ours, LOGITS, largest_error("fp16", graph)).passed
    assert not same_logits(ours, LOGITS).passed


def test_int8_is_judged_by_classes_on_data_and_by_logits_on_noise() -> None:
    def flipped(count: int) -> np.ndarray:
        theirs = LOGITS.copy()
        theirs[:count] = -theirs[:count]
        return theirs

    assert same_classes(flipped(18), LOGITS, real=True).passed
    assert not same_classes(flipped(19), LOGITS, real=True).passed
    assert "97.00 % of 600" in same_classes(flipped(18), LOGITS, real=True).text
    on_noise = same_classes(LOGITS * np.float32(1.3), LOGITS, real=False)
    assert on_noise.passed and "classes were not checked" in on_noise.text
    assert not same_classes(LOGITS[::-1], LOGITS, real=False).passed


def test_our_engine_is_judged_by_the_reference() -> None:
    near = LOGITS * np.float32(1 + 1e-6)
    assert same_as("reference", near, LOGITS, exact=False).passed
    assert not same_as("reference", near, LOGITS, exact=True).passed
    assert same_as("reference", LOGITS.copy(), LOGITS, exact=True).passed


@pytest.mark.parametrize("batch", [1, 4, 10, 16])
def test_every_image_goes_through_once_whatever_the_batch(batch: int) -> None:
    class Sums(Session):
        def load(self, images: np.ndarray) -> None:
            assert len(images) == batch
            self.images = images

        def __call__(self) -> np.ndarray:
            return self.images.sum((1, 2, 3))[:, None]

    images = np.random.default_rng(1).normal(size=(10, 3, 2, 2)).astype(np.float32)
    assert np.array_equal(logits_of(Sums(), images, batch, lambda x: 2 * x), (2 * images).sum((1, 2, 3))[:, None])
