"""A matrix of experiments: one base recipe, rows that change some of its keys, several seeds, ensembles of what came out.

A TOML file such as::

    recipe = "hce-resnet20-cifar10"     # the base: a file, or a recipe that ships
    seeds = [0, 1, 2]
    dataset = "CIFAR-10"                # what tables call the data
    control = "hce-kd"                  # the row that all others are compared with, image by image

    [rows.q-w3a3]                       # a run of its own per seed
    title = "Q, LSQ W3A3"
    drop = ["s"]                        # sections of the base that this row does without
    q = { weight_bits = 3, activation_bits = 3 }

    [ensembles.three-q-w3a3]            # no training: the mean of the logits of members that rows made
    title = "3 x Q W3A3, one O"
    members = ["q-w3a3:q", "q-w3a3-again:q", "q-w3a3-third:q"]
    across_seeds = false                # true: one ensemble of the first named member of every seed

``extends = "other"`` starts from another matrix, whose keys, rows and ensembles the file then changes; ``drop`` names rows and
ensembles of it that are left out.

Members that several rows make in the same way are trained once. ``OUT/<row>-s<seed>`` are ordinary run folders; called
again, :func:`run_matrix` goes on where it was, and rows that are finished are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hce_engine.errors import RecipeError

from . import toml_files
from .recipe import Recipe, changed, load_recipe, parse

MATRICES = Path(__file__).resolve().parent / "matrices"
_TOP = ("recipe", "seeds", "dataset", "control", "rows", "ensembles")  # beside extends and drop
_ENSEMBLE = ("title", "members", "across_seeds")


@dataclass(frozen=True)
class Row:
    """One recipe, trained once per seed. title: what a table calls it."""

    name: str
    title: str
    recipes: tuple[Recipe, ...]  # one per seed of the matrix


@dataclass(frozen=True)
class Homogeneous:
    """The mean of the logits of ``members`` ("row:member"), per seed, or of one member over all seeds."""

    name: str
    title: str
    members: tuple[tuple[str, str], ...]
    across_seeds: bool


@dataclass(frozen=True)
class Matrix:
    name: str
    seeds: tuple[int, ...]
    dataset: str
    control: str | None
    rows: tuple[Row, ...]
    ensembles: tuple[Homogeneous, ...]

    def jobs(self) -> list[tuple[Row, int, Recipe]]:
        """(row, seed, recipe) of everything that is trained; all rows of a seed before the next seed."""
        return [(row, seed, row.recipes[i]) for i, seed in enumerate(self.seeds) for row in self.rows]


def folder(out: Path, row: str, seed: int) -> Path:
    """Where a row's run of a seed lies."""
    return out / f"{row}-s{seed}"


def _recipe(who: str, name: str, base: Mapping[str, Any], row: Mapping[str, Any], seed: int) -> Recipe:
    values = {key: value for key, value in row.items() if key != "title"}
    return parse(changed(who, base, {**values, "seed": seed}), name)


def _values(who: str, path: Path) -> tuple[dict[str, Any], Path]:
    """The keys of a file on top of those of the matrices that it extends, and the folder of the one that names the recipe."""
    values: dict[str, Any] = {}
    folder = path.parent
    for place, own in reversed(toml_files.chain(who, path, MATRICES)):
        for key in own:
            if key not in (*_TOP, "drop"):
                raise RecipeError(who, expected="only extends, drop, " + ", ".join(_TOP), got=repr(key), fix="correct the key")
        for key, kind in (("seeds", list), ("rows", dict), ("ensembles", dict)):
            value = own.get(key, kind())
            if not isinstance(value, kind) or (isinstance(value, dict) and not all(isinstance(v, dict) for v in value.values())):
                raise RecipeError(who, expected=f"{key} as a " + ("list" if kind is list else "table of tables"),
                                  got=repr(value)[:80], fix="correct the value")
        dropped = own.pop("drop", [])
        known = {*values.get("rows", {}), *values.get("ensembles", {})}
        if not isinstance(dropped, list) or not set(dropped) <= known:
            raise RecipeError(who, expected="drop as a list of rows and ensembles of the other matrix", got=repr(dropped)[:80],
                              fix="correct the names")
        for table in ("rows", "ensembles"):
            values[table] = {name: row for name, row in values.get(table, {}).items() if name not in dropped}
        values = toml_files.merged(values, own)
        folder = place.parent if "recipe" in own else folder
    return values, folder


def load_matrix(source: str | Path) -> Matrix:
    """Reads a TOML file, or a matrix that ships by its name. Raises RecipeError for whatever does not fit."""
    path, who = toml_files.find(source, Path(), MATRICES), f"matrix {source}"
    values, folder = _values(who, path)
    seeds = tuple(values.get("seeds", ()))
    if not seeds or not all(type(s) is int and s >= 0 for s in seeds) or len(set(seeds)) != len(seeds):
        raise RecipeError(who, expected="seeds, a list of different whole numbers", got=repr(values.get("seeds")),
                          fix="write seeds = [0, 1, 2]")
    base_path = Path(str(values.get("recipe", "")))
    beside = folder / base_path
    base = {k: v for k, v in load_recipe(beside if beside.is_file() else base_path).to_dict().items() if k != "name"}
    rows = tuple(
        Row(name, str(row.get("title", name)), tuple(_recipe(f"{who}, row {name}", name, base, row, s) for s in seeds))
        for name, row in values.get("rows", {}).items()
    )
    made = {row.name: row.recipes[0].members for row in rows}
    control = values.get("control")
    if control is not None and control not in made:
        raise RecipeError(who, expected="control as the name of a row", got=repr(control), fix="one of " + ", ".join(made))
    return Matrix(path.stem, seeds, str(values.get("dataset", "unnamed data")), control, rows, tuple(
        _homogeneous(f"{who}, ensemble {name}", name, value, made) for name, value in values.get("ensembles", {}).items()
    ))


def _homogeneous(who: str, name: str, value: Mapping[str, Any], made: Mapping[str, tuple[str, ...]]) -> Homogeneous:
    for key in value:
        if key not in _ENSEMBLE:
            raise RecipeError(who, expected="only " + ", ".join(_ENSEMBLE), got=repr(key), fix="remove or correct the key")
    named = value.get("members", ())
    members = tuple(tuple(str(text).partition(":")[::2]) for text in (named if isinstance(named, list) else ()))
    for row, member in members:
        if member not in made.get(row, ()):
            raise RecipeError(who, expected="members as row:member of rows of this matrix", got=f"{row}:{member}",
                              fix="one of " + ", ".join(f"{r}:{m}" for r, names in made.items() for m in names))
    across = value.get("across_seeds", False)
    if not members or type(across) is not bool or (across and len(members) != 1):
        raise RecipeError(who, expected="members, and exactly one of them with across_seeds = true",
                          got=f"{len(members)} and {across!r}", fix="correct the two keys")
    return Homogeneous(name, str(value.get("title", name)), members, across)  # type: ignore[arg-type]
