"""What must hold before anything is timed: everyone computes the same network.

fp32 peers       logits within 0.003 % of the largest one, of our engine's for the same member, on every image
rounded floats   (tf32, fp16, bf16) the same within what such operands can do in a network of this depth
int8 peers       on data: the class of 97 % of the images is that of the float original. On noise classes say little, so there it
                 is the relative error of the logits: it finds another network, not a bad quantization, and the report says so
our engine       the reference back end on a few images: codes to the bit, floats as above; on a GPU also our CPU kernels on all
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ..graph import Graph
from .peers import Session

LEAST_AGREEMENT = 0.97
LARGEST_ERROR = 3e-5  # of the largest logit
NOISE_ERROR = 0.5  # of int8 logits on noise, root mean square over root mean square

# Unit roundoff of the operands that an arithmetic multiplies; sums are float32 in all of them. The compensated ones split an operand
# into two: what is left out is the rounding of the second half and the product of both.
ROUNDOFF = {
    "fp32": 2.0**-24, "ieee": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8, "tf32x3": 2.0**-21, "fp16x3": 2.0**-21,
    "bf16x3": 2.0**-15,
}


@dataclass(frozen=True)
class Check:
    """Whether it held, and what was compared, in words."""

    passed: bool
    text: str


def largest_error(arithmetic: str, graph: Graph) -> float:
    """Of logits of a float member, as a share of the largest one. Never less than LARGEST_ERROR, which float32 gets.

    A layer rounds its weights, its input, its residual and its result: four errors of a relative ``u`` at most. Those of different
    layers are independent, so that they add up like the square root of the number of layers.
    """
    layers = sum(node.op in ("conv2d", "linear") for node in graph.nodes)
    return max(LARGEST_ERROR, 4 * ROUNDOFF[arithmetic] * sqrt(layers))


def same_logits(theirs: np.ndarray, ours: np.ndarray, allowed: float = LARGEST_ERROR) -> Check:
    """For float against float. allowed: of the largest logit, by default for float32."""
    error, scale = float(np.abs(theirs - ours).max()), float(np.abs(ours).max())
    passed = bool(np.isfinite(theirs).all()) and error <= allowed * scale
    return Check(passed, f"logits of {len(ours)} images differ by at most {error:.1e} (allowed: {allowed * scale:.1e})")


def same_classes(theirs: np.ndarray, source: np.ndarray, real: bool) -> Check:
    """For int8 against the float original. real: the images are data."""
    agreement = float((theirs.argmax(1) == source.argmax(1)).mean())
    if real:
        return Check(agreement >= LEAST_AGREEMENT, f"{100 * agreement:.2f} % of {len(source)} classes are those of the float original")
    error = float(np.linalg.norm(theirs - source) / np.linalg.norm(source))
    return Check(error <= NOISE_ERROR, f"relative error of the logits on {len(source)} images of noise is {error:.3f}; classes were not checked")


def same_as(who: str, ours: np.ndarray, expected: np.ndarray, exact: bool, allowed: float = LARGEST_ERROR) -> Check:
    """For our engine against ``who``; exact: a quantized member, whose logits have one right value."""
    if not exact:
        check = same_logits(ours, expected, allowed)
        return Check(check.passed, f"{who}: {check.text}")
    return Check(np.array_equal(ours, expected), f"logits of {len(ours)} images are the {who}'s to the bit")


def in_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int) -> np.ndarray:
    """Logits of all images, a batch at a time; the last one is filled up with images from the front."""
    parts = []
    for start in range(0, len(images), batch):
        parts.append(run(images[np.arange(start, start + batch) % len(images)]).copy())
    return np.concatenate(parts)[: len(images)]


def logits_of(session: Session, images: np.ndarray, batch: int, prepare: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a session makes of all images; prepare: images as our engine takes them -> as it does."""

    def run(some: np.ndarray) -> np.ndarray:
        session.load(prepare(some))
        return session()

    return in_batches(run, images, batch)
