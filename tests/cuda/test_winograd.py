"""The Winograd kernel of csrc/cuda on threads of the operating system, under sanitizers, against float64; and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hce_engine.plan.cpu.weights import blocks_winograd
from hce_engine.plan.cuda.lanes_select import even_channels
from hce_engine.plan.cuda.winograd_weights import G, pack_winograd

from .sanitized import run_sanitized
from .winograd_error import AT, BT, winograd_bound

SOURCE = Path(__file__).with_name("host_winograd.cpp")
TILE = 32
SLACK = 2


@dataclass(frozen=True)
class Case:
    m: int
    tiles: int
    h: int
    w: int
    inputs: int
    outputs: int
    register_tiles: int
    limit: int  # on the outputs of a block
    groups: int
    chunk: int
    blocks: int = 0
    residual: int = 0  # 1: a map of its own, 2: the output's own memory
    relu: bool = False
    tile_groups: int = 1

    def config(self) -> tuple[int, ...]:
        return (self.m, self.register_tiles, even_channels(self.outputs, self.limit), self.groups, self.tile_groups, self.chunk,
                self.blocks)


@dataclass
class Layer:
    """x [tiles, H + 2, W + 2, C + SLACK, 32] with zeros for a halo and NaN in slack; weight, bias; residual, y likewise."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    y: np.ndarray


