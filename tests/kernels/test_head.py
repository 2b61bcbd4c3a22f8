"""Pool and head in one launch give the logits of the reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hce_engine import numerics
from hce_engine.kernels import head
from hce_engine.kernels.configurations import default_head_config
from hce_engine.kernels.description import Codes
from hce_engine.kernels.device import empty_map, layer_on, map_of_codes
from hce_engine.kernels.formats import MapFormat
from hce_engine.kernels.layer import LayerArrays, layer_arrays


def arrays(weight: np.ndarray, random: np.random.Generator) -> tuple[LayerArrays, np.ndarray, np.ndarray, np.ndarray]:
    """A layer, its bias, multiplier and offset."""
    classes, channels = weight.shape
    bias = random.integers(-9999, 9999, classes).astype(np.int32)
    multiplier = (random.random(classes) * 0.01 + 1e-5).astype(np.float32)
    offset = random.standard_normal(classes).astype(np.float32)
    form = MapFormat(channels, 1, 1, 8)
    config = default_head_config(classes, channels)
    weight = weight[:, :, None, None]
    built = layer_arrays(weight, bias, multiplier, offset, form, 255, 8, config.block_k, config.block_n)
    return built, bias, multiplier, offset


def expected_logits(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, offset: np.ndarray, zero_in: int,
    pool_multiplier: float, pooled: Codes,
) -> np.ndarray:
    codes = numerics.requantize(
        numerics.pool_sum(x[:, :, None, None], zero_in), pool_multiplier, zero_point=pooled.zero_point,
        qmin=pooled.qmin, qmax=pooled.qmax,
    )
    acc = numerics.conv2d_accumulate(
        codes, weight[:, :, None, None], bias, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
        pad_code=np.zeros(weight.shape[1], np.uint8),
    )
    return numerics.logits(acc[:, :, 0, 0], multiplier, offset)


CASES = [
    # channels, height, width, classes, batch, bits, pooled
    (64, 8, 8, 10, 5, 8, Codes()),
    (64, 8, 8, 10, 1, 4, Codes()),
    (64, 8, 8, 10, 3, 3, Codes(0, 0, 15)),
    (1, 1, 1, 1, 1, 8, Codes()),
    (9, 3, 5, 7, 4, 4, Codes(128)),
    (33, 7, 7, 17, 2, 8, Codes(3, 5, 250)),
    (130, 2, 3, 65, 3, 3, Codes()),
    (17, 1, 2, 16, 301, 8, Codes()),
    (5, 2, 2, 3, 1100, 4, Codes()),
    (2048, 2, 1, 1000, 1, 8, Codes()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"c{c[0]}-{c[1]}x{c[2]}-o{c[3]}-n{c[4]}-b{c[5]}")
def test_equals_the_reference(case, device: str) -> None:
    channels, height, width, classes, batch, bits, pooled = case
    random = np.random.default_rng(channels + batch)
    qmax_in = (1 << bits) - 1
    zero_in = min(pooled.zero_point, qmax_in)
    x = random.integers(0, qmax_in + 1, (batch, channels, height, width), dtype=np.uint8)
    x[0] = qmax_in
    x[-1, : channels // 2] = 0
    weight = random.integers(-128, 128, (classes, channels)).astype(np.int8)
    weight[0] = -128
    weight[-1] = 127
    built, bias, multiplier, offset = arrays(weight, random)
    pool_multiplier = float(np.float32(1.3 * pooled.qmax / (qmax_in * height * width)))
    logits = torch.full((batch, classes), 77.0, device=device)
    source = map_of_codes(x, MapFormat(channels, height, width, bits, (1, 0, 2, 1)), device, pad_code=qmax_in)
    head.launch(
        "t", source, layer_on(built, device), zero_point_in=zero_in, pool_multiplier=pool_multiplier, pooled=pooled,
        logits=logits,
    )()
    expected = expected_logits(x, weight, bias, multiplier, offset, zero_in, pool_multiplier, pooled)
    np.testing.assert_array_equal(logits.cpu().numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("magic", [True, False])
def test_small_and_large_sums(magic: bool, device: str) -> None:
    """Sums below 2^22 take the short way to a float; both ways give the same bits."""
    random = np.random.default_rng(7)
    x = random.integers(0, 256, (2, 40, 3, 3), dtype=np.uint8)
    weight = random.integers(-3, 4, (5, 40)).astype(np.int8) if magic else np.full((5, 40), 127, np.int8)
    bias = np.full(5, 0 if magic else 2**27, np.int32)
    multiplier, offset = np.full(5, 0.3, np.float32), np.arange(5, dtype=np.float32)
    built = layer_arrays(weight[:, :, None, None], bias, multiplier, offset, MapFormat(40, 1, 1, 8), 255, 8, 64, 16)
    assert built.magic is magic
    logits = torch.full((2, 5), 77.0, device=device)
    factor = float(np.float32(1 / 9))
    source = map_of_codes(x, MapFormat(40, 3, 3, 8), device)
    head.launch(
        "t", source, layer_on(built, device), zero_point_in=0, pool_multiplier=factor, pooled=Codes(), logits=logits,
    )()
    expected = expected_logits(x, weight, bias, multiplier, offset, 0, factor, Codes())
    np.testing.assert_array_equal(logits.cpu().numpy().view(np.int32), expected.view(np.int32))


def test_operands_that_do_not_fit_are_refused(device: str) -> None:
    random = np.random.default_rng(0)
    built = layer_on(arrays(np.ones((10, 64), np.int8), random)[0], device)
    logits = torch.zeros((1, 10), device=device)
    keywords = {"zero_point_in": 0, "pool_multiplier": 0.1, "pooled": Codes(), "logits": logits}
    with pytest.raises(ValueError, match="expected weights of 10 classes and 32 channels"):
        head.launch("t", empty_map(MapFormat(32, 2, 2, 8), 1, device), built, **keywords)
    with pytest.raises(ValueError, match="expected logits of 2 images"):
        head.launch("t", empty_map(MapFormat(64, 2, 2, 8), 2, device), built, **keywords)
