"""Operands of our kernels on the device, launches over them, and what the launches must give, to the bit.

References are exact: sums of products of codes are integers below 2^53, so a float64 matrix product has no rounding in any
order; epilogues are hce_engine/numerics.py, or the two float32 operations of a logit, each rounded on its own. Weights are
packed on the device (a test holds the packing against kernels/formats.py), because a tuner cuts them anew for every
configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hce_engine import numerics
from hce_engine.kernels import conv2d, gemm
from hce_engine.kernels.configurations import ConvConfig, GemmConfig
from hce_engine.kernels.description import Codes
from hce_engine.kernels.device import DeviceLayer, DeviceMap, empty_map, map_of_codes
from hce_engine.kernels.formats import (
    CENTRE,
    SLACK,
    WEIGHT_SCALE,
    MapFormat,
    WeightFormat,
    element_order,
    pack_map,
    weight_format,
)
from hce_engine.kernels.launch import INTERPRETED, Launch, Recoded, Residual
from hce_engine.kernels.layer import INT32_LIMIT, MAGIC_BITS, MAGIC_LIMIT, LayerArrays

from .shapes import ConvLayer, Precision

POISON = 0x55
RESIDUAL = (128, 0.37)  # zero point and multiplier


def random_map(form: MapFormat, batch: int, device: str, seed: int) -> DeviceMap:
    """A map of random bytes, halo included: every byte is a code."""
    generator = torch.Generator(device).manual_seed(seed)
    planes = [torch.randint(-128, 128, (batch * size + SLACK,), dtype=torch.int8, device=device, generator=generator)
              for size in form.image_bytes]
    return DeviceMap(form, batch, tuple(planes))


def pack(weight: Tensor, x: MapFormat, form: WeightFormat) -> Tensor:
    """int8 ``[form.bytes]`` of codes int8 ``[OC, C, KH, KW]``: formats.pack_weights on the device of ``weight``."""
    oc, c, kh, kw = weight.shape
    full = torch.zeros((form.blocks * form.block_n, kh, kw, x.padded), dtype=torch.int8, device=weight.device)
    full[:oc, :, :, :c] = weight.permute(0, 2, 3, 1)
    order = element_order(x.bits, form)
    runs = torch.zeros((len(full), form.runs, int(order.max()) + 1), dtype=torch.int8, device=weight.device)
    runs[:, :, : form.run_codes] = full.reshape(len(full), form.runs, form.run_codes)
    cut = runs[:, :, torch.from_numpy(order).to(weight.device)]  # [channel][run][step][tile][BLOCK_K]
    cut = cut.view(form.blocks, form.block_n, *cut.shape[1:]).permute(0, 2, 3, 4, 1, 5)
    if form.bits == 8:
        return cut.reshape(-1)
    if form.bits == 4:
        return ((cut[:, :, :, 0::2] & 15) | (cut[:, :, :, 1::2] & 15) << 4).reshape(-1)
    w = [cut[:, :, :, t] & 7 for t in range(8)]
    planes = (w[0] << 5 | w[1] << 2 | w[6] >> 1, w[2] << 5 | w[3] << 2 | w[7] >> 1,
              w[4] << 5 | w[5] << 2 | (w[6] & 1) << 1 | (w[7] & 1))
    return torch.stack(planes, 3).reshape(-1)


@dataclass(frozen=True)
class Weights:
    """Codes and constants of a layer, and what follows from them for every way to cut it (layer.layer_arrays)."""

    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    offset: Tensor
    x: MapFormat

    @classmethod
    def random(cls, shape: Sequence[int], bits: int, x: MapFormat, y_qmax: float, device: str, seed: int) -> Weights:
        """Multipliers spread the sums of random codes over a range of ``y_qmax`` and some beyond."""
        generator = torch.Generator(device).manual_seed(seed)
        limit = 1 << (bits - 1)
        weight = torch.randint(-limit, limit, tuple(shape), dtype=torch.int8, device=device, generator=generator)
        bias = torch.randint(-(1 << 12), 1 << 12, (shape[0],), dtype=torch.int32, device=device, generator=generator)
        deviation = weight[0].numel() ** 0.5 * 2.0 ** (x.bits - 1) * limit / 3**0.5
        multiplier = torch.logspace(-2, 1, shape[0], base=2.0, device=device) * (y_qmax / deviation)
        return cls(weight, bias, multiplier.float(), torch.randn(shape[0], device=device, generator=generator), x)

    def cut(self, bits: int, block_k: int, block_n: int) -> DeviceLayer:
        form, scale, qmax = weight_format(self.weight.shape, self.x, bits, block_k, block_n), WEIGHT_SCALE[bits], (1 << self.x.bits) - 1
        oc = len(self.weight)
        flat = self.weight.view(oc, -1)
        sums, absolute = flat.sum(1, dtype=torch.int64), flat.to(torch.int16).abs().sum(1, dtype=torch.int64)
        centre = CENTRE if self.x.bits == 8 else 0
        centred = self.bias.to(torch.int64) + centre * sums
        largest = int((centred.abs() + (centre or qmax) * absolute).max())
        if largest * scale > INT32_LIMIT:
            raise ValueError(f"expected sums that fit int32 when scaled by {scale}, got {largest}")
        magic = largest * scale < MAGIC_LIMIT
        added = MAGIC_BITS if magic else 0

        def pad(values: Tensor, rest: int = 0) -> Tensor:
            full = torch.full((form.blocks * block_n,), rest, dtype=values.dtype, device=values.device)
            full[:oc] = values
            return full

        values = (self.bias.double().abs() + qmax * absolute) * self.multiplier.double().abs()
        nothing = np.zeros(0, np.float32)
        arrays = LayerArrays(form, nothing, nothing, nothing, nothing, magic, flat[0].numel() * oc, float(values.max()) * 1.001)
        bias = pad((centred * scale + added).to(torch.int32), added)
        return DeviceLayer(arrays, pack(self.weight, self.x, form), bias, pad(self.multiplier / scale), pad(self.offset))


def _accumulate(codes: np.ndarray, weights: Weights, layer: ConvLayer, pad: np.ndarray) -> np.ndarray:
    """int32 sums (N, OC, OH, OW), exact."""
    (kh, kw), (ph, pw) = layer.geometry.kernel, layer.geometry.padding
    n, c, h, w = codes.shape
    full = np.broadcast_to(pad[:, None, None], (n, c, h + 2 * ph, w + 2 * pw)).copy()
    full[:, :, ph : ph + h, pw : pw + w] = codes
    images = torch.from_numpy(full).to(weights.weight.device).double()
    columns = torch.nn.functional.unfold(images, (kh, kw), stride=layer.geometry.stride)
    sums = weights.weight.view(len(weights.weight), -1).double() @ columns + weights.bias.double()[:, None]
    return sums.view(n, -1, *layer.geometry.out).to(torch.int32).cpu().numpy()


class Convolution:
    """A layer for ``batch`` images. ``exact``: with codes drawn on the host and the bytes that every output must hold;
    without, with random bytes, whose results are compared between configurations. ``like``: one to share weights with."""

    def __init__(
        self, layer: ConvLayer, batch: int, device: str = "cuda", *, exact: bool = False, seed: int = 0,
        like: Convolution | None = None,
    ) -> None:
        self.layer, self.batch, self.device, self.exact = layer, batch, device, exact
        self.codes = Codes(0, 0, (1 << (layer.y_bits or 8)) - 1)
        self._cuts: dict[tuple[int, int, int], DeviceLayer] = like._cuts if like else {}
        self.weights = like.weights if like else self._random_weights(seed)
        self.derived = Codes(0, 0, (1 << layer.recoded_bits) - 1) if layer.recoded_bits else None
        self.factor = numerics.recode_factor(1.0, 255 / self.derived.qmax / 1.5) if self.derived else 0
        rng = np.random.default_rng(seed)
        stream = None
        self.residual: DeviceMap | None = None
        if exact:
            codes = rng.integers(0, 1 << layer.x_bits, (batch, layer.channels, layer.size, layer.size), dtype=np.uint8)
            pad = rng.integers(0, 1 << layer.x_bits, layer.channels, dtype=np.uint8)
            self.x = map_of_codes(codes, layer.x, device, pad)
            if layer.residual:
                stream = rng.integers(0, 256, (batch, layer.out_channels, *layer.geometry.out), dtype=np.uint8)
                self.residual = map_of_codes(stream, layer.output(8), device)
            self.expected = self._expected(codes, pad, stream)
        else:
            self.x = random_map(layer.x, batch, device, seed + 2)
            self.residual = random_map(layer.output(8), batch, device, seed + 3) if layer.residual else None
        self.outputs = self.new_outputs()

    def _random_weights(self, seed: int) -> Weights:
        layer = self.layer
        return Weights.random(layer.shape, layer.weight_bits, layer.x, self.codes.qmax, self.device, seed + 1)

    def copies(self, count: int) -> list[Convolution]:
        """Itself, and others over maps of their own."""
        return [self, *(Convolution(self.layer, self.batch, self.device, seed=10 * i, like=self) for i in range(1, count))]

    def _expected(self, codes: np.ndarray, pad: np.ndarray, stream: np.ndarray | None) -> list[Tensor]:
        acc = _accumulate(codes, self.weights, self.layer, pad)
        first = numerics.requantize(
            acc, self.weights.multiplier.cpu().numpy(), zero_point=0, qmin=0, qmax=self.codes.qmax, residual=stream,
            residual_zero_point=RESIDUAL[0], residual_multiplier=RESIDUAL[1],
        )
        maps = [(self.layer.y_bits, first)] if self.layer.y_bits else []
        if self.derived:
            second = numerics.recode(first, self.factor, zero_point_in=0, zero_point=0, qmin=0, qmax=self.derived.qmax)
            maps.append((self.layer.recoded_bits, second))
        return [torch.from_numpy(plane.reshape(-1).view(np.int8)).to(self.device)
                for bits, values in maps for plane in pack_map(values, self.layer.output(bits), 1)]

    def new_outputs(self) -> list[DeviceMap]:
        return [empty_map(self.layer.output(bits), self.batch, self.device, 1, POISON)
                for bits in (self.layer.y_bits, self.layer.recoded_bits) if bits]

    def launch(self, config: ConvConfig, *, asm: bool = not INTERPRETED) -> Launch:
        layer = self.layer
        cut = (config.weight_bits, config.block_k, config.block_n)
        if cut not in self._cuts:  # copies share the latest
            self._cuts.clear()
            self._cuts[cut] = self.weights.cut(*cut)
        outputs = iter(self.outputs)
        return conv2d.launch(
            layer.name, self.x, self._cuts[cut], layer.geometry, config, codes=self.codes, asm=asm,
            y=next(outputs) if layer.y_bits else None,
            recoded=Recoded(next(outputs), self.derived, self.factor) if self.derived else None,
            residual=Residual(self.residual, *RESIDUAL) if self.residual else None,
        )

    def written(self) -> list[Tensor]:
        """The bytes of all outputs."""
        return [plane[: m.batch * size] for m in self.outputs for plane, size in zip(m.planes, m.form.image_bytes, strict=True)]

    def differing(self, config: ConvConfig, *, asm: bool = not INTERPRETED) -> int:
        """Bytes, halos included, that one launch into poisoned outputs gets wrong."""
        self.outputs = self.new_outputs()
        self.launch(config, asm=asm)()
        return sum(int((a != b).sum()) for a, b in zip(self.written(), self.expected, strict=True))


class Product:
    """x [M, K] times weights [N, K], float32 logits [M, N]; ``expected`` is exact."""

    def __init__(self, n: int, k: int, m: int, precision: Precision, device: str = "cuda", seed: int = 0) -> None:
        self.n, self.k, self.m, self.precision, self.device = n, k, m, precision, device
        form = MapFormat(k, 1, 1, precision.x_bits)
        self.weights = Weights.random((n, k, 1, 1), precision.weight_bits, form, 8.0, device, seed + 1)
        self.x = random_map(form, m, device, seed + 2)
        self._expected: Tensor | None = None
        self._cuts: dict[tuple[int, int, int], DeviceLayer] = {}

    def codes(self) -> Tensor:
        """uint8 [M, K]."""
        form = self.x.form
        rows = self.x.plane0[: self.m * form.image_bytes[0]].view(self.m, -1)
        if form.bits == 8:
            return (rows.to(torch.int16) + CENTRE).to(torch.uint8)[:, : self.k]
        if form.bits == 4:
            return torch.stack([rows & 15, (rows >> 4) & 15], 2).view(self.m, -1)[:, : self.k].to(torch.uint8)
        return torch.from_numpy(self.x.codes()[:, :, 0, 0]).to(self.device)

    @property
    def expected(self) -> Tensor:
        if self._expected is None:
            sums = self.codes().double() @ self.weights.weight.view(self.n, self.k).double().T + self.weights.bias.double()
            self._expected = sums.float() * self.weights.multiplier + self.weights.offset
        return self._expected

    def cut(self, config: GemmConfig) -> DeviceLayer:
        cut = (config.weight_bits, config.block_k, config.block_n)
        if cut not in self._cuts:
            self._cuts = {cut: self.weights.cut(*cut)}
        return self._cuts[cut]

    def launches(self, config: GemmConfig, *, copy: bool = False, asm: bool = not INTERPRETED) -> tuple[list[Launch], Tensor]:
        """(launches in order, their logits); copy: over operands of their own."""
        layer, x = self.cut(config), self.x
        if copy:
            layer = DeviceLayer(layer.arrays, layer.weight.clone(), layer.bias, layer.multiplier, layer.offset)
            x = DeviceMap(x.form, x.batch, tuple(plane.clone() for plane in x.planes))
        logits = torch.full((self.m, self.n), float("nan"), device=self.device)
        size = gemm.workspace_size(self.m, layer, config)
        workspace = torch.zeros(size, dtype=torch.int32, device=self.device) if size else None
        name = f"{self.n}x{self.k}x{self.m} {self.precision.name}"
        return gemm.launch(name, x, layer, config, logits=logits, workspace=workspace, asm=asm), logits

    def differing(self, config: GemmConfig, *, asm: bool = not INTERPRETED) -> int:
        """Logits that two runs in a row get wrong: the second finds the workspace as the first left it."""
        launches, logits = self.launches(config, asm=asm)
        wrong = 0
        for _ in range(2):
            logits.fill_(float("nan"))
            for launch in launches:
                launch()
            wrong += int((logits.view(torch.int32) != self.expected.view(torch.int32)).sum())
        return wrong


def in_order(launches: Sequence[Launch]) -> Any:
    """One call that runs them all."""
    def call() -> None:
        for launch in launches:
            launch()

    return call
