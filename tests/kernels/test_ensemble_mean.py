"""The ensemble's mean equals the reference bit for bit, for any number of members and any values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hce_engine.backends.reference import mean_logits
from hce_engine.kernels import ensemble_mean


def run(members: list[np.ndarray], device: str) -> np.ndarray:
    tensors = [torch.from_numpy(z).to(device) for z in members]
    out = torch.full_like(tensors[0], 77.0)
    with np.errstate(all="ignore"):
        ensemble_mean.launch("t", tensors, out)()
    for z, tensor in zip(members, tensors, strict=True):
        np.testing.assert_array_equal(tensor.cpu().numpy().view(np.int32), z.view(np.int32))
    return out.cpu().numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 10), (7, 333)], ids=str)
def test_equals_the_reference(count: int, shape: tuple[int, int], device: str) -> None:
    random = np.random.default_rng(count)
    # Magnitudes far apart, so that another order of the sums would show.
    size = (count, *shape)
    members = list((random.standard_normal(size) * 10.0 ** random.integers(-8, 8, size)).astype(np.float32))
    np.testing.assert_array_equal(run(members, device).view(np.int32), mean_logits(members).view(np.int32))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nan_rows_stay_nan_and_leave_their_neighbours(count: int, device: str) -> None:
    members = [np.full((4, 6), k + 0.1, np.float32) for k in range(count)]
    members[-1][1] = np.nan
    members[0][2] = np.inf
    found = run(members, device)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found, mean_logits(members))


def test_extremes(device: str) -> None:
    big, tiny = np.float32(3.4e38), np.float32(1e-45)
    rows = ([big, tiny, -0.0, big, 1.0], [big, tiny, -0.0, -big, tiny])
    members = [np.array([row], np.float32) for row in rows]
    with np.errstate(all="ignore"):
        expected = mean_logits(members)
    np.testing.assert_array_equal(run(members, device).view(np.int32), expected.view(np.int32))


def test_one_member_is_copied_bit_for_bit(device: str) -> None:
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, (9, 67)).astype(np.int32)
    np.testing.assert_array_equal(run([bits.view(np.float32)], device).view(np.int32), bits)


def test_the_result_may_replace_a_member(device: str) -> None:
    members = [np.random.default_rng(k).standard_normal((4, 300)).astype(np.float32) for k in range(3)]
    tensors = [torch.from_numpy(z.copy()).to(device) for z in members]
    ensemble_mean.launch("t", tensors, tensors[1])()
    np.testing.assert_array_equal(tensors[1].cpu().numpy(), mean_logits(members))


def test_operands_that_do_not_fit_are_refused() -> None:
    z = torch.zeros((2, 3))
    with pytest.raises(ValueError, match="expected 1 to 16 members, got 0"):
        ensemble_mean.launch("t", [], z)
    with pytest.raises(ValueError, match=r"expected logits \(2, 3\), got \(3, 2\)"):
        ensemble_mean.launch("t", [z, torch.zeros((3, 2))], z)
