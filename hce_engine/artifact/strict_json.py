"""JSON with one spelling per document, and a reader that assumes an attacker wrote it.

Canonical text is ``json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)``:
ASCII, no spaces, keys in order, numbers as Python's shortest ``repr``. The reader accepts nothing else, which excludes
duplicate keys, NaN, Infinity and every alternative spelling; it also bounds integers and nesting.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import ArtifactError

INTEGER_LIMIT = 2**53  # every JSON reader holds integers up to here exactly
DEPTH_LIMIT = 12


def canonical(value: Any, who: str) -> str:
    """Canonical text of a JSON value; raises ArtifactError for what JSON cannot hold (NaN, arrays, non-string keys)."""
    try:
        _check(value, DEPTH_LIMIT)
        return _dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(who, expected="JSON values", got=str(error), fix="pass plain numbers, strings, lists") from None


def loads(text: bytes, who: str) -> Any:
    """The value of ASCII JSON without duplicate keys, NaN, deep nesting or huge integers; raises ArtifactError."""
    try:
        value = json.loads(
            text.decode("ascii"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_small_int
        )
        _check(value, DEPTH_LIMIT)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(who, expected="strict JSON", got=str(error)[:200] or "deep nesting", fix=_FIX) from None
    return value


def parse(text: bytes, who: str) -> Any:
    """The value of canonical ``text``; raises ArtifactError for anything else."""
    value = loads(text, who)
    try:
        same = _dumps(value).encode("ascii") == text
    except ValueError:  # a number such as 1e999 was read as infinity
        same = False
    if not same:
        raise ArtifactError(who, expected="canonical JSON", got="another spelling of the same value", fix=_FIX)
    return value


_FIX = "the file is damaged or was edited; build it again"


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"nesting deeper than {DEPTH_LIMIT}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r}")
            _check(item, depth - 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, int) and abs(value) > INTEGER_LIMIT:
        raise ValueError("an integer beyond 2^53")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _small_int(digits: str) -> int:
    if len(digits) > 17:  # before int(), whose cost grows with the square of the length
        raise ValueError("an integer beyond 2^53")
    return int(digits)
