"""What was to be reached on a GPU, and what a run says about it. Nothing is judged that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .names import CASES, COMPENSATED, DIRECT, ENSEMBLE_BATCHES, plain_key

Items = Mapping[str, Any]
NOT_MEASURED = "not measured yet"
CASE, BATCH = next(iter(CASES)), ENSEMBLE_BATCHES[0]
ENSEMBLE = "ensemble "


@dataclass(frozen=True)
class Goal:
    """measured: None where there is no result.  ``got`` and ``unit``: as a reader sees them."""

    title: str
    wanted: float
    measured: float | None
    unit: str

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_MEASURED
        return "reached" if self.measured >= self.wanted else "missed"

    @property
    def got(self) -> str:
        return NOT_MEASURED if self.measured is None else f"{self.measured:.3g}{self.unit}"


def time_of(items: Items, key: str, name: str) -> float | None:
    """Microseconds of a batch."""
    found: float | None = items.get(key, {}).get("contenders", {}).get(name, {}).get("median_us")
    return found


def fastest_ensemble(items: Items, key: str) -> tuple[str, float] | None:
    """(mode, microseconds) of the fastest float32 ensemble of an item."""
    named = {name.removeprefix(ENSEMBLE): time_of(items, key, name) for name in items.get(key, {}).get("contenders", {}) if name.startswith(ENSEMBLE)}
    known = {mode: time for mode, time in named.items() if time is not None and mode not in COMPENSATED}
    mode = min(known, key=lambda mode: known[mode], default=None)
    return None if mode is None else (mode, known[mode])


def speedup(items: Items, kind: str, case: str = CASE, batch: int = BATCH) -> float | None:
    """Of the ensemble over torch.compile, whichever of its modes is faster: each beside the ensemble of its own run."""
    ratios = []
    for key, result in items.items():
        if (result.get("case"), result.get("batch")) != (case, batch):
            continue
        ours = fastest_ensemble(items, key)
        for variant in ("compile", "compile-default"):
            theirs = time_of(items, key, f"torch {kind} {variant}")
            if ours is not None and theirs is not None:
                ratios.append(theirs / ours[1])
    return min(ratios, default=None)


def goals(ensemble: Items) -> list[Goal]:
    """Of the case and the batch that goals are stated for, from the items of the stage ``ensemble``."""
    s = ensemble.get(plain_key(CASE, BATCH), {}).get("contenders", {}).get(f"s {DIRECT}", {})
    return [
        Goal("S at 43.5 % of the FLOPs by direct convolution in float32, of its bound of fused multiply-adds", 80, s.get("percent_of_ffma"), " %"),
        Goal("ensemble against torch.compile, float32, of the unpruned network", 3, speedup(ensemble, "fp32"), "x"),
        Goal("ensemble against torch.compile, TF32, of the unpruned network", 1, speedup(ensemble, "tf32"), "x"),
    ]
