"""Every failure that a user can cause is one of these types.

A message always answers four questions in one sentence: who noticed, what was expected, what was found, what to do.
The command line maps each type to an exit code: 1 a check failed, 2 usage, 3 unsupported here, 4 invalid artifact.
"""

from __future__ import annotations

from functools import partial
from typing import Any


class HceError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, who: str, *, expected: str, got: str, fix: str) -> None:
        super().__init__(f"{who}: expected {expected}, got {got}; {fix}")
        self.who, self.expected, self.got, self.fix = who, expected, got, fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders: pickle would call the class with the message alone."""
        return partial(type(self), expected=self.expected, got=self.got, fix=self.fix), (self.who,)


class GraphError(HceError):
    """A graph breaks a rule of the legality table (hce_engine.graph.verify)."""


class UnsupportedError(HceError):
    """A correct request that this version or this machine cannot serve; never answered by something slower."""

    exit_code = 3


class ArtifactError(HceError):
    """A ``.hce`` file is damaged, hostile, or of another version."""

    exit_code = 4


class InputError(HceError):
    """Images or arguments of the wrong rank, dtype, size, layout or value."""

    exit_code = 2


class DataError(HceError):
    """A data set on disk is missing, malformed or unreadable."""

    exit_code = 2


class CheckpointError(HceError):
    """A training checkpoint has missing, extra or wrongly shaped entries, or holds something other than tensors."""

    exit_code = 2


class RecipeError(HceError):
    """A recipe file has an unknown key, a value out of range, or asks for something that does not fit together."""

    exit_code = 2


class VerificationError(HceError):
    """A result differs from its reference by more than the stated tolerance."""


class WriteError(HceError):
    """A result cannot be written: the disk is full, the folder is missing or not writable. Nothing is half-written."""