Run = Callable[[str, Case, Layer], "tuple[int, str, np.ndarray]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(sanitizer, case, layer) -> exit status, what the program printed, y."""
    folder = tmp_path_factory.mktemp("host_winograd")

    def start(sanitizer: str, case: Case, layer: Layer) -> tuple[int, str, np.ndarray]:
        packed = pack_winograd(layer.weight, case.m, case.config()[2])
        header = np.array([case.tiles, case.h, case.w, case.inputs, case.outputs, SLACK, case.residual, *case.config(), packed.size, 0],
                          np.int32)
        limits = np.array([0, 1.5] if case.relu else [-np.inf, np.inf], np.float32)
        arrays = [header, limits, layer.x, packed, layer.bias, layer.y, *([layer.residual] if case.residual == 1 else [])]
        (folder / "in").write_bytes(b"".join(a.tobytes() for a in arrays))
        done = run_sanitized(SOURCE, sanitizer, folder, str(folder / "in"), str(folder / "out"))
        y = np.fromfile(folder / "out", np.float32) if done.returncode == 0 else layer.y
        return done.returncode, done.stdout + done.stderr, y.reshape(layer.y.shape)

    return start


def layer_of(case: Case) -> Layer:
    rng = np.random.default_rng(case.inputs * 64 + case.outputs)

    def lanes(channels: int, halo: int) -> np.ndarray:
        v = rng.uniform(-1, 1, (case.tiles, case.h + 2 * halo, case.w + 2 * halo, channels + SLACK, TILE)).astype(np.float32)
        v[:, :, :, channels:] = np.nan
        return v

    x = np.zeros((case.tiles, case.h + 2, case.w + 2, case.inputs + SLACK, TILE), np.float32)
    x[:, 1:-1, 1:-1] = lanes(case.inputs, 0)
    x[:, :, :, case.inputs :] = np.nan
    weight = rng.uniform(-1, 1, (case.outputs, case.inputs, 3, 3)).astype(np.float32)
    return Layer(x, weight, rng.uniform(-1, 1, case.outputs).astype(np.float32), lanes(case.outputs, 0), lanes(case.outputs, 1))


def residual_of(case: Case, layer: Layer) -> np.ndarray:
    """[tiles, H, W, OC, 32]; zero without one."""
    source = layer.y[:, 1:-1, 1:-1] if case.residual == 2 else layer.residual
    return source[:, :, :, : case.outputs].astype(np.float64) * (case.residual > 0)


def exact(case: Case, layer: Layer) -> np.ndarray:
    """[tiles, H, W, OC, 32], float64, before the clamp."""
    windows = np.lib.stride_tricks.sliding_window_view(layer.x[:, :, :, : case.inputs].astype(np.float64), (3, 3), axis=(1, 2))
    sums = np.einsum("tijcnab,ocab->tijon", windows, layer.weight.astype(np.float64))
    return sums + layer.bias[:, None] + residual_of(case, layer)


def error_bound(case: Case, layer: Layer) -> np.ndarray:
    """[tiles, H, W, OC, 32]"""

    def planes(lanes: np.ndarray) -> np.ndarray:
        return np.abs(lanes.astype(np.float64)).transpose(0, 4, 3, 1, 2).reshape(case.tiles * TILE, -1, *lanes.shape[1:3])

    others = planes(residual_of(case, layer)) + np.abs(layer.bias)[:, None, None]
    bound = winograd_bound(case.m, planes(layer.x[:, :, :, : case.inputs]), layer.weight, others)
    return bound.reshape(case.tiles, TILE, case.outputs, case.h, case.w).transpose(0, 3, 4, 2, 1)


CASES = [
    Case(4, 1, 5, 7, 3, 9, 2, 9, 1, 3, residual=1, relu=True),            # partial tiles on both sides, one tile left over
    Case(4, 2, 4, 4, 5, 17, 1, 9, 2, 2, blocks=1),                        # 9 + 8 outputs in two groups, three chunks, two tiles
    Case(4, 1, 9, 4, 1, 1, 2, 9, 1, 1, residual=2),                       # one channel; the residual lies where y does
    Case(4, 1, 4, 6, 2, 33, 1, 11, 2, 2, relu=True),                      # 11 x 3 outputs: half of the last block idles
    Case(4, 3, 4, 5, 11, 3, 2, 3, 1, 11, blocks=2, residual=1, tile_groups=2),  # more channels than products, odd number of tiles
    Case(2, 1, 3, 5, 9, 10, 2, 10, 1, 9, residual=1, relu=True),
    Case(2, 2, 2, 2, 7, 16, 1, 16, 1, 3, blocks=1, residual=2, tile_groups=3),  # the smallest map
    Case(2, 1, 5, 2, 3, 23, 1, 6, 4, 3, residual=1),                      # 6 + 6 + 6 + 5 in four groups
    Case(2, 1, 7, 3, 17, 3, 1, 2, 3, 16, relu=True),                      # a chunk of one channel; one group idles
]  # fmt: skip


def test_the_matrices_make_a_convolution() -> None:
    for m in (2, 4):
        w, d = np.arange(1, 4) / 3, np.cos(np.arange(m + 2))
        want = [w @ d[i : i + 3] for i in range(m)]
        np.testing.assert_allclose(AT[m] @ ((G[m] @ w) * (BT[m] @ d)), want, rtol=1e-12)


def test_weights_in_order() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 2, 3, 3)).astype(np.float32)
    for m in (2, 4):
        frequencies = (m + 2) ** 2
        packed = pack_winograd(weight, m, 3).reshape(2, 2, frequencies // 4, 1, 4, 4)  # 3 + 2 outputs
        for o in range(5):
            for c in range(2):
                u = (G[m] @ weight[o, c].astype(np.float64) @ G[m].T).astype(np.float32).ravel()
                np.testing.assert_array_max_ulp(packed[o // 3, c, :, 0, :, o % 3].ravel(), u)  # float64 sums in another order
        assert not packed[0, :, :, :, :, 3:].any() and not packed[1, :, :, :, :, 2:].any()
    with pytest.raises(ValueError, match=r"even cut of OC, got \(5, 2, 3, 3\), 4 and 4"):
        pack_winograd(weight, 4, 4)


def test_the_cpu_has_the_same_weights() -> None:
    weight = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32)
    cpu, _ = blocks_winograd(weight, 4)  # [36][C][OC]
    gpu = pack_winograd(weight, 4, 4).reshape(3, 9, 4, 4)  # [C][f / 4][f % 4][OC]
    np.testing.assert_array_equal(gpu.transpose(1, 2, 0, 3).ravel(), cpu)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"F{c.m}-{c.h}x{c.w}-{c.inputs}-{c.outputs}")
def test_kernel_on_threads(run: Run, sanitizer: str, case: Case) -> None:
    layer = layer_of(case)
    layer.x[0, 2, 1, 0, 3] = np.nan  # spoils image 3 of tile 0 and no other
    status, text, y = run(sanitizer, case, layer)
    assert status == 0, text
    assert "Sanitizer" not in text
    got, want, bound = y[:, 1:-1, 1:-1, : case.outputs], exact(case, layer), error_bound(case, layer)
    if case.relu:
        want = np.clip(want, 0, 1.5)
    spoiled = np.zeros(got.shape, bool)
    spoiled[0, ..., 3] = True
    assert np.isnan(got[0, 0, 0, :, 3]).all()
    error = np.where(spoiled, 0, np.abs(got - want))
    assert (error <= np.where(spoiled, 0, bound)).all(), np.unravel_index(np.argmax(error - bound), error.shape)
    y[:, 1:-1, 1:-1, : case.outputs] = layer.y[:, 1:-1, 1:-1, : case.outputs]
    np.testing.assert_array_equal(y.view(np.uint32), layer.y.view(np.uint32), "the halo or a channel of another map was written")


@pytest.mark.parametrize("m", [2, 4])
def test_the_configuration_does_not_show(run: Run, m: int) -> None:
    case = Case(m, 1, 6, 7, 4, 9, 2, 9, 1, 4, residual=1)
    layer = layer_of(case)
    others = [replace(case, register_tiles=1, limit=5, groups=2, chunk=3, tile_groups=1 if m == 4 else 2), replace(case, register_tiles=1, limit=3, chunk=1, blocks=2)]
    results = []
    for each in (case, *others):
        status, text, y = run("address", each, layer)
        assert status == 0, text
        results.append(y.view(np.uint32))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(("change", "message"), [
    ({"m": 4, "h": 3}, "a map of at least one tile"),
    ({"chunk": 2}, "all input channels in one chunk"),
    ({"register_tiles": 1, "chunk": 5}, "a chunk of 1 to all input channels"),
    ({"register_tiles": 3}, "1 or 2 tiles"),
    ({"outputs": 11, "limit": 11}, "a register tile of fewer channels"),
    ({"groups": 5}, "fewer groups"),
    ({"inputs": 200, "chunk": 200, "register_tiles": 1}, "it exceeds shared memory"),
])  # fmt: skip
def test_wrong_arguments_are_refused(run: Run, change: dict[str, int], message: str) -> None:
    case = replace(Case(2, 1, 3, 4, 4, 9, 2, 9, 1, 4), **change)
    status, text, _ = run("address", case, layer_of(case))
    assert status == 3 and message in text
