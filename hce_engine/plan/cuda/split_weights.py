"""Weights of a convolution as two numbers of few bits each, in the order of the tensor-core kernels (csrc/cuda/split.h)."""

from __future__ import annotations

import math

import numpy as np

from ...arithmetic import SPLIT_ARITHMETICS

TERMS = 8  # per step, as kSplitTerms
OUTPUTS = 8  # per block
LOW_SCALE = {"tf32x3": 1.0, "fp16x3": 2.0**11, "bf16x3": 1.0}
"""What the low part is multiplied by before it is rounded."""
LARGEST = 15  # the largest weight of a layer of fp16x3 lies below 2^15


def tap_terms(inputs: int, arithmetic: str) -> int:
    """Terms of a tap: channels, or pairs of them."""
    return inputs if arithmetic == "tf32x3" else -(-inputs // 2)


def step_count(taps: int, inputs: int, arithmetic: str) -> int:
    return -(-taps * tap_terms(inputs, arithmetic) // TERMS)


def packed_bytes(outputs: int, taps: int, inputs: int, arithmetic: str) -> int:
    """Four words of each lane, per step and block of outputs."""
    return step_count(taps, inputs, arithmetic) * -(-outputs // OUTPUTS) * 32 * 16


def weight_exponent(weight: np.ndarray, arithmetic: str) -> int:
    """e of the scale 2^e that weights are multiplied by: 0 where the format has the exponents of float32."""
    largest = float(np.abs(weight).max(initial=0.0))
    if arithmetic != "fp16x3" or not 0 < largest < math.inf:
        return 0
    # Kept where 2^e and 2^-e are normal numbers.
    return min(max(LARGEST - math.frexp(largest)[1], -126), 126)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest TF32 numbers, half away from zero, as float32."""
    return ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def to_bfloat(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16 numbers, ties to even, as float32."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def to_half(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest binary16 numbers, ties to even, as float32."""
    return values.astype(np.float16).astype(np.float32)


NEAREST = {"tf32x3": to_tf32, "fp16x3": to_half, "bf16x3": to_bfloat}


def split(values: np.ndarray, arithmetic: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 -> (high, low), as float32; ``high + low / LOW_SCALE`` is close to the value."""
    high = NEAREST[arithmetic](values)
    return high, NEAREST[arithmetic]((values - high) * np.float32(LOW_SCALE[arithmetic]))


def pack_split(weight: np.ndarray, arithmetic: str) -> np.ndarray:
    """float32 ``[OC, C, KH, KW]`` -> uint32 words [step][OC / 8][lane = 4 o + t][high t, high t + 4, low t, low t + 4]."""
    if weight.ndim != 4 or weight.dtype != np.float32 or arithmetic not in SPLIT_ARITHMETICS:
        raise ValueError(f"pack_split: float32 weights [OC, C, KH, KW] expected, got {weight.dtype} {weight.shape} for "
                         f"{arithmetic}")
    outputs, inputs, kernel_h, kernel_w = weight.shape
    per, taps = 1 if arithmetic == "tf32x3" else 2, kernel_h * kernel_w
    terms, blocks = tap_terms(inputs, arithmetic), -(-outputs // OUTPUTS)
    steps = step_count(taps, inputs, arithmetic)
    lines = np.zeros((taps, terms * per, blocks * OUTPUTS), np.float32)
    lines[:, :inputs, :outputs] = weight.transpose(2, 3, 1, 0).reshape(taps, inputs, outputs)
    filled = np.zeros((steps * TERMS, per, blocks * OUTPUTS), np.float32)
    filled[: taps * terms] = lines.reshape(taps * terms, per, -1)
    parts = split(np.ldexp(filled, weight_exponent(weight, arithmetic)).astype(np.float32), arithmetic)
    words = np.stack([_words(part, arithmetic) for part in parts])  # [part][term][output]
    ordered = words.reshape(2, steps, 2, TERMS // 2, blocks, OUTPUTS).transpose(1, 4, 5, 3, 0, 2)
    return np.ascontiguousarray(ordered).ravel()


def _words(values: np.ndarray, arithmetic: str) -> np.ndarray:
    """[term][channel of the term][output] -> uint32 [term][output], the first channel in the low half."""
    if arithmetic == "tf32x3":
        return values[:, 0].view(np.uint32)
    halves = values.astype(np.float16).view(np.uint16) if arithmetic == "fp16x3" else (values.view(np.uint32) >> 16)
    return halves[:, 0].astype(np.uint32) | halves[:, 1].astype(np.uint32) << 16
