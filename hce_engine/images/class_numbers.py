"""Which class of a model each class of a data set is."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from .labelled import LabelledSource

_SHOWN = 5  # names in a message


def class_numbers(source: LabelledSource, classes: tuple[str, ...] | None, count: int) -> np.ndarray:
    """int64 ``(len(source.class_names),)``: the model's class number for each label of ``source``.

    classes: the model's class names, or None.  count: how many classes it has. Labels of numbered data are the model's own
    numbers. Class folders are found by name, so that they may be some of the model's classes; for a model without names they
    are numbered in sorted order, which says something only if all are there. Raises DataError for data of other classes.
    """
    names = source.class_names
    if source.numbered:
        highest = int(source.labels.max())
        if highest >= count:
            raise DataError(f"data {source.source}", expected=f"labels below {count}, the classes of the model",
                            got=f"label {highest}", fix="use the data the model was trained for")
        return np.arange(len(names), dtype=np.int64)
    if classes is None:
        if len(names) != count:
            raise DataError(f"data {source.source}", expected=f"{count} classes, as the model has, which does not know their names",
                            got=str(len(names)), fix="use a folder with all classes, or build the model with class names")
        return np.arange(count, dtype=np.int64)
    number = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in names if name not in number]
    if unknown:
        raise DataError(f"data {source.source}", expected=f"folders named after the model's classes, such as {_some(classes)}",
                        got=_some(unknown), fix="rename these folders or take them out")
    return np.array([number[name] for name in names], np.int64)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
