"""Which kernel a layer gets on the CPU, and the reason. The only place that decides it.

The choice depends on the layer and the instruction set alone, never on timing inside the process, so that results do
not depend on the machine's mood. The float table was measured with ``benchmarks/conv_algorithms.py``; docs/LOG.md has
the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

# Cost of one operation of the (input, output) transform against one multiply-accumulate of the direct kernel, memory
# traffic included, for decisions as the measurement's: the transforms of wide vectors wait for the caches.
WINOGRAD_TRANSFORM_COST = {"amx": (1.4, 2.0), "avx512vnni": (1.4, 2.0), "avx2": (1.1, 2.2), "portable": (1.0, 1.7)}


def depthwise_f32(weight_shape: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int], groups: int) -> bool:
    """Whether the sliding window of the depthwise float kernel serves a layer; weight_shape [OC, C/groups, KH, KW]."""
    oc, c, kh, kw = weight_shape
    return (groups, c, kh, kw) == (oc, 1, 3, 3) and tuple(stride) in ((1, 1), (2, 2)) and tuple(dilation) == (1, 1)


def depthwise_u8(weight_shape: tuple[int, ...], dilation_w: int, groups: int, columns: int) -> bool:
    """Whether the depthwise kernel of codes serves a layer: its window, in sets of four kernel rows, fits ``columns``."""
    oc, c, kh, kw = weight_shape
    return (groups, c) == (oc, 1) and -(-kh // 4) * ((kw - 1) * dilation_w + 1) <= columns


@dataclass(frozen=True)
class ConvChoice:
    winograd: bool
    reason: str


def winograd_cost(c: int, oc: int, out_h: int, out_w: int, transform: tuple[float, float]) -> tuple[float, float]:
    """(Winograd, direct) cost of a 3x3 layer in multiply-accumulates per image, partly filled tiles included."""
    tiles = -(-out_h // 4) * -(-out_w // 4)
    return tiles * (36 * c * oc + transform[0] * 144 * c + transform[1] * 100 * oc), 9.0 * c * oc * out_h * out_w


def select_conv_f32(
    isa: str, weight_shape: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int], groups: int, out_h: int,
    out_w: int,
) -> ConvChoice:
    """Direct or Winograd F(4x4, 3x3) for a float32 convolution; weight_shape [OC, C/groups, KH, KW]."""
    oc, c, kh, kw = weight_shape
    if (kh, kw) != (3, 3) or tuple(stride) != (1, 1) or tuple(dilation) != (1, 1) or groups != 1:
        return ConvChoice(False, "direct: Winograd serves 3x3 kernels of stride 1 without groups")
    winograd, direct = winograd_cost(c, oc, out_h, out_w, WINOGRAD_TRANSFORM_COST[isa])
    ratio = direct / winograd
    if ratio <= 1:
        return ConvChoice(False, f"direct: Winograd predicted at {ratio:.2f}x")
    return ConvChoice(True, f"Winograd F(4x4,3x3): predicted {ratio:.2f}x direct")


def select_conv_u8(isa: str, groups: int, logits: bool) -> tuple[bool, str]:
    """(on AMX tiles, reason) for a quantized convolution or head."""
    if isa != "amx":
        return False, f"dot products of 4 codes on {isa}"
    if groups != 1:
        return False, "dot products of 4 codes: a tile cannot hold several groups"
    if logits:
        return False, "dot products of 4 codes: a head has one pixel, which cannot fill tiles"
    return True, "tiles of 16 channels x 16 images x 64 inputs"
