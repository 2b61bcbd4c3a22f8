"""Which kernel a layer gets on the CPU, and the reason. The only place that decides it.

The choice depends on the layer and the instruction set alone, never on timing inside the process, so that results do
not depend on the machine's mood. The float table was measured with ``benchmarks/conv_algorithms.py``; docs/LOG.md has
the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .winograd_codes import WinogradCodes

# Cost of one product and of one operation of the input and output transforms of Winograd, against one multiply-accumulate of
# the direct kernel, memory traffic included. Fitted to measured ratios; decides but one measured layer as they do (0.96x).
WINOGRAD_COST = {"amx": (1.24, 1.3, 1.8), "avx512vnni": (1.24, 1.3, 1.8), "avx2": (1.1, 1.0, 2.0), "portable": (1.28, 0.6, 1.2)}
# Integer F(4, 3), in dot products of the direct kernel (benchmarks/conv_algorithms_u8.py): one of its products, then the transforms
# of a tile of four pixels per unit and per output channel. Sums that pass through int16 are widened sooner.
WINOGRAD_U8_COST = {"avx512vnni": (1.0, 28.0, 21.0), "avx2": (1.45, 5.0, 5.0), "portable": (1.0, 1.0, 1.0)}
WINOGRAD_MARGIN = 1.1  # the direct kernel must be predicted slower by this much


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


def winograd_cost(c: int, oc: int, out_h: int, out_w: int, cost: tuple[float, float, float]) -> tuple[float, float]:
    """(Winograd, direct) cost of a 3x3 layer in multiply-accumulates per image, partly filled tiles included."""
    tiles = -(-out_h // 4) * -(-out_w // 4)
    product, inputs, outputs = cost
    return tiles * (product * 36 * c * oc + inputs * 144 * c + outputs * 100 * oc), 9.0 * c * oc * out_h * out_w


def select_conv_f32(
    isa: str, weight_shape: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int], groups: int, out_h: int,
    out_w: int,
) -> ConvChoice:
    """Direct or Winograd F(4x4, 3x3) for a float32 convolution; weight_shape [OC, C/groups, KH, KW]."""
    oc, c, kh, kw = weight_shape
    if (kh, kw) != (3, 3) or tuple(stride) != (1, 1) or tuple(dilation) != (1, 1) or groups != 1:
        return ConvChoice(False, "direct: Winograd serves 3x3 kernels of stride 1 without groups")
    winograd, direct = winograd_cost(c, oc, out_h, out_w, WINOGRAD_COST[isa])
    ratio = direct / winograd
    if ratio <= 1:
        return ConvChoice(False, f"direct: Winograd predicted at {ratio:.2f}x")
    return ConvChoice(True, f"Winograd F(4x4,3x3): predicted {ratio:.2f}x direct")


def direct_conv_f32(isa: str, weight_shape: tuple[int, ...], *_: object) -> ConvChoice:
    """The direct kernel for every layer, to measure what its arithmetic alone costs; arguments as of :func:`select_conv_f32`."""
    return ConvChoice(False, "direct: asked for")


@dataclass(frozen=True)
class ConvU8Layer:
    """What the choice of an integer kernel depends on. weight_shape: [OC, C/groups, KH, KW]."""

    weight_shape: tuple[int, ...]
    weight_dtype: str
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    out_h: int
    out_w: int
    logits: bool


@dataclass(frozen=True)
class ConvU8Choice:
    """winograd: its constants, if the layer runs by F(4, 3).  tiles: on AMX tiles.  Neither: direct dot products."""

    reason: str
    tiles: bool = False
    winograd: WinogradCodes | None = None


def winograd_u8_cost(layer: ConvU8Layer, cost: tuple[float, float, float]) -> tuple[float, float]:
    """(Winograd, direct) cost of a tile of 16 images, in dot products of four codes; partly filled tiles included."""
    oc, units = layer.weight_shape[0], -(-layer.weight_shape[1] // 4)
    product, unit, channel = cost
    tiles = layer.out_h * -(-layer.out_w // 4)
    return tiles * (18.0 * units * oc * product + unit * units + channel * oc), 9.0 * units * oc * layer.out_h * layer.out_w


def select_conv_u8(isa: str, layer: ConvU8Layer, fit: Callable[[], WinogradCodes | str]) -> ConvU8Choice:
    """The kernel of a quantized convolution or head. fit: the constants of F(4, 3) for its weights, or why it is not exact."""
    if isa == "amx" and layer.groups == 1 and not layer.logits:
        return ConvU8Choice("tiles of 16 channels x 16 images x 64 inputs", tiles=True)
    if isa == "amx":
        return ConvU8Choice("dot products of 4 codes: " + (
            "a head has one pixel, which cannot fill tiles" if layer.logits else "a tile cannot hold several groups"))
    dots = f"dot products of 4 codes on {isa}"
    if (layer.logits or layer.groups != 1 or layer.weight_shape[2:] != (3, 3) or tuple(layer.stride) != (1, 1)
            or tuple(layer.dilation) != (1, 1)):
        return ConvU8Choice(dots)
    winograd, direct = winograd_u8_cost(layer, WINOGRAD_U8_COST[isa])
    ratio = direct / winograd
    if ratio < WINOGRAD_MARGIN:
        return ConvU8Choice(f"{dots}: F(4,3) predicted at {ratio:.2f}x")
    if layer.weight_dtype == "s8":
        return ConvU8Choice(f"{dots}: F(4,3) needs weights of 3 or 4 bits")
    codes = fit()
    if isinstance(codes, str):
        return ConvU8Choice(f"{dots}: F(4,3) is not exact, {codes}")
    if isa == "avx2" and min(codes.pair_sums) < 1:
        return ConvU8Choice(f"{dots}: F(4,3) adds pairs of products beyond int16")
    return ConvU8Choice(f"exact Winograd F(4,3) in bytes: predicted {ratio:.2f}x direct", winograd=codes)


def direct_conv_u8(isa: str, layer: ConvU8Layer, fit: Callable[[], WinogradCodes | str]) -> ConvU8Choice:
    """Dot products, or tiles on AMX, for every layer; arguments as of :func:`select_conv_u8`."""
    return select_conv_u8(isa, layer, fit) if isa == "amx" else ConvU8Choice("direct: asked for")


# How convolutions are computed, (of floats, of codes): ``planned`` is what runs, ``direct`` is for comparisons.
ALGORITHMS: Mapping[str, tuple[Callable[..., ConvChoice], Callable[..., ConvU8Choice]]] = {
    "planned": (select_conv_f32, select_conv_u8), "direct": (direct_conv_f32, direct_conv_u8),
}
