"""Labels of a data set as a model numbers its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hce_engine.errors import DataError
from hce_engine.images import class_numbers, load_labelled, open_labelled


def test_folders_are_found_by_name(photos: Path) -> None:
    classes = ("horse", "dog", "bird", "cat")
    for source in (open_labelled(photos), load_labelled(photos)):
        numbers = class_numbers(source, classes, 4)
        assert numbers.dtype == np.int64
        assert numbers[source.labels].tolist() == [3, 3, 3, 3, 1, 1, 1, 1]


def test_folders_that_the_model_does_not_know(photos: Path) -> None:
    with pytest.raises(DataError, match=r"'cat', 'horse', got 'dog'; rename"):
        class_numbers(open_labelled(photos), ("cat", "horse"), 2)
    many = tuple(map(str, range(100)))
    with pytest.raises(DataError, match=r"'3', '4' and 95 more, got 'cat', 'dog'"):
        class_numbers(open_labelled(photos), many, 100)


def test_a_model_without_names_takes_all_its_classes_or_none(photos: Path) -> None:
    assert class_numbers(open_labelled(photos), None, 2).tolist() == [0, 1]
    for count in (1, 3):
        with pytest.raises(DataError, match=f"expected {count} classes.*got 2"):
            class_numbers(open_labelled(photos), None, count)


def test_numbers_stay_numbers(cifar10: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=np.array([2, 0, 2]))
    for path in (tmp_path / "d.npz", cifar10):
        source = open_labelled(path)
        for classes in (None, tuple("jihgfedcba")):
            assert np.array_equal(class_numbers(source, classes, 10)[source.labels], source.labels)
    with pytest.raises(DataError, match=r"labels below 2.*label 2"):
        class_numbers(open_labelled(tmp_path / "d.npz"), ("a", "b"), 2)
