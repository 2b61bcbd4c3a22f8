"""What must hold before anything is timed: everyone computes the same network.

fp32 peers     logits within 0.003 % of the largest one, of our engine's for the same member, on every image
int8 peers     on data: the class of 97 % of the images is that of the float original. On noise classes say little, so there it is
               the relative error of the logits: it finds another network, not a bad quantization, and the report says so
our engine     the reference back end on a few images: codes to the bit, floats as above
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .peers import Session

LEAST_AGREEMENT = 0.97
LARGEST_ERROR = 3e-5  # of the largest logit
NOISE_ERROR = 0.5  # of int8 logits on noise, root mean square over root mean square


@dataclass(frozen=True)
class Check:
    """Whether it held, and what was compared, in words."""

    passed: bool
    text: str


def same_logits(theirs: np.ndarray, ours: np.ndarray) -> Check:
    """For float32 against float32."""
    error, scale = float(np.abs(theirs - ours).max()), float(np.abs(ours).max())
    passed = bool(np.isfinite(theirs).all()) and error <= LARGEST_ERROR * scale
    return Check(passed, f"logits of {len(ours)} images differ by at most {error:.1e} (allowed: {LARGEST_ERROR * scale:.1e})")


def same_classes(theirs: np.ndarray, source: np.ndarray, real: bool) -> Check:
    """For int8 against the float original. real: the images are data."""
    agreement = float((theirs.argmax(1) == source.argmax(1)).mean())
    if real:
        return Check(agreement >= LEAST_AGREEMENT, f"{100 * agreement:.2f} % of {len(source)} classes are those of the float original")
    error = float(np.linalg.norm(theirs - source) / np.linalg.norm(source))
    return Check(error <= NOISE_ERROR, f"relative error of the logits on {len(source)} images of noise is {error:.3f}; classes were not checked")


def same_as_reference(ours: np.ndarray, reference: np.ndarray, exact: bool) -> Check:
    """For our engine; exact: a quantized member, whose logits have one right value."""
    if not exact:
        check = same_logits(ours, reference)
        return Check(check.passed, f"reference: {check.text}")
    return Check(np.array_equal(ours, reference), f"logits of {len(ours)} images are the reference's to the bit")


def logits_of(session: Session, images: np.ndarray, batch: int, prepare: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Logits of all images, a batch at a time; the last one is filled up with images from the front."""
    parts = []
    for start in range(0, len(images), batch):
        numbers = np.arange(start, start + batch) % len(images)
        session.load(prepare(images[numbers]))
        parts.append(session().copy())
    return np.concatenate(parts)[: len(images)]
