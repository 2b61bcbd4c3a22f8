"""Float kernels against float64, with bounds derived from the operands, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine import _native, numerics
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.graph import Graph, Node
from hce_engine.plan.cpu import build_plan, select
from hce_engine.plan.winograd import WINOGRAD_G
from tests.backends.graphs import GraphBuilder, pixels

ISAS = _native.supported_isas()
EPS = 2.0**-24  # unit roundoff of binary32


def _sums(node: Node, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum |w| |x| per output, float64."""
    a = node.attrs
    windows = numerics.patches(np.abs(x), weight.shape[2:], a["stride"], a["padding"], a["dilation"], 0.0)
    groups, per, cg = a["groups"], weight.shape[0] // a["groups"], weight.shape[1]
    parts = [
        np.einsum("ncijab,ocab->noij", windows[:, g * cg : (g + 1) * cg], np.abs(weight[g * per : (g + 1) * per]))
        for g in range(groups)
    ]
    return np.concatenate(parts, axis=1)


def direct_bound(node: Node, x: np.ndarray) -> np.ndarray:
    """n sequential roundings: |error| <= gamma_n * (|bias| + sum |w||x|), n = two per tap (the portable kernel rounds product
    and sum), bias, residual, clamp."""
    weight = node.params["weight"].astype(np.float64)
    n = 2 * weight[0].size + 3
    magnitude = _sums(node, x, weight) + np.abs(node.params["bias"]).reshape(1, -1, 1, 1)
    return n * EPS / (1 - n * EPS) * magnitude


