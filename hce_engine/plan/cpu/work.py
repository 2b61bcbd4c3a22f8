"""What a step of a plan has to do: products that count, operations that are executed, bytes that are moved.

Products that count are those of the layer. Executed operations are the kernel's, and the two differ:

    codes       channels are padded to units of 4, of inputs within each group and of outputs; depthwise layers pad kernel rows to sets of 4
    AMX         tiles of up to 16 output channels and 64 inputs
    Winograd    of floats: 36 products per channel pair and tile of 4x4 outputs, 144 operations to transform the input of a channel and
                100 its output (csrc/cpu/kernels/winograd_f32.h); of codes: 18 products per tile of 4 outputs of a row; the 23 and 22
                vector instructions of its transforms, of 4 input and of one output channel, count as the 4 products per image that
                a dot product does (winograd_u8.h). Partly filled tiles included

Bytes are those that must move once per call, if nothing has to move twice: pixels of maps that are read and written, without
their halos, and packed weights. The working set adds halos, scratch memory and unpacked weights: a step touches that
much, so the smallest cache that holds it is the one that it can run from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from ...errors import UnsupportedError
from .lanes import LANES
from .plan import LINE_BYTES, Map, Step

_DIRECT = re.compile(r"conv2d_(f32|u\dxs\d_(u\d|f32))")
_SCRATCH = ("scratch", "sums")  # maps that hold no pixels: kept in the first cache, not moved


@dataclass(frozen=True)
class _Winograd:
    """Of 3x3 kernels. tile: rows and columns of outputs.  Operations per tile: products of a channel pair, transforms of a channel."""

    tile: tuple[int, int]
    products: int
    of_input: int
    of_output: int

    def operations(self, c: int, oc: int) -> int:
        """Per tile."""
        return self.products * c * oc + self.of_input * c + self.of_output * oc


_WINOGRAD = {"f32": _Winograd((4, 4), 36, 144, 100), "u4": _Winograd((1, 4), 18, 23, 88)}


def _winograd(step: Step) -> _Winograd | None:
    return _WINOGRAD[_kind(step) or ""] if step.kernel.endswith("_winograd") else None


def _channels(step: Step) -> tuple[int, int]:
    """Channels in and out as the kernel computes them, padding included."""
    shape = step.arguments["shape"]
    return shape[2] * (1 if step.method == "conv_f32" else 4), shape[5]


@dataclass(frozen=True)
class Work:
    """kind: of :data:`hce_engine.peaks.KINDS`, None without products.  images: that one call of the step serves.

    macs, executed: per image.  unpadded: operations of the kernel's algorithm without padding and partly filled tiles, per image.
    bytes, working_set: per call.
    """

    kind: str | None
    macs: int
    executed: int
    unpadded: float
    images: int
    bytes: int
    working_set: int


def step_work(step: Step) -> Work:
    """The work of a step; operations on lanes without an image, or beyond its border, are executed, too.

    Raises UnsupportedError for a kernel whose products are not known here.
    """
    kind = _kind(step)
    weights = step.packed_bytes
    unpacked = 0 if kind in (None, "f32") or step.arguments["storage"] == "s8" else -(-_stored_weights(step) // 64) * 64
    maps = {id(m): m for m in (*step.reads.values(), *step.writes.values())}
    return Work(kind, step.macs, _executed(step), _unpadded(step), step.images, weights + _moved(step), weights + unpacked + _total(maps.values()))


def _kind(step: Step) -> str | None:
    if not step.macs:
        return None
    if step.method.endswith("_f32"):
        return "f32"
    return "u4" if step.kernel.startswith(("conv2d_u4", "conv2d_u3")) else "u8"


def _total(maps: Iterable[Map]) -> int:
    return sum(m.bytes for m in maps)


def _pixels(m: Map) -> int:
    """Bytes of a map without its halo."""
    return m.h * m.w * m.pixel


def _moved(step: Step) -> int:
    if step.method == "halo":
        return sum(m.bytes - _pixels(m) for m in step.writes.values())
    written = sum(_pixels(m) for key, m in step.writes.items() if key not in _SCRATCH)
    if step.method == "copy":  # the written channels of a map, read from as many places; all channels are written if it fills
        (channels, _), (h, w, all_lines) = step.arguments["channels"], step.arguments["output"]
        lines = -(-channels // 4) if step.arguments["codes"] else channels
        return h * w * (lines + (lines if step.arguments["fill"] is None else all_lines)) * LINE_BYTES
    return written + sum(_pixels(m) for m in step.reads.values())


def _stored_weights(step: Step) -> int:
    bits = {"s3": 3, "s4": 4, "s8": 8}[step.arguments["storage"]]
    return step.packed_bytes * 8 // bits


def _unpadded(step: Step) -> float:
    form = _winograd(step)
    if form is None:
        return float(step.macs)
    c, oc = _channels(step)
    return step.macs * form.operations(c, oc) / (prod(form.tile) * 9 * c * oc)


def _executed(step: Step) -> int:
    """Per image: kernels compute all lanes, whatever they hold."""
    if not step.macs:
        return 0
    if step.kernel == "dense_f32":  # whose lanes are output channels, in whole blocks
        return int(step.arguments["channels"][0] * len(step.arguments["bias"]))
    return _of_lane(step) * LANES // step.images


def _of_lane(step: Step) -> int:
    shape, cut = step.arguments["shape"], step.arguments.get("cut")
    out_h, out_w, out_channels, taps = shape[3], shape[4], shape[5], shape[6] * shape[7]
    form = _winograd(step)
    if form is not None:
        return -(-out_h // form.tile[0]) * -(-out_w // form.tile[1]) * form.operations(*_channels(step))
    if cut is not None:
        runs = shape[6] if cut.kernel_rows else taps
        return out_h * out_w * prod((cut.channel_tiles, cut.channels_per_tile, runs, cut.tiles_per_run, cut.rows, 4))
    if step.kernel == "conv2d_f32_depthwise":
        return step.macs
    if step.kernel.endswith("_depthwise"):
        return out_h * out_w * out_channels * -(-shape[6] // 4) * 4 * shape[7]
    if not _DIRECT.fullmatch(step.kernel):
        raise UnsupportedError("work of a step", expected="a direct, depthwise, Winograd or AMX convolution", got=step.kernel,
                               fix="state the products of this kernel in hce_engine/plan/cpu/work.py")
    per_line = 1 if step.kernel == "conv2d_f32" else 4
    blocks = step.arguments["blocks"]
    return int(out_h * out_w * taps * (blocks[:, 1] * blocks[:, 3]).sum() * per_line)
