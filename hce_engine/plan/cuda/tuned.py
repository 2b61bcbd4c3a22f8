"""Measured configurations: tables keyed by GPU, digest of the kernel's sources, and shape.

Two places, in this order: the user's cache, ``$XDG_CACHE_HOME/hce_engine/tuned/<gpu>.json`` (``~/.cache`` without the
variable), and the table shipped with the kernels, ``kernels/tuned/<gpu>.json``. A table is

    {"schema_version": 1, "gpu": NAME, "kernels": {KERNEL: {"digest": SHA256, "configs": {SHAPE: {FIELD: VALUE}}}}}

An entry counts only for the sources it was measured with. A damaged file is ignored with a warning: configurations change
speed and never a result.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ... import kernels
from ...atomic import atomic_write

SCHEMA_VERSION = 1
SOURCES = Path(next(iter(kernels.__path__)))
_NOT_OF_A_KERNEL = {"configurations"}  # choices, which change no kernel
Config = TypeVar("Config")


@lru_cache
def kernel_digest(kernel: str) -> str:
    """sha256 over the sources of a kernel: its file and those of its folder that it imports, directly or not."""
    seen: set[str] = set()
    waiting = {kernel}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        tree = ast.parse((SOURCES / f"{name}.py").read_text(encoding="utf-8"))
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
        waiting |= {name for name in imported if (SOURCES / f"{name}.py").exists()} - seen - _NOT_OF_A_KERNEL
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + (SOURCES / f"{name}.py").read_bytes() + b"\0")
    return digest.hexdigest()


def table_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def user_table(gpu: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "hce_engine" / "tuned" / table_name(gpu)


def shipped_table(gpu: str) -> Path:
    return SOURCES / "tuned" / table_name(gpu)


def _read(path: Path) -> dict[str, Any]:
    """The kernels of a table, empty where there is none or it is damaged."""
    try:
        document = json.loads(path.read_bytes())
        if document["schema_version"] != SCHEMA_VERSION:
            return {}
        table = document["kernels"]
        for entry in table.values():
            if not isinstance(entry["digest"], str) or not all(isinstance(c, dict) for c in entry["configs"].values()):
                raise ValueError("an entry is not a digest and configurations")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"tuned configurations in {path} are ignored: {type(error).__name__}: {error}", stacklevel=2)
        return {}
    return dict(table)


def _plausible(values: Mapping[str, Any], kind: type) -> bool:
    """Whether values are those of a configuration: its fields and their types, and sizes that are powers of two."""
    if {key: type(value) for key, value in values.items()} != {key: type(value) for key, value in vars(kind()).items()}:
        return False
    sizes = [value for key, value in values.items() if key.startswith("block_") or key == "num_warps"]
    powers = all(1 <= size <= 1024 and not size & (size - 1) for size in sizes)
    return powers and all(0 <= value < 1 << 16 for value in values.values())


class Tuned:
    """The tables of one GPU, read once. gpu: its name, or None for defaults only."""

    def __init__(self, gpu: str | None) -> None:
        tables = [] if gpu is None else [("cached", user_table(gpu)), ("shipped", shipped_table(gpu))]
        self._tables = [(source, _read(path)) for source, path in tables]

    def find(self, kernel: str, shape: str, kind: type[Config]) -> tuple[Config, str] | None:
        """(configuration, ``cached`` or ``shipped``) measured for ``shape``, or None."""
        for source, table in self._tables:
            entry = table.get(kernel)
            if entry is None or shape not in entry["configs"] or entry["digest"] != kernel_digest(kernel):
                continue
            values = entry["configs"][shape]
            if _plausible(values, kind):
                return kind(**values), source
            warnings.warn(f"the {source} configuration of {kernel} for {shape} is ignored: {values}", stacklevel=2)
        return None


def remember(gpu: str, kernel: str, configs: Mapping[str, Any]) -> Path:
    """Adds configurations (shape -> dataclass) to the user's cache; those of other sources of the kernel are dropped.

    Returns the file. Raises WriteError where it cannot be written.
    """
    path = user_table(gpu)
    table = _read(path)
    digest = kernel_digest(kernel)
    old = table.get(kernel, {"digest": digest, "configs": {}})
    kept = old["configs"] if old["digest"] == digest else {}
    new = {shape: dict(vars(config)) for shape, config in configs.items()}
    table[kernel] = {"digest": digest, "configs": {**kept, **new}}
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema_version": SCHEMA_VERSION, "gpu": gpu, "kernels": table}
    with atomic_write(path) as file:
        file.write((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    return path
