"""What images a model takes, and how their values become the network's input.

Two kinds, and no others: ``uint8_nhwc`` (pixels, a value v means v / 255) and ``float32_nchw`` (values in
``[low, high]``). The network sees (value - mean[c]) / std[c]; zero padding happens after this normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .graph import Node, TensorSpec

UINT8_NHWC, FLOAT32_NCHW = "uint8_nhwc", "float32_nchw"
IMAGENET = "imagenet-center-crop"
# How image files are brought to (H, W): other sizes are an error; distorted; scaled until they just cover it, the middle
# cut out; scaled until they cover 256/224 of it, the middle cut out (what ImageNet accuracies are measured with).
RESIZES = ("none", "squash", "shorter-side-center-crop", IMAGENET)


@dataclass(frozen=True)
class InputSpec:
    """The images of an artifact.

    shape: (C, H, W) whatever the memory layout.  mean, std: one per channel, in units of the value (pixels: of 0..1).
    low, high: range of float32 values; (0, 1) for pixels.
    resize: how image files are brought to (H, W), one of :data:`RESIZES`.
    """

    kind: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float = 0.0
    high: float = 1.0
    resize: str = "none"

    def __post_init__(self) -> None:
        def refuse(expected: str, got: object) -> InputError:
            return InputError("input specification", expected=expected, got=str(got), fix="correct the field")

        if self.kind not in (UINT8_NHWC, FLOAT32_NCHW):
            raise refuse(f"kind {UINT8_NHWC} or {FLOAT32_NCHW}", repr(self.kind))
        if len(self.shape) != 3 or not all(isinstance(d, int) and 1 <= d <= 1 << 20 for d in self.shape):
            raise refuse("shape (C, H, W) of positive sizes", self.shape)
        if not (len(self.mean) == len(self.std) == self.shape[0]):
            raise refuse(f"{self.shape[0]} values each in mean and std", f"{self.mean}, {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise refuse("finite means and positive stds", f"{self.mean}, {self.std}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise refuse("low < high", (self.low, self.high))
        if self.kind == UINT8_NHWC and (self.low, self.high) != (0.0, 1.0):
            raise refuse("the range (0, 1) for pixels", (self.low, self.high))
        if self.resize not in RESIZES:
            raise refuse("resize " + ", ".join(RESIZES), repr(self.resize))

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Shape of one image as the caller passes it."""
        c, h, w = self.shape
        return (h, w, c) if self.kind == UINT8_NHWC else (c, h, w)

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.kind == UINT8_NHWC else np.float32)

    def input_node(self, name: str = "image") -> Node:
        """The graph's input: u8 pixels or f32 values, (C, H, W)."""
        return Node(name, "input", (), TensorSpec(self.shape, "u8" if self.kind == UINT8_NHWC else "f32"))

    def normalize_node(self, name: str, image: str) -> Node:
        """y = x * scale[c] + offset[c]: the network's float input from the image."""
        unit = 1.0 / 255.0 if self.kind == UINT8_NHWC else 1.0
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        params = {"scale": (unit / std).astype(np.float32), "offset": (-mean / std).astype(np.float32)}
        return Node(name, "normalize", (image,), TensorSpec(self.shape), {}, params)


def check_images(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """``images`` if they fit ``spec``: right dtype, rank and size, positive strides; raises InputError otherwise.

    A batch may be empty. Non-contiguous batches are refused rather than copied behind the caller's back.
    """
    def refuse(got: str, fix: str) -> InputError:
        want = f"(N, {', '.join(map(str, spec.array_shape))}) {spec.numpy_dtype} ({spec.kind})"
        return InputError("images", expected=want, got=got, fix=fix)

    if not isinstance(images, np.ndarray):
        raise refuse(type(images).__name__, "pass a numpy array or a torch tensor")
    if images.dtype == spec.numpy_dtype and images.shape[1:] == spec.array_shape and images.ndim == 4 and images.flags.c_contiguous:
        return images  # the usual case, without words
    described = f"{images.shape} {images.dtype}"
    if images.dtype != spec.numpy_dtype:
        scaled = "pass pixels 0 to 255; scale floats before converting them"
        raise refuse(described, scaled if spec.kind == UINT8_NHWC else "convert with .astype(np.float32)")
    if images.ndim != 4:
        raise refuse(described, "add the batch axis, images[None], for a single image")
    if images.shape[1:] != spec.array_shape:
        swapped = (images.shape[1], images.shape[2], images.shape[3])
        hint = "transpose to the stated layout" if sorted(swapped) == sorted(spec.array_shape) else "resize the images"
        raise refuse(described, hint)
    raise refuse(f"{described} with strides {images.strides}", "pass np.ascontiguousarray(images), or images.contiguous() of a tensor")


def to_nchw(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Channel-first view of a checked batch, as the reference back end reads it."""
    return images.transpose(0, 3, 1, 2) if spec.kind == UINT8_NHWC else images


def from_sequence(values: Sequence[float] | float, channels: int) -> tuple[float, ...]:
    """A per-channel tuple from one number or one per channel; raises InputError for anything else."""
    if isinstance(values, (int, float)):
        return (float(values),) * channels
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError("mean or std", expected="a number, or one per channel", got=repr(values)[:80],
                         fix="pass for example 0.5 or (0.5, 0.5, 0.5)") from None
