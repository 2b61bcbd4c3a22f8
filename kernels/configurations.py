"""How a kernel is cut and launched: the choices that change speed and never a result. Plain data: no torch, no Triton.

What is chosen where nothing was measured, and the candidates that a tuner measures, stand here beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvConfig:
    """conv2d.py. A tile is block_m pixels x block_n channels; weight_bits: of storage; unroll: taps unrolled, else a
    pipelined loop of num_stages."""

    block_m: int = 128
    block_n: int = 16
    block_k: int = 32
    weight_bits: int = 8
    num_warps: int = 4
    num_stages: int = 3
    unroll: bool = True
