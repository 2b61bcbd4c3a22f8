"""The packed matrix product against the reference, bit for bit, over odd shapes, tails and extreme values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch

from hce_engine import numerics
from hce_engine.kernels import gemm
from hce_engine.kernels.configurations import GemmConfig, default_gemm_config, gemm_candidates
from hce_engine.kernels.description import Codes
from hce_engine.kernels.device import DeviceLayer, DeviceMap, empty_map, layer_on, map_of_codes
from hce_engine.kernels.formats import BITS, Halo, MapFormat
from hce_engine.kernels.launch import Launch, Recoded, Residual
from hce_engine.kernels.layer import layer_arrays

FILL = 85  # byte of outputs before the run


@dataclass
class Layer:
    """Operands of one product on the host, and what the reference makes of them."""

    x: np.ndarray  # uint8 [M, K]
    weight: np.ndarray  # int8 [N, K]
    bias: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray
    x_bits: int

    @property
    def acc(self) -> np.ndarray:
        return (self.x.astype(np.int64) @ self.weight.astype(np.int64).T + self.bias).astype(np.int32)

    def operands(self, config: GemmConfig, device: str, halo: Halo = (0, 0, 0, 0)) -> tuple[DeviceMap, DeviceLayer]:
        form = MapFormat(self.x.shape[1], 1, 1, self.x_bits, halo)
        arrays = layer_arrays(
            self.weight[:, :, None, None], self.bias, self.multiplier, self.offset, form, (1 << self.x_bits) - 1,
            config.weight_bits, config.block_k, config.block_n,
        )
        return map_of_codes(self.x[:, :, None, None], form, device), layer_on(arrays, device)


def random_layer(m: int, n: int, k: int, x_bits: int, weight_bits: int, seed: int = 0, rail: bool = False) -> Layer:
    """rail: every code and every weight at an end of its range, and one output channel at the bound of its sums."""
    rng = np.random.default_rng(seed)
    qmax, limit = (1 << x_bits) - 1, 1 << (weight_bits - 1)
    if rail:
        x = rng.choice(np.array([0, qmax], np.uint8), (m, k))
        weight = rng.choice(np.array([-limit, limit - 1], np.int8), (n, k))
        x[0], weight[0] = qmax, -limit
    else:
        x = rng.integers(0, qmax + 1, (m, k)).astype(np.uint8)
        weight = rng.integers(-limit, limit, (n, k)).astype(np.int8)
    bias = rng.integers(-1000, 1000, n).astype(np.int32)
    # Codes of 4 bits spread over their range; of 8 bits, over a part of it.
    spread = np.sqrt(k) * qmax * limit / 3
    multiplier = (rng.uniform(0.5, 1.5, n) * 8 / spread).astype(np.float32)
    return Layer(x, weight, bias, multiplier, rng.normal(size=n).astype(np.float32), x_bits)


def workspace_of(rows: int, layer: DeviceLayer, config: GemmConfig, device: str) -> torch.Tensor | None:
    size = gemm.workspace_size(rows, layer, config)
    return torch.zeros(size, dtype=torch.int32, device=device) if size else None


def run(launches: Sequence[Launch]) -> None:
    for each in launches:
        each()


def check_codes(
    layer: Layer, config: GemmConfig, device: str, y_bits: int = 8, residual: bool = False, recoded_bits: int = 0,
    halo: Halo = (0, 0, 0, 0),
) -> None:
    (m, _), n = layer.x.shape, layer.weight.shape[0]
    x, on_device = layer.operands(config, device, halo)
    codes = Codes(128 if residual else 0, 3 if y_bits == 8 else 0, (1 << y_bits) - 1)
    y = empty_map(MapFormat(n, 1, 1, y_bits, halo), m, device, 1, FILL)
    of_reference, of_launch = {}, {}
    if residual:
        r = np.random.default_rng(1).integers(0, 256, (m, n), dtype=np.uint8)
        of_reference = {"residual": r, "residual_zero_point": 7, "residual_multiplier": 0.13}
        of_launch = {"residual": Residual(map_of_codes(r[:, :, None, None], MapFormat(n, 1, 1, 8), device), 7, 0.13)}
    second = None
    if recoded_bits:
        form = MapFormat(n, 1, 1, recoded_bits, halo)
        second = Recoded(empty_map(form, m, device, 1, FILL), Codes(0, 0, (1 << recoded_bits) - 1), 9000)
    workspace = workspace_of(m, on_device, config, device)
    launches = gemm.launch(
        "test", x, on_device, config, y=y, codes=codes, recoded=second, workspace=workspace, **of_launch
    )
    assert len(launches) == (2 if config.split_k > 1 else 1)
    run(launches)
    wanted = numerics.requantize(
        layer.acc, layer.multiplier, zero_point=codes.zero_point, qmin=codes.qmin, qmax=codes.qmax, **of_reference
    )
    np.testing.assert_array_equal(y.codes()[:, :, 0, 0], wanted)
    if second is not None:
        narrow = numerics.recode(
            wanted, 9000, zero_point_in=codes.zero_point, zero_point=0, qmin=0, qmax=second.codes.qmax
        )
        np.testing.assert_array_equal(second.map.codes()[:, :, 0, 0], narrow)
    if any(halo):
        assert halo_bytes(y) == halo_bytes(empty_map(y.form, m, device, 1, FILL))
    if workspace is not None:
        assert not workspace.any()


def halo_bytes(value: DeviceMap) -> list[bytes]:
    """What surrounds the pixel of every image, per plane."""
    form, found = value.form, []
    for plane, size, pixel in zip(value.planes, form.image_bytes, form.pixel_bytes, strict=True):
        images = plane[: value.batch * size].cpu().numpy().reshape(value.batch, form.rows * form.columns, pixel)
        found.append(np.delete(images, form.halo[0] * form.columns + form.halo[1], axis=1).tobytes())
    return found


def check_logits(layer: Layer, config: GemmConfig, device: str, calls: int = 1) -> None:
    m, n = layer.x.shape[0], layer.weight.shape[0]
    x, on_device = layer.operands(config, device)
    logits = torch.full((m, n), torch.nan, device=device)
    workspace = workspace_of(m, on_device, config, device)
    launches = gemm.launch("test", x, on_device, config, logits=logits, workspace=workspace)
    wanted = numerics.logits(layer.acc, layer.multiplier, layer.offset)
    for _ in range(calls):
        logits.fill_(torch.nan)
        run(launches)
        np.testing.assert_array_equal(logits.cpu().numpy().view(np.int32), wanted.view(np.int32))
        assert workspace is None or not workspace.any()


def grid() -> list[tuple]:
    """Every pair of widths with every output, over shapes that no tile divides."""
    found = []
    for i, (x_bits, weight_bits, output) in enumerate(product(BITS, BITS, ("residual", "codes", "logits"))):
        m, n, k = (1, 3, 16, 33, 70)[i % 5], (1, 10, 17, 40)[i % 4], (300, 33, 64, 100, 3)[(i // 2) % 5]
        step = 32 * (8 if weight_bits == 3 else 2 if weight_bits == 4 or x_bits < 8 else 1)
        split = min((1, 2, 5)[(i // 3) % 3], max(k // step, 1))
        config = GemmConfig((16, 32)[i % 2], (16, 32)[(i // 2) % 2], 32, weight_bits, split, bool((i // 4) % 2), 4, 3)
        found.append((m, n, k, x_bits, weight_bits, output, config))
    return found


@pytest.mark.parametrize(("m", "n", "k", "x_bits", "weight_bits", "output", "config"), grid())
def test_equals_the_reference(m, n, k, x_bits, weight_bits, output, config, device):
    layer = random_layer(m, n, k, x_bits, weight_bits)
    if output == "logits":
        check_logits(layer, config, device)
    elif output == "codes":
        check_codes(layer, config, device, y_bits=x_bits)
    else:
        check_codes(layer, config, device, residual=True, recoded_bits=min(x_bits, 4))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("split_k", [1, 2, 5])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_every_split_in_both_forms(split_k, swap, weight_bits, device):
    config = GemmConfig(16, 16, 32, weight_bits, split_k, swap, 4, 3)
    check_codes(random_layer(19, 17, 330, 4, weight_bits), config, device, y_bits=4)


def test_three_bits_split(device):
    check_logits(random_layer(17, 17, 1300, 3, 3), GemmConfig(16, 16, 32, 3, 5, True, 4, 3), device)


@pytest.mark.parametrize(
    ("x_bits", "weight_bits", "k", "magic"), [(8, 8, 500, False), (3, 3, 300, True), (4, 4, 64, True)]
)
@pytest.mark.parametrize("split_k", [1, 2])
def test_full_rail(x_bits, weight_bits, k, magic, split_k, device):
    """Sums at their bound, for biases that carry the float of the epilogue and for those that do not."""
    config = GemmConfig(16, 16, 32, weight_bits, split_k if k > 64 else 1, x_bits == 8, 4, 3)
    layer = random_layer(5, 10, k, x_bits, weight_bits, rail=True)
    assert layer.operands(config, "cpu")[1].arrays.magic == magic
    check_codes(layer, config, device, residual=True, recoded_bits=3)
    check_logits(layer, config, device)


def test_weights_stored_wider_than_they_are(device):
    check_codes(random_layer(9, 17, 100, 4, 3), GemmConfig(16, 32, 32, 8, 1, False, 4, 3), device, y_bits=3)


def test_a_halo_is_kept(device):
    check_codes(random_layer(5, 17, 40, 4, 4), GemmConfig(16, 32, 32, 4, 1, True, 4, 3), device, 4, halo=(1, 0, 1, 2))


def test_workspace_is_zero_again_after_every_call(device):
    check_logits(random_layer(33, 10, 300, 8, 4), GemmConfig(16, 16, 32, 4, 5, True, 4, 3), device, calls=3)


def test_blocks_of_rows_in_more_than_one_group(device):
    """More blocks of rows than are walked together, the last group not full."""
    assert 16 * gemm.GROUP < 150
    check_logits(random_layer(150, 40, 33, 4, 8), GemmConfig(16, 16, 32, 8, 1, False, 4, 3), device)


def test_candidates_equal_the_reference(device):
    layer, form = random_layer(9, 24, 600, 4, 4), MapFormat(600, 1, 1, 4)
    candidates = gemm_candidates((24, 600, 1, 1), form, 9, (4, 8))
    assert candidates[0] == default_gemm_config((24, 600, 1, 1), form, 9, (4, 8))
    assert len(set(candidates)) == len(candidates) > 4
    for config in candidates[:: max(1, len(candidates) // 4)]:
        check_codes(layer, config, device, y_bits=4)


@pytest.mark.parametrize("x_bits", BITS)
@pytest.mark.parametrize("shape", [(8192, 8192), (1000, 1280), (10, 64), (1, 3)])
def test_every_candidate_is_valid(shape, x_bits):
    n, k = shape
    for rows, bits in product((1, 16, 65, 5000), BITS):
        x = MapFormat(k, 1, 1, x_bits)
        for config in gemm_candidates((n, k, 1, 1), x, rows, sorted({bits, 8})):
            assert config.weight_bits in (bits, 8) and config.split_k >= 1 and 3 <= config.num_stages <= 6
            assert 32 * config.num_warps * 128 >= config.block_m * config.block_n


def test_defaults_follow_the_roofline():
    for x_bits, bits in product((8, 4), (4, 3)):
        x = MapFormat(8192, 1, 1, x_bits)
        few = [default_gemm_config((8192, 8192, 1, 1), x, rows, (bits, 8)) for rows in (1, 16, 32)]
        assert all(config.weight_bits == bits and config.swap for config in few)
        many = [default_gemm_config((8192, 8192, 1, 1), x, rows, (bits, 8)) for rows in (1024, 4096)]
        assert all(config.weight_bits == 8 and config.split_k == 1 and not config.swap for config in many)


GOOD = GemmConfig(16, 16, 32, 4, 2, True, 4, 3)


@pytest.mark.parametrize(("changes", "message"), [
    ({"block_n": 32}, "weights cut as"),
    ({"weight_bits": 8}, "weights cut as"),
    ({"block_m": 24}, "block_m a power of two"),
    ({"num_warps": 3}, "num_warps a power of two"),
    ({"split_k": 0}, "split_k of 1 to the 2 steps"),
    ({"split_k": 3}, "split_k of 1 to the 2 steps"),
])
def test_wrong_configurations_raise(changes, message):
    x, layer = random_layer(3, 10, 100, 4, 4).operands(GOOD, "cpu")
    logits, workspace = torch.empty(3, 10), torch.zeros(3 * 32, dtype=torch.int32)
    assert gemm.launch("test", x, layer, GOOD, logits=logits, workspace=workspace)
    with pytest.raises(ValueError, match=message):
        gemm.launch("test", x, layer, replace(GOOD, **changes), logits=logits, workspace=workspace)


def test_operands_that_do_not_fit_raise():
    x, layer = random_layer(3, 10, 100, 4, 4).operands(GOOD, "cpu")
    logits, workspace = torch.empty(3, 10), torch.zeros(3 * 16, dtype=torch.int32)

    def refused(message: str, **changes: object) -> None:
        arguments = {"x": x, "layer": layer, "config": GOOD, "logits": logits, "workspace": workspace} | changes
        with pytest.raises(ValueError, match=message):
            gemm.launch("test", **arguments)

    refused("a workspace, got none", workspace=None)
    refused("a workspace of 48 elements", workspace=workspace[:47])
    refused("int32 workspace", workspace=workspace.float())
    refused("logits of 3 images", logits=torch.empty(4, 10))
    refused("channels of logits", logits=torch.empty(3, 17))
    refused("float32 logits", logits=torch.empty(3, 10, dtype=torch.float64))
    refused("an output", logits=None)
    refused("a map of one pixel", x=empty_map(MapFormat(100, 1, 2, 4), 3, "cpu"))
    refused("weights for 64 codes", x=empty_map(MapFormat(64, 1, 1, 4), 3, "cpu"))
    refused("y of 1 x 1 x 3 images", logits=None, y=empty_map(MapFormat(10, 1, 1, 4), 4, "cpu"), codes=Codes(qmax=15))
    refused("codes of 4 bits", logits=None, y=empty_map(MapFormat(10, 1, 1, 4), 3, "cpu"), codes=Codes(qmax=255))
    # A row of as many codes, but a step of 4-bit codes has two sub-tiles.
    wide = replace(GOOD, weight_bits=8)
    other = random_layer(3, 10, 128, 8, 8).operands(wide, "cpu")[1]
    refused("in 2 sub-tiles", x=empty_map(MapFormat(128, 1, 1, 4), 3, "cpu"), layer=other, config=wide)
