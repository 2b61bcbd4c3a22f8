"""Integer kernels equal the reference bit for bit, on every instruction set of this machine, over odd shapes, group
borders, tails and extreme values. Arenas are poisoned, so a byte that nobody wrote shows."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan, weights
from tests.backends.graphs import GraphBuilder, pixels

ISAS = _native.supported_isas()


def assert_exact(graph: Graph, images: np.ndarray, isa: str) -> None:
    expected = reference.run(graph, images.transpose(0, 3, 1, 2))
    got = CpuBackend(graph, isa=isa, threads=2, poison=True).run(images)
    for name, want in expected.items():
        wrong = np.argwhere(got[name] != want)
        if len(wrong):
            n, k = wrong[0]
            pytest.fail(f"{len(wrong)} of {want.size} values differ; first at image {n}, element {k}: "
                        f"got {got[name][n, k]}, expected {want[n, k]}")


# C, OC, H, W, options
CONVS = [
    (3, 16, 9, 11, {"weight_dtype": "s8", "pad_code": [124, 117, 104]}),
    (1, 1, 1, 1, {"kernel": (1, 1), "padding": (0, 0)}),
    (5, 7, 6, 5, {}),
    (16, 16, 8, 8, {"x": "u4"}),
    (16, 16, 8, 8, {"x": "u3", "weight_dtype": "s3", "out": "u3"}),
    (13, 9, 7, 7, {"x": "u4", "out": "u4", "stride": (2, 2)}),
    (8, 12, 5, 9, {"x": "u4", "kernel": (5, 3), "padding": (2, 1), "stride": (1, 2)}),
    (6, 6, 7, 7, {"groups": 6}),
    (6, 12, 7, 6, {"groups": 3, "x": "u4"}),
    (10, 15, 5, 5, {"groups": 5, "weight_dtype": "s3", "x": "u3"}),
    (17, 18, 9, 9, {"dilation": (2, 3), "padding": (2, 3)}),
    (4, 5, 6, 13, {"kernel": (1, 1), "padding": (0, 0), "stride": (3, 2)}),
    (9, 10, 5, 4, {"x": "u8z", "out": "u8", "zero_point": 128}),
    (9, 10, 5, 4, {"x": "u8z", "out": "u4", "weight_dtype": "s8"}),
    (7, 6, 3, 3, {"kernel": (4, 2), "padding": (3, 1)}),
    (12, 4, 4, 4, {"x": "u8", "qmax": 200, "weight_dtype": "s8"}),
    (8, 8, 6, 6, {"x": "u8", "weight_dtype": "s8", "extreme": -128}),
    (8, 8, 6, 6, {"x": "u8", "weight_dtype": "s8", "extreme": 127}),
    (8, 8, 6, 6, {"x": "u8", "weight_dtype": "s4", "extreme": -8}),
    (8, 8, 6, 6, {"x": "u4", "weight_dtype": "s4", "extreme": -8}),
    (8, 8, 6, 6, {"x": "u3", "weight_dtype": "s3", "extreme": -4}),
    (64, 8, 4, 4, {"x": "u4"}),
    (3, 28, 5, 7, {"x": "u4", "out": "u4"}),
    (16, 16, 4, 4, {"groups": 2, "x": "u4"}),
    (9, 27, 4, 4, {"groups": 3, "x": "u4"}),
    # depthwise: strides, odd rows and columns, windows beyond four rows, channels that fill half a unit, every weight width
    (5, 5, 8, 9, {"groups": 5, "x": "u4", "out": "u4"}),
    (8, 8, 9, 9, {"groups": 8, "x": "u4", "stride": (2, 2)}),
    (12, 12, 7, 10, {"groups": 12, "x": "u8z", "weight_dtype": "s8"}),
    (4, 4, 9, 8, {"groups": 4, "x": "u8", "weight_dtype": "s8", "extreme": -128}),
    (4, 4, 9, 8, {"groups": 4, "x": "u8", "weight_dtype": "s4", "extreme": -8, "stride": (1, 2)}),
    (6, 6, 11, 7, {"groups": 6, "x": "u4", "kernel": (5, 5), "padding": (2, 2)}),
    (6, 6, 12, 13, {"groups": 6, "x": "u8", "kernel": (7, 4), "padding": (3, 1), "stride": (2, 3)}),
    (7, 7, 9, 11, {"groups": 7, "x": "u4", "dilation": (2, 3), "padding": (2, 3)}),
    (2, 2, 3, 70, {"groups": 2, "x": "u4", "weight_dtype": "s3"}),
    (2, 2, 3, 75, {"groups": 2, "x": "u4", "stride": (2, 2)}),
    (2, 2, 2, 70, {"groups": 2, "x": "u4", "kernel": (2, 65), "padding": (0, 32)}),
    (3, 3, 6, 6, {"groups": 3, "x": "u4", "kernel": (4, 1), "padding": (2, 0)}),
    (3, 3, 1, 1, {"groups": 3, "x": "u3", "weight_dtype": "s3"}),
]


def _case_id(case: tuple) -> str:
    c, oc, h, w, options = case
    return f"{c}-{oc}-{h}x{w}-" + "-".join(f"{k}{v}" for k, v in options.items()).replace(" ", "")


def _input(b: GraphBuilder, kind: str | None) -> str:
    if kind is None:
        return "image"
    return b.codes("u8", 128) if kind == "u8z" else b.codes(kind)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CONVS, ids=_case_id)
def test_convolution(case: tuple, isa: str) -> None:
    c, oc, h, w, options = case
    options = dict(options)
    b = GraphBuilder((c, h, w), seed=c * 100 + oc)
    y = b.qconv(_input(b, options.pop("x", None)), oc, **options)
    assert_exact(b.finish(y), pixels((c, h, w), 19), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(12))
def test_random_convolution(seed: int, isa: str) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 2, 3]))
    c, oc = groups * int(rng.integers(1, 9)), groups * int(rng.integers(1, 9))
    h, w = (int(v) for v in rng.integers(3, 12, 2))
    kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
    b = GraphBuilder((c, h, w), seed=seed)
    x = _input(b, str(rng.choice(["u8", "u4", "u3", "u8z"])))
    y = b.qconv(
        x, oc, kernel=kernel, stride=tuple(int(v) for v in rng.integers(1, 4, 2)),
        padding=tuple(int(v) for v in rng.integers(0, 3, 2)), groups=groups, weight_dtype=str(rng.choice(["s3", "s4", "s8"])),
        out=str(rng.choice(["u3", "u4", "u8"])),
    )
    assert_exact(b.finish(y), pixels((c, h, w), int(rng.integers(1, 40)), seed), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("zero_point", "extreme"), [(0, None), (128, None), (128, 127)])
def test_residual(zero_point: int, extreme: int | None, isa: str) -> None:
    b = GraphBuilder((9, 6, 7), seed=5)
    r = b.codes("u8", zero_point)
    for groups in (1, 9):
        y = b.qconv(b.codes("u4"), 9, residual=r, weight_dtype="s8" if extreme else "s4", extreme=extreme, groups=groups)
        assert_exact(b.finish(y), pixels((9, 6, 7), 17), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 6])
def test_recode_in_the_epilogue_and_alone(groups: int, isa: str) -> None:
    """A stream read both as it is and recoded, twice; and codes that are only read recoded."""
    b = GraphBuilder((6, 5, 5), seed=6)
    stream = b.qconv("image", 6, weight_dtype="s8", groups=groups)
    first, second = b.codes("u4", source=stream), b.codes("u3", source=stream)
    a = b.qconv(first, 6, residual=stream, groups=groups)
    c = b.qconv(b.codes("u4", source=b.qconv(second, 6, groups=groups)), 6)
    assert_exact(b.finish(a, c), pixels((6, 5, 5), 33), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shared", [False, True])
def test_input_pixels_of_a_depthwise_layer_lie_an_odd_number_of_lines_apart(shared: bool, isa: str) -> None:
    b = GraphBuilder((5, 6, 7), seed=3)
    x = b.qconv("image", 16, weight_dtype="s8", out="u4")
    y = b.qconv(x, 16, groups=16, stride=(2, 2), out="u4")
    if shared:
        y = b.qconv(b.add("strided_slice", [x], {"h": (0, 6, 2), "w": (0, 7, 2)}), 16, kernel=(1, 1), padding=(0, 0), residual=y)
    graph = b.finish(y)
    inputs = [s.reads["x"] for s in build_plan(graph, isa).steps if s.kernel.endswith("depthwise")]
    assert [m.pixel // 64 for m in inputs] == [4 if shared else 5]
    assert_exact(graph, pixels((5, 6, 7), 19), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 6])
def test_results_that_leave_int32(groups: int, isa: str) -> None:
    """Floats are clamped before they are converted where the plan cannot prove that they fit."""
    b = GraphBuilder((6, 5, 9), seed=4)
    y = b.qconv("image", 6, groups=groups)
    node = next(n for n in b.nodes if n.name == y)
    node.params["multiplier"][:3] = (1e7, -1e7, 0)
    graph = b.finish(y)
    assert not next(s for s in build_plan(graph, isa).steps if s.method == "conv_u8").arguments["fits_int32"]
    assert_exact(graph, pixels((6, 5, 9), 18), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("c", [1, 4, 7])
def test_pools_adds_and_moves(c: int, isa: str) -> None:
    b = GraphBuilder((c, 7, 6), seed=7)
    x = b.codes("u8", 128)
    codes = {"qmin": 0, "qmax": 255}
    window = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
    outputs = [
        b.add("max_pool2d", [x], window),
        b.add("qavg_pool2d", [x], {**window, **codes, "multiplier": float(np.float32(1 / 6))}, dtype="u8", scale=0.1,
              zero_point=128),
    ]
    sliced = b.add("strided_slice", [x], {"h": (0, 7, 2), "w": (0, 6, 2)})
    outputs.append(b.add("strided_slice", [x], {"h": (1, 7, 2), "w": (1, 6, 1)}))
    padded = b.add("channel_pad", [sliced], {"before": 2, "after": 3})
    joined = b.add("concat", [sliced, padded, sliced])
    outputs += [padded, joined, b.add("channel_pad", [sliced], {"before": 4, "after": 8})]
    outputs.append(b.add("channel_pad", [x], {"before": 0, "after": 4}))
    outputs.append(b.add("qadd", [x, x], {**codes, "multipliers": (float(np.float32(0.4)), float(np.float32(-0.9)))},
                         dtype="u8", scale=0.1, zero_point=100))
    outputs.append(b.add("qglobal_avg_pool", [x], {**codes, "multiplier": float(np.float32(1 / 42))}, dtype="u8", scale=0.1,
                         zero_point=128))
    images = pixels((c, 7, 6), 18)
    for output in outputs:
        single = GraphBuilder((c, 7, 6))
        single.nodes, single.specs = list(b.nodes), dict(b.specs)
        graph = single.finish(output)
        assert_exact(graph.only("m0"), images, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("offset", [0, 1, 3, 63])
def test_images_at_any_address(offset: int, isa: str) -> None:
    b = GraphBuilder((3, 5, 5), seed=8)
    graph = b.finish(b.qconv("image", 5, weight_dtype="s8"))
    images = pixels((3, 5, 5), 21)
    memory = np.zeros(images.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    moved = memory[start : start + images.nbytes].reshape(images.shape)
    moved[:] = images
    assert_exact(graph, moved, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["s3", "s4", "s8"])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_packed_weights_round_trip(dtype: str, count: int, isa: str) -> None:
    low, high = {"s3": (-4, 4), "s4": (-8, 8), "s8": (-128, 128)}[dtype]
    codes = np.random.default_rng(count).integers(low, high, count).astype(np.int8)
    packed = weights.pack(codes, dtype)
    bits = {"s3": 3, "s4": 4, "s8": 8}[dtype]
    assert packed.nbytes == -(-count // 64) * 8 * bits  # exactly `bits` per weight, in chunks of 64
    out = _native.extension().unpack_weights(isa, dtype, packed)
    np.testing.assert_array_equal(out[:count], codes)
    assert not out[count:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 5, 15, 16, 17, 33])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_every_width_and_channel_count(width: int, channels: int, isa: str) -> None:
    """The last image ends where its memory ends: a byte read behind it would be a neighbour's or a fault."""
    b = GraphBuilder((channels, 2, width), seed=9)
    graph = b.finish(b.qconv("image", 4, kernel=(1, 1), padding=(0, 0), weight_dtype="s8"))
    assert_exact(graph, pixels((channels, 2, width), 18), isa)
