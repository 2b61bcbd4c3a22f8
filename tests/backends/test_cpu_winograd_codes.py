"""Integer Winograd F(4, 3): its algebra, the proof that a layer fits, and the kernel against the reference, bit for bit, on every
instruction set of this machine, over every tail of rows and columns, extreme values and all epilogues. Arenas are poisoned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan, select, winograd_codes
from tests.backends.graphs import GraphBuilder, pixels
from tests.backends.test_cpu_codes import assert_exact

ISAS = [isa for isa in _native.supported_isas() if isa != "amx"]  # amx has tiles for these layers


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer that can run by F(4, 3) does, however little that saves."""
    monkeypatch.setattr(select, "WINOGRAD_MARGIN", 0.0)


def assert_winograd(graph: Graph, images: np.ndarray, isa: str, layers: int = 1) -> None:
    plan = build_plan(graph, isa)
    assert sum(s.kernel.endswith("_winograd") for s in plan.steps) == layers, str(plan)
    assert_exact(graph, images, isa)


# -- algebra ------------------------------------------------------------------------------------------------------------


def test_the_matrices_convolve() -> None:
    """A^T [(G g) * (B^T d)] is the scaled correlation, for all unit vectors and so for all rows and kernels."""
    for d, g in itertools.product(np.eye(6, dtype=np.int64), np.eye(3, dtype=np.int64)):
        want = np.array([g @ d[q : q + 3] for q in range(4)]) * winograd_codes.SCALES
        np.testing.assert_array_equal(winograd_codes.A_T @ ((winograd_codes.G @ g) * (winograd_codes.B_T @ d)), want)


def test_offsets_make_transformed_inputs_unsigned_and_no_wider_than_their_span() -> None:
    codes = np.array(list(itertools.product((0, 15), repeat=6)), np.int64)  # linear, so the corners hold the extremes
    shifted = codes @ winograd_codes.B_T.T + 15 * winograd_codes.OFFSETS
    np.testing.assert_array_equal(shifted.min(axis=0), 0)
    np.testing.assert_array_equal(shifted.max(axis=0), 15 * winograd_codes.SPANS)
    assert shifted.max() <= 255


