"""TOML files that a user names or that ship with the project, and that may extend each other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hce_engine.errors import RecipeError


def names(shipped: Path) -> list[str]:
    """Names of the files that ship in a folder."""
    return sorted(path.stem for path in shipped.glob("*.toml"))


def find(source: str | Path, folder: Path, shipped: Path) -> Path:
    """The file that ``source`` names, with or without ``.toml``: in ``folder``, or among those that ship."""
    path = folder / source
    other = shipped / f"{Path(source).name.removesuffix('.toml')}.toml"
    return other if not path.is_file() and Path(source).name == str(source) and other.is_file() else path


def read(who: str, path: Path, shipped: Path) -> dict[str, Any]:
    """The values of one file; raises RecipeError, which says what ships, when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(who, expected="a readable TOML file or one of " + ", ".join(names(shipped)),
                          got=error.strerror or str(error), fix="name an existing one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(who, expected="TOML", got=str(error), fix="correct the file") from None


def chain(who: str, path: Path, shipped: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file, the one that it ``extends``, and so on; values without that key. Raises RecipeError for a circle."""
    found: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if any(path.resolve() == other.resolve() for other, _ in found):
            raise RecipeError(who, expected="files that do not extend each other", got=f"{path.name} twice", fix="break the circle")
        values = read(who, path, shipped)
        base = values.pop("extends", None)
        found.append((path, values))
        if base is None:
            return found
        if not isinstance(base, str):
            raise RecipeError(who, expected="extends as the name of a file", got=repr(base)[:80], fix="correct the value")
        path = find(base, path.parent, shipped)


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``values`` in place of its own; tables are merged key by key."""
    result = dict(base)
    for key, value in values.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
