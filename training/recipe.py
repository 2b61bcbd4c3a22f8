"""Recipes: a training run written down as TOML, read into frozen dataclasses.

Every key has a section, a type and a range; an unknown key, a wrong type or a value out of range is a RecipeError that
names the file, the key and what is allowed. ``training/recipes/`` holds the recipes that ship; their names work
wherever a path does. ``extends = "other"`` starts from another recipe, whose keys the file then changes, and
``drop = ["s"]`` leaves one of its sections out.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hce_engine.errors import RecipeError

from . import toml_files
from .objectives import READINGS, WITHOUT_Q

RECIPES = Path(__file__).resolve().parent / "recipes"

# A check is the condition and the words that state it in an error.
Check = tuple[Callable[[Any], bool], str]
_AT_LEAST_0: Check = (lambda v: v >= 0, "at least 0")
_AT_LEAST_1: Check = (lambda v: v >= 1, "at least 1")
_POSITIVE: Check = (lambda v: v > 0, "above 0")
_UNIT: Check = (lambda v: 0 <= v < 1, "at least 0 and below 1")
_BITS: Check = (lambda v: 2 <= v <= 8, "2 to 8")


def _one_of(*values: str) -> Check:
    return (lambda v: v in values, "one of " + ", ".join(values))


def _key(check: Check | None = None, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class DataSection:
    """holdout: images taken from the training set for model selection (0: none, the last epoch is kept).

    crop: ``padded`` (a window of the image padded by ``padding`` pixels: CIFAR) or ``resized`` (a random part of at least
    ``min_area`` of the image, of aspect 3/4 to 4/3, resized to ``size``: ImageNet, read from a folder image by image).
    flip: mirror half of the images.  size: side of the network's input, 0 for that of the images; others are resized,
    image files only.  workers: processes that decode images of ``resized``, at most as many as processors; 0 decodes in
    the training process.
    """

    holdout: int = _key(_AT_LEAST_0, 5000)
    crop: str = _key(_one_of("padded", "resized"), "padded")
    padding: int = _key(_AT_LEAST_0, 4)
    flip: bool = _key(None, True)
    min_area: float = _key((lambda v: 0 < v <= 1, "above 0 and at most 1"), 0.08)
    size: int = _key(_AT_LEAST_0, 0)
    workers: int = _key(_AT_LEAST_0, 0)


@dataclass(frozen=True)
class FitSection:
    """One phase of stochastic gradient descent (Nesterov momentum).

    lr: peak learning rate.  schedule: ``cosine`` (linear warm-up, then half a cosine to 0), ``one-cycle`` (lr/10 up to
    lr over the warm-up, cosine down to lr/1000) or ``constant``.  warmup: share of the steps.  weight_decay: of
    convolution and linear weights only.  grad_clip: largest gradient norm, 0 for none.  ema: decay per step of a moving
    average of the weights that is scored and kept instead of the weights, 0 for none.  select: which epoch's weights are
    kept, the ``best`` on the hold-out or the ``last``.  repeat: another draw of this phase's randomness under one seed, as
    for several networks quantized from one O.
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
    ema: float = _key(_UNIT, 0.0)
    select: str = _key(_one_of("best", "last"), "best")
    repeat: int = _key(_AT_LEAST_0, 0)


@dataclass(frozen=True)
class QuantizeSection(FitSection):
    """Q. Post-training quantization first, then ``epochs`` of quantization-aware training (0: stay with the former).

    method: ``lsq``, ``pact`` or ``dorefa`` (training/quantize).  calibration: ``mse`` or ``min-max``, how the first step
    sizes are found.  reestimate: move the batch norm statistics to those of the quantized network before training.
    edge_bits: of the first and the last layer.  progressive: widths, falling, that the network is trained at before the
    final ones, each for ``progressive_epochs`` (a step never goes below the final width).
    frozen_norm_epochs: last epochs in which batch norm uses its running statistics, as the integers will.
    distill: share of the loss that is KL to O (Hinton), the rest is cross entropy.
    """

    weight_bits: int = _key(_BITS, 4)
    activation_bits: int = _key(_BITS, 4)
    edge_bits: int = _key(_BITS, 8)
    method: str = _key(_one_of("lsq", "pact", "dorefa"), "lsq")
    calibration: str = _key(_one_of("mse", "min-max"), "mse")
    reestimate: bool = _key(None, True)
    calibration_images: int = _key(_AT_LEAST_1, 1024)
    progressive: tuple[int, ...] = _key((lambda v: all(2 <= b <= 8 for b in v) and list(v) == sorted(set(v), reverse=True),
                                         "as falling widths of 2 to 8 bits"), ())
    progressive_epochs: int = _key(_AT_LEAST_0, 0)
    frozen_norm_epochs: int = _key(_AT_LEAST_0, 1)
    distill: float = _key((lambda v: 0 <= v <= 1, "0 to 1"), 0.0)
    temperature: float = _key(_POSITIVE, 4.0)


