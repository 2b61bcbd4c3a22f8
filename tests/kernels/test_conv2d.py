"""Convolutions on packed codes equal the exact reference bit for bit, whatever the widths, window, outputs and cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hce_engine import numerics
from hce_engine.kernels import conv2d
from hce_engine.kernels.configurations import ConvConfig
from hce_engine.kernels.description import Codes, Geometry
from hce_engine.kernels.device import DeviceMap, empty_map, layer_on, map_of_codes
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.launch import Recoded, Residual
from hce_engine.kernels.layer import layer_arrays

POISON = 85
Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """weight_bits: of the codes; storage: where they are stored, the same unless given. bias: bound of its size."""

    channels: int = 17
    outputs: int = 18
    size: Pair = (5, 4)
    x_bits: int = 8
    weight_bits: int = 4
    storage: int | None = None
    y_bits: int | None = 8
    z_bits: int | None = None
    residual: bool = False
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    batch: int = 2
    block_m: int = 64
    block_n: int = 32
    block_k: int = 32
    unroll: bool = True
    bias: int = 1000
    extreme: bool = False
    multiplier: float = 0.0
    seed: int = 0

    @property
    def out(self) -> Pair:
        rows, columns = (
            (self.size[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d in (0, 1)
        )
        return rows, columns

    @property
    def config(self) -> ConvConfig:
        bits = self.storage or self.weight_bits
        return ConvConfig(self.block_m, self.block_n, self.block_k, bits, 4, 3, self.unroll)


def outside(map_: DeviceMap) -> list[np.ndarray]:
    """The bytes of each plane with the inner pixels blanked: halos and slack."""
    form, kept = map_.form, []
    for plane, size, pixel in zip(map_.planes, form.image_bytes, form.pixel_bytes, strict=True):
        values = plane.cpu().numpy().copy()
        images = values[: map_.batch * size].reshape(map_.batch, form.rows, form.columns, pixel)
        top, left = form.halo[:2]
        images[:, top : top + form.height, left : left + form.width] = 0
        kept.append(values)
    return kept


def check(case: Case, device: str) -> None:
    rng = np.random.default_rng(case.seed)
    qmax, limit = (1 << case.x_bits) - 1, 1 << (case.weight_bits - 1)
    x_shape, w_shape = (case.batch, case.channels, *case.size), (case.outputs, case.channels, *case.kernel)
    if case.extreme:
        x = rng.choice(np.array([0, qmax], np.uint8), x_shape)
        weight = rng.choice(np.array([-limit, limit - 1], np.int8), w_shape)
        x[0], weight[0], weight[-1] = qmax, -limit, limit - 1
    else:
        x = rng.integers(0, qmax + 1, x_shape).astype(np.uint8)
        weight = rng.integers(-limit, limit, w_shape).astype(np.int8)
    bias = rng.integers(-case.bias, case.bias + 1, case.outputs).astype(np.int32)
    spread = 8 / (qmax * limit * np.sqrt(weight[0].size)) * ((1 << (case.y_bits or 8)) - 1) / 4
    multiplier = (rng.uniform(0.2, 1, case.outputs) * (case.multiplier or spread)).astype(np.float32)
    pad_code = rng.integers(0, qmax + 1, case.channels).astype(np.uint8)
    geometry = Geometry(case.kernel, case.stride, case.padding, case.dilation, case.out)
    form = MapFormat(case.channels, *case.size, case.x_bits, geometry.halo(*case.size))
    arrays = layer_arrays(
        weight, bias, multiplier, None, form, qmax, case.config.weight_bits, case.block_k, case.block_n, case.dilation[1]
    )
    codes = Codes(128, 3, 255) if case.residual and case.y_bits in (8, None) else Codes(0, 0, (1 << (case.y_bits or 8)) - 1)
    shape = (case.batch, case.outputs, *case.out)
    extra, residual = {}, None
    if case.residual:
        r = rng.integers(0, 256, shape).astype(np.uint8)
        residual = Residual(map_of_codes(r, MapFormat(*shape[1:], 8, (0, 1, 1, 0)), device), 7, float(np.float32(0.13)))
        extra = {"residual": r, "residual_zero_point": 7, "residual_multiplier": 0.13}
    y = empty_map(MapFormat(*shape[1:], case.y_bits, (1, 1, 0, 2)), case.batch, device, 1, POISON) if case.y_bits else None
    recoded = None
    if case.z_bits:
        z = empty_map(MapFormat(*shape[1:], case.z_bits, (1, 0, 1, 1)), case.batch, device, 2, POISON)
        recoded = Recoded(z, Codes(1, 0, (1 << case.z_bits) - 1), 9000)
    written = [m for m in (y, recoded.map if recoded else None) if m is not None]
    before = [outside(m) for m in written]
    conv2d.launch(
        "test", map_of_codes(x, form, device, pad_code), layer_on(arrays, device), geometry, case.config, y=y, codes=codes,
        residual=residual, recoded=recoded,
    )()
    acc = numerics.conv2d_accumulate(
        x, weight, bias, stride=case.stride, padding=case.padding, dilation=case.dilation, groups=1, pad_code=pad_code
    )
    grid = {"zero_point": codes.zero_point, "qmin": codes.qmin, "qmax": codes.qmax}
    expected = numerics.requantize(acc, multiplier, **grid, **extra)
    if y is not None:
        np.testing.assert_array_equal(y.codes(), expected)
    if recoded is not None:
        expected = numerics.recode(
            expected, 9000, zero_point_in=codes.zero_point, zero_point=1, qmin=0, qmax=recoded.codes.qmax
        )
        np.testing.assert_array_equal(recoded.map.codes(), expected)
    for planes, map_ in zip(before, written, strict=True):
        for plane, now in zip(planes, outside(map_), strict=True):
            np.testing.assert_array_equal(plane, now)


@pytest.mark.parametrize("weight_bits", [8, 4, 3])
@pytest.mark.parametrize("x_bits", [8, 4, 3])
@pytest.mark.parametrize("y_bits", [8, 4, 3])
def test_every_width(device: str, x_bits: int, weight_bits: int, y_bits: int) -> None:
    check(Case(x_bits=x_bits, weight_bits=weight_bits, y_bits=y_bits), device)


@pytest.mark.parametrize("channels", [1, 3, 9, 17, 33, 65])
@pytest.mark.parametrize("x_bits", [8, 4, 3])
def test_odd_channels(device: str, x_bits: int, channels: int) -> None:
    """As inputs and, in another order, as outputs; blocks of 16 channels, so up to five of them."""
    outputs = {1: 65, 3: 33, 9: 17, 17: 9, 33: 3, 65: 1}[channels]
    check(Case(channels, outputs, (4, 3), x_bits, 4, y_bits={8: 3, 4: 8, 3: 4}[x_bits], kernel=(2, 3), block_n=16), device)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), (1, 1), (0, 0), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((3, 2), (1, 2), (2, 0), (1, 1)), ((5, 5), (2, 1), (2, 2), (1, 1)), ((3, 3), (1, 1), (2, 2), (2, 2)),
        ((2, 3), (2, 2), (1, 3), (1, 3)), ((7, 7), (2, 2), (3, 3), (1, 1)), ((6, 5), (1, 1), (0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "loop"])
def test_every_window(device: str, unroll: bool, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    check(
        Case(
            9, 16, (6, 7), 4 if unroll else 8, 4, kernel=kernel, stride=stride, padding=padding, dilation=dilation, y_bits=4,
            unroll=unroll, block_n=16,
        ),
        device,
    )


@pytest.mark.parametrize("x_bits", [8, 4, 3])
@pytest.mark.parametrize("weight_bits", [8, 4, 3])
def test_loop_over_taps(device: str, weight_bits: int, x_bits: int) -> None:
    check(Case(x_bits=x_bits, weight_bits=weight_bits, kernel=(3, 2), y_bits=4, unroll=False, dilation=(1, 2)), device)


@pytest.mark.parametrize("block_k", [32, 64, 128])
@pytest.mark.parametrize("block_n", [16, 64])
def test_every_cut(device: str, block_n: int, block_k: int) -> None:
    check(Case(20, 70, (4, 4), 4, 3, y_bits=4, block_k=block_k, block_n=block_n, block_m=16), device)


@pytest.mark.parametrize(("x_bits", "weight_bits"), [(8, 4), (4, 3), (3, 4), (3, 3)])
def test_low_bit_weights_stored_wide(device: str, x_bits: int, weight_bits: int) -> None:
    check(Case(x_bits=x_bits, weight_bits=weight_bits, storage=8), device)


@pytest.mark.parametrize(
    ("y_bits", "z_bits"), [(8, None), (8, 8), (8, 4), (8, 3), (None, 4), (None, 3), (4, None), (3, 4), (4, 8)]
)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_outputs(device: str, residual: bool, y_bits: int | None, z_bits: int | None) -> None:
    check(Case(11, 19, x_bits=4, weight_bits=4, y_bits=y_bits, z_bits=z_bits, residual=residual, kernel=(1, 3)), device)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("weight_bits", [8, 4, 3])
@pytest.mark.parametrize("x_bits", [8, 4, 3])
def test_full_rail(device: str, x_bits: int, weight_bits: int, residual: bool) -> None:
    """Extreme codes and weights, sums beyond the proof of the magic bias."""
    check(Case(x_bits=x_bits, weight_bits=weight_bits, extreme=True, residual=residual, bias=2**25), device)


@pytest.mark.parametrize("multiplier", [1e-30, 1.0, 3e4, 1e20])
def test_any_size_of_multiplier(device: str, multiplier: float) -> None:
    """Codes saturate at both ends, also where a value is far beyond int32."""
    check(Case(multiplier=multiplier, z_bits=4, extreme=True, bias=2**20), device)


def test_biases_near_the_end_of_int32(device: str) -> None:
    """Centred sums leave int32 and come back to it."""
    check(Case(4, 16, x_bits=8, weight_bits=8, kernel=(1, 1), padding=(0, 0), bias=2**31 - 1 - 255 * 128 * 4, extreme=True), device)


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("block_m", [16, 32])
def test_tails_of_a_batch(device: str, block_m: int, batch: int) -> None:
    check(Case(3, 5, (5, 3), 8, 8, y_bits=4, batch=batch, block_m=block_m, block_n=16, kernel=(3, 3)), device)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("classes", [1, 10, 33])
def test_logits(device: str, classes: int, bits: int) -> None:
    """A head whose window is the whole map: float logits, two roundings."""
    rng = np.random.default_rng(classes)
    geometry, form = Geometry((2, 3), (1, 1), (0, 0), (1, 1), (1, 1)), MapFormat(9, 2, 3, 8)
    limit = 1 << (bits - 1)
    x = rng.integers(0, 256, (5, 9, 2, 3)).astype(np.uint8)
    weight = rng.integers(-limit, limit, (classes, 9, 2, 3)).astype(np.int8)
    bias = rng.integers(-1000, 1000, classes).astype(np.int32)
    multiplier, offset = rng.random(classes).astype(np.float32), rng.standard_normal(classes).astype(np.float32)
    layer = layer_on(layer_arrays(weight, bias, multiplier, offset, form, 255, bits, 32, 16), device)
    logits = torch.full((5, classes), float("nan"), device=device)
    conv2d.launch("test", map_of_codes(x, form, device), layer, geometry, ConvConfig(16, 16, 32, bits), logits=logits)()
    acc = numerics.conv2d_accumulate(
        x, weight, bias, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, pad_code=np.zeros(9, np.uint8)
    )
    np.testing.assert_array_equal(logits.cpu().numpy(), numerics.logits(acc[:, :, 0, 0], multiplier, offset))


@settings(max_examples=8)
@given(
    case=st.builds(
        Case, channels=st.integers(1, 36), outputs=st.integers(1, 36), size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        x_bits=st.sampled_from([8, 4, 3]), weight_bits=st.sampled_from([8, 4, 3]), y_bits=st.sampled_from([8, 4, 3]),
        z_bits=st.sampled_from([None, 8, 4, 3]), residual=st.booleans(),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(1, 2), st.integers(1, 2)), batch=st.integers(1, 3), unroll=st.booleans(),
        extreme=st.booleans(), bias=st.sampled_from([0, 1000, 2**25]), seed=st.integers(0, 2**31),
    )
)
def test_any_layer(device: str, case: Case) -> None:
    check(case, device)


def test_launcher_refuses_what_does_not_fit(device: str) -> None:
    case = Case(5, 6, (4, 4), 8, 4, y_bits=4, block_n=16)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), (4, 4))
    form = MapFormat(5, 4, 4, 8, (1, 1, 1, 1))
    weight, ones = np.ones((6, 5, 3, 3), np.int8), np.ones(6, np.float32)
    layer = layer_on(layer_arrays(weight, np.zeros(6, np.int32), ones, None, form, 255, 4, 32, 16), device)
    x, y, four = empty_map(form, 2, device), empty_map(MapFormat(6, 4, 4, 4), 2, device), Codes(0, 0, 15)
    with pytest.raises(ValueError, match=r"expected a halo of \(1, 1, 1, 1\), got \(0, 0, 0, 0\)"):
        conv2d.launch("a", empty_map(form.with_halo((0, 0, 0, 0)), 2, device), layer, geometry, case.config, y=y, codes=four)
    with pytest.raises(ValueError, match="expected weights cut as"):
        conv2d.launch("a", x, layer, geometry, replace(case, block_n=32).config, y=y, codes=four)
    with pytest.raises(ValueError, match="expected at most 4 warps where taps are a loop, got 8"):
        conv2d.launch("a", x, layer, geometry, replace(case.config, unroll=False, num_warps=8), y=y, codes=four)
    with pytest.raises(ValueError, match="expected an output, got none"):
        conv2d.launch("a", x, layer, geometry, case.config)
    with pytest.raises(ValueError, match="expected codes of 4 bits in y, got 255"):
        conv2d.launch("a", x, layer, geometry, case.config, y=y)
    with pytest.raises(ValueError, match="expected y of 4 x 4 x 2 images"):
        conv2d.launch("a", x, layer, geometry, case.config, y=empty_map(MapFormat(6, 4, 4, 4), 3, device), codes=four)
    with pytest.raises(ValueError, match="expected a residual map of 8 bits"):
        conv2d.launch("a", x, layer, geometry, case.config, y=y, codes=four, residual=Residual(y, 0, 1.0))
    with pytest.raises(ValueError, match="expected one output pixel and no maps beside logits"):
        conv2d.launch("a", x, layer, geometry, case.config, logits=torch.zeros((2, 6), device=device))
