"""Which configuration a convolution with split operands gets, and what it costs. The only place that decides it.

As in lanes_select.py the rule knows shapes alone. It minimises an estimate of the cycles that a multiprocessor needs, from what
one step of a warp executes (csrc/cuda/kernels/conv2d_split.h; counts from the machine code of sm_90a), for P pixels and N
blocks of 8 outputs:

    products   6 P N, one per cycle at the rate of the datasheet, in 16 bits as in TF32
    L1         128 bytes per cycle: 4 lines of 512 bytes per pixel in 16 bits and 2 in TF32, the weights, and exchanges between
               lanes where the map is float32
    issue      four instructions per cycle

All three proceed at once, so the largest counts. Outputs are padded to 8, sums to whole steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from .lanes_plan import TILE
from .lanes_select import CONV_WARPS, FILLING_WARPS, even_channels
from .split_weights import OUTPUTS, TERMS, step_count

SPLIT_PIXELS = {1: 2, 2: 2, 3: 1, 4: 1}  # by octets, as kSplitPixels
# Fewer input channels stay with float32 multiply-adds: reading and writing their maps takes longer than either arithmetic (3 to
# 16 channels of 32 x 32 by 3 x 3 on an H200: 16 ns per image for the bytes, 13 ns for the multiply-adds).
LEAST_INPUTS = 4

# Of one step and pixel: lines loaded, exchanges between lanes, instructions other than products.
_LOADS = {("tf32x3", False): (2, 8, 44), ("fp16x3", False): (4, 16, 110), ("bf16x3", False): (4, 16, 88),
          ("fp16x3", True): (4, 0, 30), ("bf16x3", True): (4, 0, 30)}


@dataclass(frozen=True)
class SplitConfig:
    """Of csrc/cuda/split.h: blocks of 8 outputs of a warp, warps of a thread block; blocks 0 lets a launch fill the device."""

    octets: int
    channel_warps: int
    pixel_warps: int
    blocks: int = 0

    @property
    def packing(self) -> tuple[int, ...]:
        """What the order of packed weights depends on: nothing of this."""
        return ()

    def values(self) -> tuple[int, int, int, int]:
        return (self.octets, self.channel_warps, self.pixel_warps, self.blocks)

    def __str__(self) -> str:
        return f"{SPLIT_PIXELS[self.octets]}x{OUTPUTS * self.octets} warps={self.channel_warps}x{self.pixel_warps}"


def _cycles(octets: int, total: int, pixels: int, loads: tuple[int, int, int]) -> float:
    """Estimated cycles per step, in units of a multiprocessor. total: octets of the layer."""
    p = SPLIT_PIXELS[octets]
    lines, exchanges, others = loads
    products = 6 * p * octets
    l1 = p * (4 * lines + exchanges) + 4 * octets + 1
    issue = (products + p * others + octets + 4) / 4
    warps = -(-pixels // p) * -(-total // octets)
    return max(products, l1, issue) * max(warps, FILLING_WARPS)


def split_config(arithmetic: str, outputs: int, pixels: int, *, split: bool) -> SplitConfig:
    """For ``pixels`` output pixels of all tiles. split: whether the input map is. Of cuts that tie, the largest."""
    total = -(-outputs // OUTPUTS)
    cuts = {even_channels(total, limit) for limit in SPLIT_PIXELS}
    octets = min(sorted(cuts, reverse=True), key=lambda n: _cycles(n, total, pixels, _LOADS[arithmetic, split]))
    blocks = -(-total // octets)
    # Warps side by side along the outputs read the same inputs, which L1 then gives once; as many as leave none idle.
    channel_warps = next(n for n in (4, 3, 2, 1) if blocks % n == 0)
    return SplitConfig(octets, channel_warps, CONV_WARPS // channel_warps)


def walked_macs(arithmetic: str, outputs: int, taps: int, inputs: int, pixels: int, config: SplitConfig) -> int:
    """Multiply-accumulates with the padding of outputs, sums and pixels, each counted once: the kernel executes three."""
    depth = step_count(taps, inputs, arithmetic) * TERMS * (1 if arithmetic == "tf32x3" else 2)
    p = SPLIT_PIXELS[config.octets]
    return -(-pixels // p) * p * TILE * depth * -(-outputs // OUTPUTS) * OUTPUTS