@pytest.mark.parametrize("scale", [24, 12, 6])
def test_a_product_with_the_inverse_divides_exactly(scale: int) -> None:
    quotients = np.arange(-(2**24 // scale), 2**24 // scale + 1, dtype=np.int64)
    floats = (quotients * scale).astype(np.float32)
    np.testing.assert_array_equal(floats.astype(np.int64), quotients * scale)
    got = floats * (np.float32(1.0) / np.float32(scale))
    np.testing.assert_array_equal(got, quotients.astype(np.float32))
    assert not np.signbit(got[quotients == 0]).any()


def _fit(weight: np.ndarray, bias: int = 0, qmax: int = 15) -> winograd_codes.WinogradCodes | str:
    return winograd_codes.fit(weight, np.full(weight.shape[0], bias, np.int32), qmax)


def test_layers_that_do_not_fit_are_refused_with_the_reason() -> None:
    weight = np.full((4, 4, 3, 3), -8, np.int8)
    assert isinstance(_fit(weight), winograd_codes.WinogradCodes)
    assert "leave 8 bits" in str(_fit(weight, qmax=26))
    assert "leave 8 bits" in str(_fit(np.full((4, 4, 3, 3), 19, np.int8)))
    limit = 2**24 // 24 - 4 * 9 * 8 * 15
    assert isinstance(_fit(weight, bias=limit), winograd_codes.WinogradCodes)
    assert "no exact float32" in str(_fit(weight, bias=limit + 1))
    assert "no exact float32" in str(_fit(np.full((4, 740, 3, 3), 7, np.int8)))


def test_int16_sums_are_bounded_by_the_weights_themselves() -> None:
    codes = _fit(np.full((4, 4, 3, 3), -8, np.int8))
    assert isinstance(codes, winograd_codes.WinogradCodes)
    # 2 * (span * 15) * |G w|: spans 10, 10, 10, 6, 6, 10, weights 24, 24, 8, 56, 24, 24
    assert codes.pair_sums == (4, 4, 13, 3, 7, 4)


# -- kernel -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("h", range(1, 10))
@pytest.mark.usefixtures("everywhere")
def test_every_tail_of_rows_and_columns(h: int, isa: str) -> None:
    for w in range(1, 10):
        x = "u3" if (h + w) % 2 else "u4"
        b = GraphBuilder((5, h, w), seed=10 * h + w)
        y = b.qconv(b.codes(x), 6, weight_dtype="s3" if x == "u3" else "s4", out=x)
        assert_winograd(b.finish(y), pixels((5, h, w), 17, seed=w), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [12, 13, 16, 20, 29])
@pytest.mark.usefixtures("everywhere")
def test_strips_of_every_width(width: int, isa: str) -> None:
    b = GraphBuilder((4, 3, width), seed=width)
    assert_winograd(b.finish(b.qconv(b.codes("u4"), 4)), pixels((4, 3, width), 16), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("c", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize("oc", [2, 4, 9])
@pytest.mark.usefixtures("everywhere")
def test_channels(c: int, oc: int, isa: str) -> None:
    b = GraphBuilder((c, 5, 6), seed=c + oc)
    y = b.qconv(b.codes("u4"), oc, weight_dtype="s3" if c % 2 else "s4", padding=(c % 3, oc % 3))
    assert_winograd(b.finish(y), pixels((c, 5, 6), 3), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("extreme", [-8, 7])
@pytest.mark.usefixtures("everywhere")
def test_extreme_codes_and_weights(extreme: int, isa: str) -> None:
    """Every corner of the transformed inputs: columns of 0 and 15 in all 64 orders of six neighbours, and constant maps."""
    b = GraphBuilder((64, 4, 6), seed=11)
    graph = b.finish(b.qconv(b.codes("u4"), 8, extreme=extreme, padding=(1, 0)))
    columns = np.array(list(itertools.product((0, 255), repeat=6)), np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(columns[:, None, :, None], (64, 4, 6, 64)))
    assert_winograd(graph, images, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.usefixtures("everywhere")
def test_weights_whose_transforms_are_largest(isa: str) -> None:
    """Signs that follow the rows of G, so that int16 sums come as close to their limit as they can."""
    for signs in ([1, 1, 1], [1, -1, 1], [-1, 1, -1]):
        b = GraphBuilder((32, 4, 8), seed=12)
        y = b.qconv(b.codes("u4"), 4)
        node = b.nodes[-1]
        node.params["weight"][:] = np.where(np.array(signs) > 0, 7, -8)
        assert_winograd(b.finish(y), pixels((32, 4, 8), 20), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("zero_point", [0, 128])
@pytest.mark.parametrize("out", ["u3", "u8"])
@pytest.mark.usefixtures("everywhere")
def test_residuals(out: str, zero_point: int, isa: str) -> None:
    b = GraphBuilder((9, 6, 7), seed=13)
    y = b.qconv(b.codes("u4"), 9, residual=b.codes("u8", zero_point), out=out, zero_point=zero_point if out == "u8" else 0)
    assert_winograd(b.finish(y), pixels((9, 6, 7), 17), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.usefixtures("everywhere")
def test_residual_recode_and_both_outputs(isa: str) -> None:
    """The residual stream of a network: u8 kept for the next residual, recoded for the next layer; and codes only read recoded."""
    b = GraphBuilder((6, 7, 10), seed=14)
    stream = b.qconv("image", 6, weight_dtype="s8")
    inner = b.qconv(b.codes("u4", source=stream), 6, out="u4")
    stream = b.qconv(inner, 6, residual=stream)
    inner = b.qconv(b.codes("u4", source=stream), 6, out="u3", weight_dtype="s3")
    stream = b.qconv(inner, 6, residual=stream, weight_dtype="s3")
    alone = b.qconv(b.codes("u3", source=b.qconv(b.codes("u4", source=stream), 6)), 6)
    assert_winograd(b.finish(stream, alone), pixels((6, 7, 10), 33), isa, layers=6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.usefixtures("everywhere")
def test_recoding_by_any_factor(isa: str) -> None:
    """Factors that one rounded multiplication serves, factors that it does not, and factors beyond 16 bits."""
    b = GraphBuilder((4, 4, 8), seed=15)
    outputs = []
    for k in (1, 2, 255, 3855, 5611, 2933, 65535, 65536, 70000, 200_001):
        codes = b.qconv(b.codes("u4"), 4)
        outputs.append(b.add("qrecode", [codes], {"k": k, "qmin": 0, "qmax": 15}, dtype="u4", scale=0.1))
    assert_winograd(b.finish(*outputs), pixels((4, 4, 8), 18), isa, layers=len(outputs))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.usefixtures("everywhere")
def test_results_beyond_int32(isa: str) -> None:
    """Multipliers so large that floats are clamped before they are rounded."""
    b = GraphBuilder((4, 4, 8), seed=16)
    y = b.qconv(b.codes("u4"), 4)
    b.nodes[-1].params["multiplier"][:] *= np.float32(1e9)
    assert_winograd(b.finish(y), pixels((4, 4, 8), 18), isa)


# -- selection ----------------------------------------------------------------------------------------------------------


def _step(b: GraphBuilder, y: str, isa: str):  # type: ignore[no-untyped-def]
    return next(s for s in build_plan(b.finish(y), isa).steps if y in s.nodes)


@pytest.mark.parametrize("isa", ISAS)
def test_the_plan_says_what_it_saves(isa: str) -> None:
    b = GraphBuilder((64, 8, 10))
    y = b.qconv(b.codes("u4"), 64)
    step = _step(b, y, isa)
    assert step.kernel == "conv2d_u4xs4_u8_winograd" and "F(4,3)" in step.reason
    assert step.macs == 64 * 64 * 9 * 80
    assert step.executed_macs == 64 * 64 * 18 * 8 * 3  # three tiles of four pixels in a row of ten
    assert step.packed_bytes == 64 * 64 * 9 // 2  # held in 4 bits


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "options", [{"stride": (2, 2)}, {"dilation": (2, 2), "padding": (2, 2)}, {"groups": 2}, {"kernel": (1, 1), "padding": (0, 0)},
                {"x": "u8"}, {"weight_dtype": "s8"}], ids=str,
)  # fmt: skip
def test_other_layers_stay_direct(options: dict, isa: str) -> None:
    options = dict(options)
    b = GraphBuilder((64, 8, 8))
    step = _step(b, b.qconv(b.codes(options.pop("x", "u4")), 64, **options), isa)
    assert not step.kernel.endswith("_winograd")