def winograd_bound(node: Node, x: np.ndarray) -> np.ndarray:
    """Running error of F(4x4, 3x3), all operations on magnitudes: |A^T| (sum_c |U_c| (|B^T||d||B|)) |A|, times the number
    of roundings on the longest path: 6 per transform dimension (four dimensions), C sums and products, bias, weight."""
    weight = node.params["weight"].astype(np.float64)
    bt = np.array([[4, 0, 5, 0, 1, 0], [0, 4, 4, 1, 1, 0], [0, 4, 4, 1, 1, 0], [0, 2, 1, 2, 1, 0], [0, 2, 1, 2, 1, 0],
                   [0, 4, 0, 5, 0, 1]], np.float64)  # fmt: skip
    at = np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 2, 2, 0], [0, 1, 1, 4, 4, 0], [0, 1, 1, 8, 8, 1]], np.float64)
    u = np.einsum("ia,ocab,jb->ijoc", np.abs(WINOGRAD_G), np.abs(weight), np.abs(WINOGRAD_G))
    n, c, h, w = x.shape
    ph, pw = node.attrs["padding"]
    _, oh, ow = node.spec.shape
    th, tw = -(-oh // 4), -(-ow // 4)
    padded = np.zeros((n, c, 4 * th + 2, 4 * tw + 2))
    padded[:, :, ph : ph + h, pw : pw + w] = np.abs(x)
    y = np.empty((n, weight.shape[0], 4 * th, 4 * tw))
    for i in range(th):
        for j in range(tw):
            d = padded[:, :, 4 * i : 4 * i + 6, 4 * j : 4 * j + 6]
            v = np.einsum("pi,ncij,qj->pqnc", bt, d, bt)
            m = np.einsum("pqnc,pqoc->nopq", v, u)
            y[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = np.einsum("ip,nopq,jq->noij", at, m, at)
    roundings = 4 * 6 + 2 * c + 4
    return roundings * EPS * (y[:, :, :oh, :ow] + np.abs(node.params["bias"]).reshape(1, -1, 1, 1))


CONVS = [
    (3, 16, 9, 11, {}),
    (1, 1, 1, 1, {"kernel": (1, 1), "padding": (0, 0)}),
    (7, 16, 8, 8, {}),
    (16, 7, 8, 8, {}),
    (16, 16, 7, 10, {}),
    (9, 13, 5, 6, {"stride": (2, 2)}),
    (5, 11, 6, 13, {"kernel": (1, 1), "padding": (0, 0), "stride": (3, 2)}),
    (6, 6, 7, 7, {"groups": 6}),
    (6, 9, 7, 6, {"groups": 3, "kernel": (5, 3), "padding": (2, 1)}),
    (17, 18, 9, 9, {"dilation": (2, 3), "padding": (2, 3)}),
    (12, 20, 4, 4, {"padding": (2, 0)}),
    (33, 24, 6, 5, {"low": 0.0, "high": 6.0}),
    (20, 6, 9, 13, {}),
    (64, 5, 7, 7, {}),
    (6, 6, 8, 13, {"groups": 6, "low": 0.0}),
    (5, 5, 9, 6, {"groups": 5, "stride": (2, 2)}),
    (3, 3, 1, 2, {"groups": 3, "stride": (2, 2)}),
    (5, 5, 9, 11, {"groups": 5, "stride": (1, 2)}),
    (4, 4, 9, 7, {"groups": 4, "kernel": (5, 5), "padding": (2, 2)}),
    (4, 4, 9, 9, {"groups": 4, "dilation": (2, 2), "padding": (2, 2)}),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("case", CONVS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}x{c[3]}")
def test_convolution(case: tuple, residual: bool, isa: str) -> None:
    c, oc, h, w, options = case
    b = GraphBuilder((c, h, w), seed=c + oc)
    x = b.normalize()
    y = b.conv(x, oc, **options)
    if residual:
        y = b.conv(x, oc, **options, residual=y)
    graph = b.finish(y)
    images = pixels((c, h, w), 18)
    values = reference.evaluate(graph, images.transpose(0, 3, 1, 2))
    got = CpuBackend(graph, isa=isa, threads=2, poison=True).run(images)["m0"].reshape(values[y].shape)
    node = graph[y]
    winograd = any("winograd" in s.kernel for s in build_plan(graph, isa).steps)
    # Inputs of the checked layer carry an error of their own: one rounding per operation before it.
    data = values[x].astype(np.float64)
    bound = (winograd_bound if winograd else direct_bound)(node, data) + 4 * EPS * (
        _sums(node, data, node.params["weight"].astype(np.float64)) + 1)
    if residual:
        inner = graph[node.inputs[1]]
        bound = bound + (winograd_bound if winograd else direct_bound)(inner, data) + 2 * EPS * np.abs(values[inner.name])
    error = np.abs(got - values[y])
    worst = np.unravel_index(np.argmax(error - bound), error.shape)
    assert (error <= bound).all(), f"at {worst}: got {got[worst]}, expected {values[y][worst]}, bound {bound[worst]:.3g}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (8, 9)])
def test_depthwise_has_the_bits_of_the_direct_kernel(
    size: tuple[int, int], stride: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = GraphBuilder((5, *size), seed=2)
    x = b.normalize()
    y = b.conv(x, 5, groups=5, stride=(stride, stride), low=-0.5, high=1.0)
    if stride == 1:
        y = b.conv(x, 5, groups=5, residual=y)
    graph, images = b.finish(y), pixels((5, *size), 18)
    got = CpuBackend(graph, isa=isa, poison=True).run(images)["m0"]
    assert any(s.kernel == "conv2d_f32_depthwise" for s in build_plan(graph, isa).steps)
    monkeypatch.setattr(select, "depthwise_f32", lambda *_: False)
    assert any(s.kernel == "conv2d_f32" for s in build_plan(graph, isa).steps)
    assert CpuBackend(graph, isa=isa).run(images)["m0"].tobytes() == got.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [(3, 8), (11, 19), (20, 6)], ids=lambda c: f"{c[0]}-{c[1]}")
def test_winograd_bits_do_not_depend_on_where_a_tile_lies(channels: tuple[int, int], isa: str) -> None:
    """Parts of a map, cut at multiples of 4, give the bits of the whole: tiles in pairs across rows, alone, or cut at the end."""
    c, oc = channels

    def run(images: np.ndarray) -> np.ndarray:
        h, w = images.shape[1:3]
        b = GraphBuilder((c, h, w), seed=5)
        graph = b.finish(b.conv(b.normalize(), oc, padding=(0, 0), low=0.0))
        assert any("winograd" in s.kernel for s in build_plan(graph, isa).steps)
        return CpuBackend(graph, isa=isa, threads=1, poison=True).run(images)["m0"].reshape(len(images), oc, h - 2, w - 2)

    images = pixels((c, 18, 26), 17)
    whole = run(images)
    for row, column, h, w in ((4, 4, 12, 20), (8, 16, 4, 4), (0, 8, 8, 8), (12, 0, 4, 24), (0, 20, 16, 4), (0, 0, 15, 23)):
        part = run(np.ascontiguousarray(images[:, row : row + h + 2, column : column + w + 2]))
        assert part.tobytes() == np.ascontiguousarray(whole[:, :, row : row + h, column : column + w]).tobytes()


def test_winograd_error_is_small_in_practice() -> None:
    """The derived bound is loose: on random maps the error was 5e-6 of the largest output when this was written."""
    b = GraphBuilder((32, 16, 16), seed=3)
    x = b.normalize()
    y = b.conv(x, 32)
    graph = b.finish(y)
    images = pixels((32, 16, 16), 16)
    want = reference.evaluate(graph, images.transpose(0, 3, 1, 2))[y]
    got = CpuBackend(graph, threads=1).run(images)["m0"].reshape(want.shape)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def _network(seed: int = 0) -> Graph:
    b = GraphBuilder((3, 12, 10), seed=seed)
    x = b.conv(b.normalize(), 10, low=0.0)
    y = b.conv(x, 10, low=0.0, residual=x)
    z = b.conv(y, 14, stride=(2, 2), low=0.0)
    short = b.add("channel_pad", [b.add("strided_slice", [y], {"h": (0, 12, 2), "w": (0, 10, 2)})], {"before": 2, "after": 2})
    z = b.add("add", [z, short], {"min": 0.0, "max": None})
    z = b.add("max_pool2d", [z], {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})
    z = b.add("avg_pool2d", [z], {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 1), "count_include_pad": 0})
    z = b.add("flatten", [b.add("global_avg_pool", [b.add("concat", [z, z])])])
    weight = np.random.default_rng(seed).normal(0, 1, (5, 28)).astype(np.float32)
    z = b.add("linear", [z], {"min": None, "max": None}, {"weight": weight, "bias": np.zeros(5, np.float32)}, dtype="f32")
    return b.finish(z)


@pytest.mark.parametrize("isa", ISAS)
def test_result_does_not_depend_on_batch_position_or_threads(isa: str) -> None:
    graph = _network()
    images = pixels((3, 12, 10), 53)
    whole = CpuBackend(graph, isa=isa, threads=1).run(images)["m0"]
    expected = reference.run(graph, images.transpose(0, 3, 1, 2))["m0"]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    many = CpuBackend(graph, isa=isa, threads=4, poison=True)
    for count in (1, 7, 16, 17, 53):
        assert many.run(images[:count])["m0"].tobytes() == whole[:count].tobytes()
    order = np.random.default_rng(0).permutation(53)
    assert many.run(np.ascontiguousarray(images[order]))["m0"].tobytes() == whole[order].tobytes()
    for _ in range(20):
        assert many.run(images, concurrent=False)["m0"].tobytes() == whole.tobytes()
    assert many.run(images[:0])["m0"].shape == (0, 5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_image_spoils_only_itself(bad: float, isa: str) -> None:
    b = GraphBuilder((2, 6, 6), dtype="f32", seed=4)
    floats = b.conv(b.add("normalize", ["image"], {}, {"scale": np.ones(2, np.float32), "offset": np.zeros(2, np.float32)},
                          dtype="f32"), 4, low=0.0)
    codes = b.add("quantize_input", ["image"], {"low": 0.0, "multiplier": 255.0}, dtype="u8", scale=1 / 255)
    graph = b.finish(floats, b.qconv(codes, 4, weight_dtype="s8"))
    images = np.random.default_rng(2).random((20, 2, 6, 6), np.float32)
    images[4] *= 1e-40  # denormals are values like any other
    clean = CpuBackend(graph, isa=isa, threads=1).run(images)
    reference_rows = reference.run(graph, images)
    np.testing.assert_array_equal(clean["m1"], reference_rows["m1"])
    spoiled = images.copy()
    spoiled[9, 1, 3, 2] = bad
    result = CpuBackend(graph, isa=isa, threads=2).run(spoiled)
    for name in ("m0", "m1"):
        assert np.isnan(result[name][9]).all()
        keep = np.arange(20) != 9
        assert result[name][keep].tobytes() == clean[name][keep].tobytes()
    assert all(np.isnan(z[9]).all() for z in reference.run(graph, spoiled).values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalised_images_of_every_width(width: int, channels: int, isa: str) -> None:
    """Two roundings per pixel, so the bits are those of the reference; empty lanes are not read."""
    b = GraphBuilder((channels, 2, width))
    graph = b.finish(b.normalize())
    images = pixels((channels, 2, width), 19)
    expected = reference.run(graph, images.transpose(0, 3, 1, 2))["m0"]
    assert CpuBackend(graph, isa=isa, poison=True).run(images)["m0"].tobytes() == expected.tobytes()
