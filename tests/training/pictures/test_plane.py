"""The plane goes through its image, is as large as it says, and every network sees the same valid pixels."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.errors import InputError
from hce_engine.ledger import ensemble_cost
from hce_engine.training.evaluate import frozen_logits
from hce_engine.training.pictures.plane import answers, pruned_variants, quantized_variants, random_plane
from tests.training.float_graphs import Builder, pictures, residual

GREY = np.full((16, 16, 3), 128, np.uint8)


def test_the_middle_is_the_image_and_the_sides_are_as_far_as_stated() -> None:
    plane = random_plane(GREY, 20.0, 5, seed=3)
    assert plane.images.shape == (25, 16, 16, 3) and plane.images.dtype == np.uint8
    change = np.sqrt(((plane.images.astype(float) - 128) ** 2).mean(axis=(1, 2, 3))).reshape(5, 5)
    assert change[2, 2] == 0
    # rounding to codes adds a variance of 1/12
    np.testing.assert_allclose(change[2], [20, 10, 0, 10, 20], atol=0.05)
    np.testing.assert_allclose(change[:, 2], [20, 10, 0, 10, 20], atol=0.05)
    assert change[0, 0] == pytest.approx(20 * np.sqrt(2), abs=0.05)  # the directions are orthogonal


def test_rows_fall_in_b_and_rise_in_a() -> None:
    images = random_plane(GREY, 20.0, 3, seed=0).images.astype(float).reshape(3, 3, -1) - 128
    up, right = images[0, 1], images[1, 2]
    assert np.abs(images[2, 1] + up).max() <= 1 and np.abs(images[1, 0] + right).max() <= 1
    assert np.abs(images[0, 2] - (up + right)).max() <= 1.5
    u, v = np.random.default_rng(0).standard_normal((2, GREY.size))
    assert np.corrcoef(right, u)[0, 1] > 0.99 and np.corrcoef(up, v)[0, 1] > 0.99


def test_pixels_stay_valid_and_seeds_differ() -> None:
    bright = np.full((8, 8, 3), 250, np.uint8)
    a, b = (random_plane(bright, 20.0, 3, seed) for seed in (0, 1))
    assert a.images.max() == 255 and a.images.min() > 100  # nothing wraps around
    assert not np.array_equal(a.images, b.images)
    assert np.array_equal(a.images, random_plane(bright, 20.0, 3, 0).images)


@pytest.mark.parametrize(("image", "radius", "side"), [(GREY.astype(np.float32), 1.0, 3), (GREY[0], 1.0, 3), (GREY, 0.0, 3),
                                                       (GREY, 1.0, 4), (GREY, 1.0, 1)])
def test_a_plane_of_nothing_is_refused(image: np.ndarray, radius: float, side: int) -> None:
    with pytest.raises(InputError, match="decision regions"):
        random_plane(image, radius, side, 0)


def test_variants_are_quantized_or_smaller_and_answer() -> None:
    graph, spec, images = residual(), Builder().input, pictures(16).transpose(0, 2, 3, 1).copy()
    quantized, pruned = quantized_variants(graph, images), pruned_variants(graph)
    assert list(quantized) == ["5-bit", "4-bit", "3-bit"]
    assert list(pruned) == ["90 % size", "70 % size", "40 % size"]  # a tenth is less than its residual stream
    full = ensemble_cost(graph).params
    sizes = [ensemble_cost(g).params / full for g in pruned.values()]
    assert all(size <= share for size, share in zip(sizes, (0.9, 0.7, 0.4), strict=True)) and sizes == sorted(sizes)[::-1]
    bits = {max(n.attrs["bits"]) for n in quantized["4-bit"].nodes if "bits" in n.attrs}
    assert bits == {4, 8}
    plane = random_plane(images[0], 10.0, 3, 0)
    logits = {name: answers(g, spec, plane.images) for name, g in {"o": graph, **quantized, **pruned}.items()}
    assert all(z.shape == (9, 5) and np.isfinite(z).all() for z in logits.values())
    np.testing.assert_array_equal(logits["3-bit"], frozen_logits(quantized["3-bit"], spec, plane.images, "reference"))
