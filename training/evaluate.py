"""How good a member or an ensemble is, and how differently two members err. Plain numpy on logits.

Logits are float ``(N, classes)``, labels integer ``(N,)``. Fractions are in 0..1; logarithms are natural.

An ensemble averages the logits of its voters; the mean of their probabilities is measured beside it, because both are in
use and neither wins everywhere. Temperatures are fitted on a hold-out, never on the images that are reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hce_engine import _native
from hce_engine.artifact import Artifact
from hce_engine.backends.reference import mean_logits
from hce_engine.engine import Engine
from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.preprocess import InputSpec

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
TEMPERATURES = (0.01, 100.0)  # where fit_temperature looks; a hold-out without errors has no finite optimum


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities ``(N, classes)``."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927), sound near 0 and 1 where the normal one is not."""
    p, zz = correct / total, z * z
    centre = (p + zz / (2 * total)) / (1 + zz / total)
    half = z / (1 + zz / total) * math.sqrt(p * (1 - p) / total + zz / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    z = logits.astype(np.float64)
    top = z.max(axis=1)
    log_sum = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float((log_sum - z[np.arange(len(z)), labels]).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """sum over bins of (share of images) * |accuracy - mean confidence|; equal-width bins (a, b] of the top probability."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the squared distance between the probabilities and the one-hot label (0 best, 2 worst)."""
    p_true = probabilities[np.arange(len(labels)), labels]
    return float(((probabilities**2).sum(axis=1) - 2 * p_true + 1).mean())


def probability_mean(logits: Sequence[np.ndarray]) -> np.ndarray:
    """float64 ``(N, classes)``: the logarithm of the mean of the members' probabilities, NaN where a member has NaN or Inf.

    Its softmax is that mean again, so that whatever takes logits takes this ensemble, too.
    """
    finite = np.logical_and.reduce([np.isfinite(z).all(axis=1) for z in logits])
    result = np.full(logits[0].shape, np.nan)
    mean = np.mean([softmax(z[finite]) for z in logits], axis=0)
    result[finite] = np.log(np.maximum(mean, np.finfo(np.float64).tiny))  # a probability that underflowed stays finite
    return result


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the NLL of logits / T (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    The NLL is convex in 1 / T with derivative mean(sum_k p_k z_k - z_label), whose zero is found by bisection between
    the ends of :data:`TEMPERATURES`; an optimum beyond them is reported as that end. Predictions do not change.
    Raises InputError without images, or when a logit is not finite.
    """
    z = logits.astype(np.float64)
    if not len(z) or not np.isfinite(z).all():
        raise InputError("temperature scaling", expected="finite logits of at least one image",
                         got=f"{len(z)} images" if not len(z) else "NaN or Inf", fix="fit on a hold-out of valid images")
    own = z[np.arange(len(z)), labels]
    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(60):  # halves ln(10^4) to below the spacing of float64
        middle = (low + high) / 2
        slope = ((softmax(z * math.exp(middle)) * z).sum(axis=1) - own).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def scaled_metrics(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    """temperature, and nll, ece and brier of ``logits / temperature``; the accuracy is that of the logits."""
    z = logits.astype(np.float64) / temperature
    p = softmax(z)
    return {"temperature": temperature, "nll": negative_log_likelihood(z, labels),
            "ece": expected_calibration_error(p, labels), "brier": brier_score(p, labels)}


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """int64 ``(N,)``: the largest logit's class, -1 (no class, always wrong) where a logit is NaN or Inf."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def member_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """accuracy, correct, interval (95 %, Wilson), nll, ece (15 bins), brier of one set of logits.

    An image whose logits hold NaN or Inf counts as wrong; then nll, ece and brier are None, for JSON has no NaN.
    """
    predicted = predicted_classes(logits)
    correct = int((predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    metrics: dict[str, Any] = {"accuracy": correct / len(labels), "correct": correct, "interval": [low, high],
                               "nll": None, "ece": None, "brier": None}
    if (predicted >= 0).all():
        p = softmax(logits)
        metrics.update(
            nll=negative_log_likelihood(logits, labels), ece=expected_calibration_error(p, labels),
            brier=brier_score(p, labels),
        )
    return metrics


def pair_metrics(a: np.ndarray, b: np.ndarray, labels: np.ndarray, ensemble: np.ndarray | None = None) -> dict[str, Any]:
    """How two members differ; ``a``, ``b`` and ``ensemble`` are logits. Where those of one are not finite it is wrong.

    disagreement: share of images with different predictions.  double_fault: share where both are wrong.
    q_statistic: Yule's Q = (n11 n00 - n10 n01) / (n11 n00 + n10 n01), 1 same errors, 0 independent, -1 opposite;
    None where it is undefined (0 / 0).  errors: counts of images wrong only in a, only in b, in both, in either.
    error_overlap: both / either, the share of a Venn diagram's union (None without any error).
    corrected (with ``ensemble``): how many of each of these errors it does not make (the HCE paper's Fig. 4), and
    introduced: images that both members get right and the ensemble wrong.
    """
    predicted_a, predicted_b = predicted_classes(a), predicted_classes(b)
    wrong_a, wrong_b = predicted_a != labels, predicted_b != labels
    only_a, only_b = int((wrong_a & ~wrong_b).sum()), int((wrong_b & ~wrong_a).sum())
    both, neither = int((wrong_a & wrong_b).sum()), int((~wrong_a & ~wrong_b).sum())
    union, denominator = only_a + only_b + both, neither * both + only_a * only_b
    metrics = {
        "disagreement": float((predicted_a != predicted_b).mean()),
        "double_fault": both / len(labels),
        "q_statistic": (neither * both - only_a * only_b) / denominator if denominator else None,
        "errors": {"only_first": only_a, "only_second": only_b, "both": both, "either": union},
        "error_overlap": both / union if union else None,
    }
    if ensemble is not None:
        right = predicted_classes(ensemble) == labels
        fixed = {"only_first": wrong_a & ~wrong_b, "only_second": wrong_b & ~wrong_a, "both": wrong_a & wrong_b,
                 "either": wrong_a | wrong_b}
        metrics["corrected"] = {name: int((chosen & right).sum()) for name, chosen in fixed.items()}
        metrics["introduced"] = int((~wrong_a & ~wrong_b & ~right).sum())
    return metrics


def frozen_logits(
    graph: Graph, spec: InputSpec, images: np.ndarray | Iterable[np.ndarray], device: str = "auto"
) -> np.ndarray:
    """float32 ``(N, classes)`` of a single-member graph as the engine runs it: of a quantized one from its integers, or
    of a lowered float one. images as ``spec`` says, all at once or part by part.

    Of integers the compiled back end and the plain one give the same bytes; ``auto`` is the latter where nothing was
    compiled.
    """
    if device == "auto":
        device = "cpu" if _native.available()[0] else "reference"
    engine, name = Engine(Artifact(graph, spec), device=device), graph.members[0].name
    parts = [images] if isinstance(images, np.ndarray) else images
    return np.concatenate([engine.members(part)[name] for part in parts])


def evaluate_logits(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, voters: Sequence[str] | None = None, *,
    holdout: tuple[Mapping[str, np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Everything at once, as JSON values.

    logits: per member float ``(N, classes)``; ``ensemble`` is added as the mean of ``voters`` (default: all members
    given) unless present.  holdout: logits of the same members on other images, and their labels, to fit temperatures
    on. Returns ``{total, accuracy {member: fraction}, correct {member: count}, members {member: member_metrics},
    probability_mean: member_metrics of the mean of the voters' probabilities, pairs {"a-b": pair_metrics}}`` with
    ``ensemble`` among the members and the voters in pairs; with a hold-out also ``scaled {member: scaled_metrics}``,
    ``probability_mean`` among them (as an ensemble of its own, not of scaled members). A member whose logits are not all
    finite is not in ``scaled``.
    Raises InputError when there is nothing to evaluate or the lengths differ.
    """
    labels = np.asarray(labels)
    names = list(voters) if voters is not None else [n for n in logits if n != "ensemble"]
    every, mean = _with_ensembles(logits, labels, names)
    members = {name: member_metrics(z, labels) for name, z in every.items()}
    pairs = {f"{a}-{b}": pair_metrics(logits[a], logits[b], labels, every["ensemble"]) for a, b in combinations(names, 2)}
    result = {
        "total": len(labels),
        "accuracy": {name: m["accuracy"] for name, m in members.items()},
        "correct": {name: m["correct"] for name, m in members.items()},
        "members": members,
        "probability_mean": member_metrics(mean, labels),
        "pairs": pairs,
    }
    if holdout is not None:
        others, their_labels = holdout[0], np.asarray(holdout[1])
        fitted, fitted_mean = _with_ensembles(others, their_labels, names)
        result["scaled"] = {
            name: scaled_metrics(z, labels, fit_temperature(fit, their_labels))
            for name, z, fit in [*((n, every[n], fitted[n]) for n in every if n in fitted),
                                 ("probability_mean", mean, fitted_mean)]
            if np.isfinite(z).all() and np.isfinite(fit).all()
        }
    return result


def _with_ensembles(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, voters: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The logits of all members and of ``ensemble``, and the mean of the voters' probabilities as logits; checked."""
    if not len(labels) or not voters:
        raise InputError("evaluation", expected="at least one image and one member", got=f"{len(labels)} and {len(voters)}",
                         fix="pass labelled images")
    for name in voters:
        if name not in logits:
            raise InputError("evaluation", expected=f"logits of {name!r}", got="those of " + ", ".join(logits),
                             fix="evaluate all members on the same images")
    for name, z in logits.items():
        if len(z) != len(labels):
            raise InputError("evaluation", expected=f"{len(labels)} rows of logits", got=f"{len(z)} for {name!r}",
                             fix="evaluate all members on the same images")
    every = dict(logits)
    every.setdefault("ensemble", mean_logits([logits[n] for n in voters]))
    return every, probability_mean([logits[n] for n in voters])
