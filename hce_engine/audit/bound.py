"""The time that measured peaks allow: a step's products at the peak of their kind, but at least its bytes at the bandwidth.

The products are those that count, by direct convolution; padding is the engine's fault, not the layer's. So a layer can beat its
bound only by an algorithm with fewer products (Winograd). Bytes move at the best bandwidth that was measured for arrays of the
size of the step's working set.
"""

from __future__ import annotations

from ..peaks import Peaks
from ..plan.cpu.work import Work
from .layers import Layer, MemberProfile


def bandwidth(peaks: Peaks, working_set: int) -> float:
    """Bytes/s at best for a working set of that many bytes: of reading, or of reading and writing, whichever is more."""
    place = peaks.place_of(working_set)
    return max(peaks.read[place], peaks.triad[place])


def bound_seconds(work: Work, peaks: Peaks) -> float:
    """Per image, on one thread."""
    moving = work.bytes / work.images / bandwidth(peaks, work.working_set)
    return max(work.macs / peaks.macs[work.kind], moving) if work.kind else moving


def member_bound(profile: MemberProfile, peaks: Peaks) -> float:
    """Seconds per image that all steps of a member take at least."""
    return sum(step.share * bound_seconds(step.work, peaks) for step in profile.steps)


def layer_bound(layer: Layer, peaks: Peaks) -> float:
    """Seconds per image of a layer's products."""
    return max(layer.macs / peaks.macs[layer.kind], layer.bytes / bandwidth(peaks, layer.working_set))
