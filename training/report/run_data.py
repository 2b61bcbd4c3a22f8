"""The data of a run, read again: refused unless they are those that it was trained and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hce_engine.errors import DataError
from hce_engine.preprocess import InputSpec
from hce_engine.training.data import Split
from hce_engine.training.datasets import read_data
from hce_engine.training.export import input_of
from hce_engine.training.recipe import DataSection

_FIX = "pass the data that the run was trained on"


@dataclass(frozen=True)
class RunData:
    """What run.json says of a run's data: how they are read, what the networks take, the names of the classes, and the
    fingerprints of ``test`` and ``train``."""

    section: DataSection
    input: InputSpec
    classes: tuple[str, ...]
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> RunData:
        """Raises KeyError, TypeError or AttributeError for what is not the content of a run.json."""
        fingerprints = {name: identity["data"][name] for name in ("test", "train")}
        section = DataSection(**identity["recipe"]["data"])
        return cls(section, input_of(identity), tuple(identity["classes"]), fingerprints)

    def read(self, source: str | Path) -> tuple[Split, Split] | None:
        """``(train, test)``, or None where the run reads its images one by one. Raises DataError for other data."""
        train, test = read_data(source, self.section)
        who = f"decision regions of {source}"
        if test.class_names != self.classes:
            expected, got = _difference(self.classes, test.class_names)
            raise DataError(who, expected=expected, got=got, fix=_FIX)
        for name, split in (("test", test), ("train", train)):
            if split.fingerprint() != self.fingerprints[name]:
                raise DataError(who, expected=f"the run's {name} images, {self.fingerprints[name]}", got=split.fingerprint(),
                                fix=_FIX)
        return (train, test) if isinstance(train, Split) and isinstance(test, Split) else None


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str]:
    """In words: how many classes there are, or the first that has another name."""
    if len(ours) != len(theirs):
        return f"the run's {len(ours)} classes", f"{len(theirs)}"
    index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"class {index} to be {ours[index]!r}, as in the run", repr(theirs[index])