@dataclass(frozen=True)
class PruneSection(FitSection):
    """S. ``epochs`` are those after the last pruning step; ``rounds`` steps precede, each with ``round_epochs``.

    flops_ratio: cost of the *ensemble* (Q and S) over the unpruned O, in the paper's convention; S gets what Q leaves, or
    all of it in a recipe without [q] (1: nothing is pruned, O is only trained on).
    granularity: ``filter`` (removed physically) or ``weight`` (set to zero and held there; the cost then counts the
    weights that are left, which only a sparse engine would save).
    criterion: what ranks filters, ``l1``, ``l2``, ``fpgm``, ``taylor`` or ``bn-scale``; or weights, ``l1`` or ``snip``.
    pruning: ``hard`` removes at once; ``soft`` (SFP) sets filters to zero after every epoch of the rounds,
    lets them grow again, and removes them after the last round.
    allocation: ``uniform`` (every layer keeps the same share), ``global`` (one ranking over all layers) or ``stages``
    (``stage_keep``: shares relative to each other, one per resolution of the feature maps, first to last).
    scope: channels ``internal`` to blocks, or ``all`` that the graph allows, the residual stream too.
    multiple: widths are rounded down to it.  scoring_images: that ``taylor`` and ``snip`` take gradients of.
    """

    flops_ratio: float = _key((lambda v: 0 < v <= 1, "above 0 and at most 1"), 0.568)
    granularity: str = _key(_one_of("filter", "weight"), "filter")
    criterion: str = _key(_one_of("l1", "l2", "fpgm", "taylor", "bn-scale", "snip"), "l1")
    pruning: str = _key(_one_of("hard", "soft"), "hard")
    allocation: str = _key(_one_of("uniform", "global", "stages"), "uniform")
    stage_keep: tuple[float, ...] = _key((lambda v: all(x > 0 for x in v), "as positive numbers"), ())
    scope: str = _key(_one_of("internal", "all"), "internal")
    multiple: int = _key(_AT_LEAST_1, 1)
    scoring_images: int = _key(_AT_LEAST_1, 1024)
    rounds: int = _key(_AT_LEAST_1, 3)
    round_epochs: int = _key(_AT_LEAST_0, 1)
    round_lr: float = _key(_POSITIVE, 0.01)


@dataclass(frozen=True)
class ObjectiveSection:
    """What S learns: see training/objectives.py.

    cached_augmentations: how many fixed augmentations of every image S sees, for which the logits of O and Q are
    computed once; 0 draws new augmentations and runs O and Q on them in every step.
    """

    reading: str = _key(_one_of(*READINGS), "V5")
    w_ce: float = _key(_AT_LEAST_0, 0.4)
    w_diff: float = _key(_AT_LEAST_0, 0.6)
    temperature: float = _key(_POSITIVE, 4.0)
    cached_augmentations: int = _key(_AT_LEAST_0, 0)


@dataclass(frozen=True)
class Recipe:
    """name: of the file.  arch: a registered architecture or ``package.module:factory``.

    The members are those whose sections the file has: O always, Q with [q], S with [s]. S without Q learns from O alone.
    checkpoint_required: O is not trained but read from ``--checkpoint``.  compile: torch.compile for training steps
    (pays off only in long phases: every network compiles anew for a minute).  precision: ``fp32``, or ``bf16`` autocast in
    training steps; accuracies are measured in float32 either way.
    """

    name: str
    arch: str
    seed: int
    compile: bool
    precision: str
    checkpoint_required: bool
    data: DataSection
    o: FitSection
    q: QuantizeSection | None
    s: PruneSection | None
    objective: ObjectiveSection

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in the order in which they are made."""
        return tuple(name for name in ("o", "q", "s") if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """The file that this recipe would be, every key written out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def digest(self) -> str:
        """SHA-256 over what differs from the defaults: two runs of one digest, data set and version are the same run."""
        return _digest(_stated(self, tuple(_TOP), tuple(_SECTIONS)))

    def member_digest(self, name: str) -> str:
        """SHA-256 over the keys on which one member depends, from O to itself.

        Keys at their defaults are left out, so that a key that a later version adds does not make another member.
        """
        sections = {"o": ("data", "o"), "q": ("data", "o", "q"), "s": ("data", "o", "q", "s", "objective")}[name]
        return _digest(_stated(self, ("arch", "seed", "compile", "precision", "checkpoint_required"), sections))


_WITHOUT_EFFECT = ("workers",)  # keys that change how fast a run is, and not one bit of it


