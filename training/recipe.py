"""Recipes: a training run written down as TOML, read into frozen dataclasses.

Every key has a section, a type and a range; an unknown key, a wrong type or a value out of range is a RecipeError that
names the file, the key and what is allowed. ``training/recipes/`` holds the recipes that ship; their names work
wherever a path does.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hce_engine.errors import RecipeError

from .objectives import READINGS

RECIPES = Path(__file__).resolve().parent / "recipes"

# A check is the condition and the words that state it in an error.
Check = tuple[Callable[[Any], bool], str]
_AT_LEAST_0: Check = (lambda v: v >= 0, "at least 0")
_AT_LEAST_1: Check = (lambda v: v >= 1, "at least 1")
_POSITIVE: Check = (lambda v: v > 0, "above 0")
_FRACTION: Check = (lambda v: 0 < v < 1, "between 0 and 1")
_UNIT: Check = (lambda v: 0 <= v < 1, "at least 0 and below 1")
_BITS: Check = (lambda v: 2 <= v <= 8, "2 to 8")


def _one_of(*values: str) -> Check:
    return (lambda v: v in values, "one of " + ", ".join(values))


def _key(check: Check | None = None, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class DataSection:
    """holdout: images taken from the training set for model selection (0: none, the last epoch is kept).
    padding, flip: augmentation."""

    holdout: int = _key(_AT_LEAST_0, 5000)
    padding: int = _key(_AT_LEAST_0, 4)
    flip: bool = _key(None, True)


@dataclass(frozen=True)
class FitSection:
    """One phase of stochastic gradient descent (Nesterov momentum).

    lr: peak learning rate.  schedule: ``cosine`` (linear warm-up, then half a cosine to 0), ``one-cycle`` (lr/10 up to
    lr over the warm-up, cosine down to lr/1000) or ``constant``.  warmup: share of the steps.  weight_decay: of
    convolution and linear weights only.  grad_clip: largest gradient norm, 0 for none.
    """

    epochs: int = _key(_AT_LEAST_0)
    lr: float = _key(_POSITIVE)
    batch_size: int = _key((lambda v: v >= 2, "at least 2"), 128)
    momentum: float = _key(_UNIT, 0.9)
    weight_decay: float = _key(_AT_LEAST_0, 5e-4)
    schedule: str = _key(_one_of("cosine", "one-cycle", "constant"), "cosine")
    warmup: float = _key(_UNIT, 0.0)
    label_smoothing: float = _key(_UNIT, 0.0)
    grad_clip: float = _key(_AT_LEAST_0, 0.0)


@dataclass(frozen=True)
class QuantizeSection(FitSection):
    """Q. Post-training quantization first, then ``epochs`` of LSQ (0: stay with the former).

    frozen_norm_epochs: last epochs in which batch norm uses its running statistics, as the integers will.
    distill: share of the loss that is KL to O (Hinton), the rest is cross entropy.
    """

    weight_bits: int = _key(_BITS, 4)
    activation_bits: int = _key(_BITS, 4)
    calibration_images: int = _key(_AT_LEAST_1, 1024)
    frozen_norm_epochs: int = _key(_AT_LEAST_0, 1)
    distill: float = _key((lambda v: 0 <= v <= 1, "0 to 1"), 0.0)
    temperature: float = _key(_POSITIVE, 4.0)


@dataclass(frozen=True)
class PruneSection(FitSection):
    """S. ``epochs`` are those after the last pruning step; ``rounds`` steps precede, each with ``round_epochs``.

    flops_ratio: cost of the *ensemble* (Q and S) over the unpruned O, in the paper's convention; S gets what Q leaves.
    """

    flops_ratio: float = _key(_FRACTION, 0.568)
    rounds: int = _key(_AT_LEAST_1, 3)
    round_epochs: int = _key(_AT_LEAST_0, 1)
    round_lr: float = _key(_POSITIVE, 0.01)


@dataclass(frozen=True)
class ObjectiveSection:
    """What S learns: see training/objectives.py."""

    reading: str = _key(_one_of(*READINGS), "V5")
    w_ce: float = _key(_AT_LEAST_0, 0.4)
    w_diff: float = _key(_AT_LEAST_0, 0.6)
    temperature: float = _key(_POSITIVE, 4.0)


@dataclass(frozen=True)
class Recipe:
    """name: of the file.  arch: a registered architecture or ``package.module:factory``.

    checkpoint_required: O is not trained but read from ``--checkpoint``.  compile: torch.compile for training steps
    (pays off only in long phases: every network compiles anew for a minute).
    """

    name: str
    arch: str
    seed: int
    compile: bool
    checkpoint_required: bool
    data: DataSection
    o: FitSection
    q: QuantizeSection
    s: PruneSection
    objective: ObjectiveSection

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON: two runs of one digest, data set and version are the same run."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


_SECTIONS: dict[str, type] = {
    "data": DataSection, "o": FitSection, "q": QuantizeSection, "s": PruneSection, "objective": ObjectiveSection,
}
_TOP: dict[str, tuple[type, Any, Check | None]] = {
    "arch": (str, MISSING, (bool, "the name of an architecture")),
    "seed": (int, 0, (lambda v: 0 <= v < 2**63, "0 to 2^63 - 1")),
    "compile": (bool, False, None),
    "checkpoint_required": (bool, False, None),
}


def _checked(who: str, key: str, value: Any, kind: type, check: Check | None) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise RecipeError(who, expected=f"{key} as {kind.__name__}", got=repr(value)[:80], fix="correct the value")
    if (kind is float and value in (float("inf"), float("-inf"))) or value != value:
        raise RecipeError(who, expected=f"{key} as a finite number", got=repr(value), fix="correct the value")
    if check is not None and not check[0](value):
        raise RecipeError(who, expected=f"{key} {check[1]}", got=repr(value)[:80], fix="correct the value")
    return value


def _section(who: str, name: str, kind: type, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise RecipeError(who, expected=f"[{name}] as a table", got=repr(values)[:80], fix=f"write a section [{name}]")
    types_of = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise RecipeError(who, expected=f"in [{name}] only " + ", ".join(known), got=repr(key), fix="remove or correct the key")
    arguments = {}
    for key, f in known.items():
        if key in values:
            arguments[key] = _checked(who, f"{name}.{key}", values[key], types_of[key], f.metadata["check"])
        elif f.default is MISSING:
            raise RecipeError(who, expected=f"{name}.{key}", got="no such key", fix=f"add it to [{name}]")
    return kind(**arguments)


def parse(values: Mapping[str, Any], name: str) -> Recipe:
    """A validated recipe from the nested dict of a TOML file; ``name`` stands in errors and results."""
    who = f"recipe {name}"
    for key in values:
        if key not in _TOP and key not in _SECTIONS:
            raise RecipeError(who, expected="only " + ", ".join([*_TOP, *(f"[{s}]" for s in _SECTIONS)]), got=repr(key),
                              fix="remove or correct the key")
    top = {}
    for key, (kind, default, check) in _TOP.items():
        if key not in values and default is MISSING:
            raise RecipeError(who, expected=key, got="no such key", fix=f'add a line such as {key} = "resnet20"')
        top[key] = _checked(who, key, values.get(key, default), kind, check)
    sections = {key: _section(who, key, kind, values.get(key, {})) for key, kind in _SECTIONS.items()}
    recipe = Recipe(name=name, **top, **sections)
    if recipe.objective.w_ce + recipe.objective.w_diff == 0:
        raise RecipeError(who, expected="objective.w_ce or objective.w_diff above 0", got="both 0", fix="give S a loss")
    if recipe.q.frozen_norm_epochs > recipe.q.epochs:
        raise RecipeError(who, expected=f"q.frozen_norm_epochs of at most q.epochs = {recipe.q.epochs}",
                          got=str(recipe.q.frozen_norm_epochs), fix="lower it")
    return recipe


def available() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def load_recipe(source: str | Path) -> Recipe:
    """Reads a TOML file, or a recipe that ships by its name (with or without ``.toml``).

    Raises RecipeError when there is no such file, it is not TOML, or a value does not fit.
    """
    path = Path(source)
    shipped = RECIPES / f"{Path(source).name.removesuffix('.toml')}.toml"
    if not path.is_file() and path.name == str(source) and shipped.is_file():
        path = shipped
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {source}", expected="a readable TOML file or one of " + ", ".join(available()),
                          got=error.strerror or str(error), fix="name an existing recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {source}", expected="TOML", got=str(error), fix="correct the file") from None
    return parse(values, path.stem)