def _stated(recipe: Recipe, top: Sequence[str], sections: Sequence[str]) -> dict[str, Any]:
    """The named keys of ``recipe`` that are not at their defaults; a section that is there stays, if only as a name."""
    stated: dict[str, Any] = {key: getattr(recipe, key) for key in top if getattr(recipe, key) != _TOP[key][1]}
    for name in sections:
        section = getattr(recipe, name)
        if section is not None:
            stated[name] = {
                f.name: getattr(section, f.name) for f in fields(section)
                if getattr(section, f.name) != f.default and f.name not in _WITHOUT_EFFECT
            }
    return stated


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_SECTIONS: dict[str, type] = {
    "data": DataSection, "o": FitSection, "q": QuantizeSection, "s": PruneSection, "objective": ObjectiveSection,
}
_TOP: dict[str, tuple[type, Any, Check | None]] = {
    "arch": (str, MISSING, (bool, "the name of an architecture")),
    "seed": (int, 0, (lambda v: 0 <= v < 2**63, "0 to 2^63 - 1")),
    "compile": (bool, False, None),
    "precision": (str, "fp32", _one_of("fp32", "bf16")),
    "checkpoint_required": (bool, False, None),
}


def _checked(who: str, key: str, value: Any, kind: Any, check: Check | None) -> Any:
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(who, expected=f"{key} as a list", got=repr(value)[:80], fix="write it in brackets")
        value, kind = tuple(_checked(who, f"{key}[{i}]", v, typing.get_args(kind)[0], None) for i, v in enumerate(value)), tuple
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
    sections: dict[str, Any] = {
        key: _section(who, key, kind, values.get(key, {})) if key in values or key not in ("q", "s") else None
        for key, kind in _SECTIONS.items()
    }
    recipe = Recipe(name=name, **top, **sections)
    _check_together(who, recipe)
    return recipe


def _check_together(who: str, recipe: Recipe) -> None:
    """What no single key can be blamed for."""
    q, s, objective, data = recipe.q, recipe.s, recipe.objective, recipe.data
    if data.crop == "resized" and not data.size:
        raise RecipeError(who, expected="data.size above 0 with data.crop = resized", got="0", fix="give the input's side")
    if objective.w_ce + objective.w_diff == 0:
        raise RecipeError(who, expected="objective.w_ce or objective.w_diff above 0", got="both 0", fix="give S a loss")
    if q is not None and q.frozen_norm_epochs > q.epochs:
        raise RecipeError(who, expected=f"q.frozen_norm_epochs of at most q.epochs = {q.epochs}",
                          got=str(q.frozen_norm_epochs), fix="lower it")
    if q is None and s is not None and objective.w_diff and objective.reading not in WITHOUT_Q:
        raise RecipeError(who, expected="objective.reading = " + " or ".join(WITHOUT_Q) + " in a recipe without [q]",
                          got=objective.reading, fix="add a section [q], or choose one of these readings")
    if s is not None:
        allowed = ("l1", "snip") if s.granularity == "weight" else ("l1", "l2", "fpgm", "taylor", "bn-scale")
        if s.criterion not in allowed:
            raise RecipeError(who, expected=f"s.criterion of {', '.join(allowed)} for s.granularity = {s.granularity}",
                              got=s.criterion, fix="change one of the two")
        if s.pruning == "soft" and s.ema:
            raise RecipeError(who, expected="s.ema = 0 with s.pruning = soft", got=f"{s.ema:g}", fix="change one of the two: an "
                              "average of filters that are set to zero and grow again is neither")
        if s.pruning == "soft" and s.granularity == "weight":
            raise RecipeError(who, expected="s.pruning = hard for s.granularity = weight", got="soft", fix="change one of the two")
        if (s.allocation == "stages") != bool(s.stage_keep):
            raise RecipeError(who, expected="s.stage_keep exactly with s.allocation = stages",
                              got=f"{s.allocation} and {list(s.stage_keep)}", fix="give both or none")


def available() -> list[str]:
    """Names of the recipes that ship."""
    return toml_files.names(RECIPES)


def load_recipe(source: str | Path) -> Recipe:
    """Reads a TOML file, or a recipe that ships by its name (with or without ``.toml``).

    Raises RecipeError when there is no such file, it is not TOML, or a value does not fit.
    """
    who, path = f"recipe {source}", toml_files.find(source, Path(), RECIPES)
    values: dict[str, Any] = {}
    for _, own in reversed(toml_files.chain(who, path, RECIPES)):
        values = changed(who, values, own)
    return parse(values, path.stem)


def changed(who: str, base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``values`` in place of its own, section by section, without the sections in ``drop``."""
    dropped = values.get("drop", [])
    if not isinstance(dropped, list) or not set(dropped) <= {"q", "s"}:
        raise RecipeError(who, expected='drop as a list of "q" and "s"', got=repr(dropped)[:80], fix="correct the value")
    kept = {key: value for key, value in base.items() if key not in dropped}
    return toml_files.merged(kept, {key: value for key, value in values.items() if key != "drop"})
