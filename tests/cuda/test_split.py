"""Convolutions with split operands (csrc/cuda/split.h) on threads of the operating system, against float64, within their bound.

The program reads and writes whole maps: what it may not touch is compared byte by byte, what it may not read holds NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hce_engine.arithmetic import SPLIT_ARITHMETICS
from hce_engine.plan.cuda.split_weights import LOW_SCALE, pack_split, split, step_count, weight_exponent

from .sanitized import run_sanitized
from .split_error import BOTH, HIGH, LEAST, split_bound

SOURCE = Path(__file__).with_name("host_split.cpp")
TILE = 32
SLACK = 2  # channels of a wider map behind those that a kernel may touch
PAIRED = ("fp16x3", "bf16x3")


@dataclass(frozen=True)
class Case:
    """writes: 1 float32, 2 split, 3 both.  residual: 0 none, 1 a map of its own, 2 where y lies.  weights: their size."""

    arithmetic: str
    inputs: int
    outputs: int
    h: int
    w: int
    tiles: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    x_split: bool = False
    writes: int = 1
    residual: int = 0
    relu: bool = False
    octets: int = 1
    channel_warps: int = 1
    pixel_warps: int = 1
    blocks: int = 0
    weights: float = 1.0

    @property
    def out(self) -> tuple[int, int]:
        sizes = zip((self.h, self.w), self.kernel, self.stride, self.dilation, self.padding, strict=True)
        h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in sizes)
        return h, w

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Layer:
    """x: the values, [tiles, H, W, C, 32].  Maps: [tiles, rows, columns, lines, 32], float32, their first pixel at `first`."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    maps: dict[str, np.ndarray]


HALO = {"y": 1, "split": 1, "residual": 0}


def lines_of(channels: int) -> int:
    """Of a split map, in which SLACK channels are a pair more."""
    return channels + channels % 2


def places(lines: np.ndarray) -> np.ndarray:
    """Moves the words of each line to where a split map has them, or back; memory begins at a multiple of 1024 bytes."""
    flat = lines.reshape(-1, TILE)
    pairs = np.arange(len(flat)) // 2
    return np.take_along_axis(flat, np.arange(TILE)[None] ^ (pairs % 4 * 8)[:, None], 1).reshape(lines.shape)


def to_pairs(values: np.ndarray, arithmetic: str) -> np.ndarray:
    """[..., C, 32] -> [..., lines, 32]: high and low words of pairs of channels, as float32 bits, not in their places."""
    if values.shape[-2] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1, :])], -2)
    with np.errstate(invalid="ignore", over="ignore"):
        parts = split(values, arithmetic)

    def words(part: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            half = part.astype(np.float16).view(np.uint16) if arithmetic == "fp16x3" else (part.view(np.uint32) >> 16)
        return half[..., ::2, :].astype(np.uint32) | half[..., 1::2, :].astype(np.uint32) << 16

    lines = np.stack([words(part) for part in parts], -2)  # [..., pair, 2, 32]
    return np.ascontiguousarray(lines.reshape(*values.shape[:-2], -1, TILE)).view(np.float32)


def layer_of(case: Case) -> Layer:
    rng = np.random.default_rng(case.inputs * 64 + case.outputs)
    values = rng.uniform(-1, 1, (case.tiles, case.h, case.w, case.inputs, TILE)).astype(np.float32)
    weight = (rng.uniform(-1, 1, (case.outputs, case.inputs, *case.kernel)) * case.weights).astype(np.float32)
    bias = rng.uniform(-1, 1, case.outputs).astype(np.float32)
    (ph, pw), (oh, ow) = case.padding, case.out
    own = to_pairs(values, case.arithmetic) if case.x_split else values
    x = np.full((case.tiles, case.h + 2 * ph, case.w + 2 * pw, own.shape[3] + SLACK, TILE), np.nan, np.float32)
    x[:, :, :, : own.shape[3]] = 0
    x[:, ph : ph + case.h, pw : pw + case.w, : own.shape[3]] = own
    maps = {"x": places(x) if case.x_split else x}
    for name, lines in (("y", case.outputs), ("split", lines_of(case.outputs)), ("residual", case.outputs)):
        halo = HALO[name]
        maps[name] = rng.uniform(-1, 1, (case.tiles, oh + 2 * halo, ow + 2 * halo, lines + SLACK, TILE)).astype(np.float32)
    inner = maps["y"][:, 1:-1, 1:-1] if case.residual == 2 else maps["residual"]
    return Layer(values, weight, bias, inner[:, :, :, : case.outputs] * np.float32(case.residual > 0), maps)


Result = tuple[int, str, dict[str, np.ndarray]]
Run = Callable[[str, Case, Layer], Result]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(sanitizer, case, layer) -> exit status, what the program printed, maps y and split as they lie in memory."""
    folder = tmp_path_factory.mktemp("host_split")

    def start(sanitizer: str, case: Case, layer: Layer) -> Result:
        words = pack_split(layer.weight, case.arithmetic)
        strides, first = [], []
        for name, (halo_h, halo_w) in (("x", (0, 0)), ("y", (1, 1)), ("split", (1, 1)), ("residual", (0, 0))):
            tile, row, pixel = (s // 4 for s in layer.maps[name].strides[:3])
            strides += [tile, row, pixel]
            first.append(halo_h * row + halo_w * pixel)
        header = np.array([SPLIT_ARITHMETICS.index(case.arithmetic), case.tiles, *case.out, *case.kernel, *case.stride,
                           *case.dilation, case.inputs, case.outputs, case.x_split, case.writes, case.residual, case.octets, case.channel_warps,
                           case.pixel_warps, case.blocks, words.size, *strides, *first], np.int32)
        limits = [0, 1.5] if case.relu else [-np.inf, np.inf]
        scalars = np.array([2.0 ** -weight_exponent(layer.weight, case.arithmetic), *limits], np.float32)
        maps = [layer.maps[name] for name in ("x", "y", "split", *(["residual"] if case.residual == 1 else []))]
        (folder / "in").write_bytes(b"".join(a.tobytes() for a in (header, scalars, words, layer.bias, *maps)))
        done = run_sanitized(SOURCE, sanitizer, folder, str(folder / "in"), str(folder / "out"))
        out = dict(layer.maps)
        if done.returncode == 0:
            floats, size = np.fromfile(folder / "out", np.float32), out["y"].size
            out |= {"y": floats[:size].reshape(out["y"].shape), "split": floats[size:].reshape(out["split"].shape)}
        return done.returncode, done.stdout + done.stderr, out

    return start


def windows(case: Case, x: np.ndarray) -> np.ndarray:
    """[tiles, H, W, C, 32] -> [tiles, OH, OW, C, 32, KH, KW], float64."""
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = case.padding, case.stride, case.dilation, case.kernel
    padded = np.pad(x.astype(np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))
    return view[:, ::sh, ::sw, ..., ::dh, ::dw]


def exact_and_bound(case: Case, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """[tiles, OH, OW, OC, 32] each, before the clamp."""
    seen, weight = windows(case, layer.x), layer.weight.astype(np.float64)
    want = np.einsum("tijcnab,ocab->tijon", seen, weight, optimize=True) + layer.bias[:, None] + layer.residual
    sums = np.einsum("tijcnab,ocab->tijon", np.abs(seen), np.abs(weight), optimize=True)
    magnitudes = (np.abs(weight).sum((1, 2, 3))[:, None], np.abs(seen).sum((3, 5, 6))[:, :, :, None])
    others = np.abs(layer.bias[:, None]) + np.abs(layer.residual)
    factor = 2.0 ** -weight_exponent(layer.weight, case.arithmetic)
    return want, split_bound(case.arithmetic, case.taps, case.inputs, sums, magnitudes, others, factor)


def inner_of(case: Case, out: dict[str, np.ndarray]) -> np.ndarray:
    return out["y"][:, 1:-1, 1:-1, : case.outputs]


def pairs_of(case: Case, out: dict[str, np.ndarray]) -> np.ndarray:
    """Words of a split result, in order."""
    return places(out["split"])[:, 1:-1, 1:-1, : lines_of(case.outputs)]


def untouched(case: Case, layer: Layer, out: dict[str, np.ndarray]) -> None:
    """Nothing but the pixels and channels of what was to be written has changed."""
    for name, flag, lines in (("y", 1, case.outputs), ("split", 2, lines_of(case.outputs))):
        before, after = layer.maps[name].copy(), out[name].copy()
        if name == "split":
            before, after = places(before), places(after)
        if case.writes & flag:
            before[:, 1:-1, 1:-1, :lines] = after[:, 1:-1, 1:-1, :lines] = 0
        np.testing.assert_array_equal(after.view(np.uint32), before.view(np.uint32), f"{name} outside its pixels")


SHAPES = [
    {"inputs": 9, "outputs": 16, "h": 5, "w": 3, "octets": 2, "residual": 1, "relu": True, "pixel_warps": 2, "blocks": 2},
    {"inputs": 16, "outputs": 9, "h": 2, "w": 3, "octets": 1, "channel_warps": 2, "residual": 2},
    {"inputs": 1, "outputs": 1, "h": 3, "w": 2, "octets": 1, "pixel_warps": 2},
    {"inputs": 3, "outputs": 17, "h": 5, "w": 3, "stride": (2, 2), "octets": 3, "relu": True},
    {"inputs": 7, "outputs": 33, "h": 2, "w": 2, "octets": 3, "channel_warps": 2, "residual": 1},  # 3 + 2 blocks of outputs
    {"inputs": 33, "outputs": 7, "h": 3, "w": 1, "kernel": (1, 1), "padding": (0, 0), "tiles": 2, "octets": 1, "blocks": 1},
    {"inputs": 17, "outputs": 25, "h": 1, "w": 3, "kernel": (1, 3), "padding": (0, 1), "octets": 4, "weights": 1e-6},
    {"inputs": 5, "outputs": 3, "h": 5, "w": 4, "dilation": (2, 1), "padding": (2, 1), "stride": (2, 3), "octets": 1, "weights": 3e3},
]  # fmt: skip


def cases() -> list[Case]:
    found = []
    for arithmetic in SPLIT_ARITHMETICS:
        for index, shape in enumerate(SHAPES):
            paired = arithmetic in PAIRED
            found.append(Case(arithmetic, **shape, x_split=paired and index % 2 == 0, writes=1 + index % 3 if paired else 1))
    return [replace(c, writes=3) if c.residual == 2 and not c.writes & 1 else c for c in found]


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.arithmetic}-{c.inputs}-{c.outputs}-{c.h}x{c.w}")
def test_kernel_on_threads(run: Run, case: Case) -> None:
    layer = layer_of(case)
    status, text, out = run("address", case, layer)
    assert status == 0, text
    assert "Sanitizer" not in text
    untouched(case, layer, out)
    want, bound = exact_and_bound(case, layer)
    if case.relu:
        want = np.clip(want, 0, 1.5)
    if case.writes & 1:
        error = np.abs(inner_of(case, out) - want)
        assert (error <= bound).all(), np.unravel_index(np.argmax(error - bound), error.shape)
    if case.writes == 3:
        wanted = to_pairs(np.ascontiguousarray(inner_of(case, out)), case.arithmetic)
        assert pairs_of(case, out).tobytes() == wanted.tobytes(), "the same values in both forms"
    if case.writes & 2:
        got = from_pairs(pairs_of(case, out), case.arithmetic)
        error = np.abs(got[:, :, :, : case.outputs] - want)
        assert (error <= bound + BOTH[case.arithmetic] * np.abs(want) * (1 + 2**-10) + 2.0**-36).all()
        assert not got[:, :, :, case.outputs :].any()


def numbers_of(halves: np.ndarray, arithmetic: str) -> np.ndarray:
    """Numbers of 16 bits, as float32 or float16."""
    return halves.astype(np.uint16).view(np.float16) if arithmetic == "fp16x3" else (halves << 16).astype(np.uint32).view(np.float32)


def from_pairs(lines: np.ndarray, arithmetic: str) -> np.ndarray:
    """[..., lines, 32] -> [..., channels, 32], float64."""
    words = np.ascontiguousarray(lines).view(np.uint32).reshape(*lines.shape[:-2], -1, 2, TILE)
    parts = []
    for half in (words & 0xFFFF, words >> 16):
        numbers = numbers_of(half, arithmetic)
        parts.append(numbers[..., 0, :].astype(np.float64) + numbers[..., 1, :].astype(np.float64) / LOW_SCALE[arithmetic])
    return np.stack(parts, -2).reshape(lines.shape)


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_barriers(run: Run, arithmetic: str) -> None:
    paired = arithmetic in PAIRED
    case = Case(arithmetic, 3, 9, 2, 1, octets=2, pixel_warps=2, x_split=paired, writes=3 if paired else 1)
    status, text, _ = run("thread", case, layer_of(case))
    assert status == 0, text
    assert "Sanitizer" not in text


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_neither_configuration_nor_form_shows(run: Run, arithmetic: str) -> None:
    case = Case(arithmetic, 7, 17, 3, 2, octets=3, residual=1)
    changes: list[dict[str, int]] = [{"octets": 1, "channel_warps": 3}, {"octets": 2, "pixel_warps": 4, "blocks": -1}]
    if arithmetic in PAIRED:
        changes.append({"octets": 2, "x_split": True})
    results = []
    for change in ({}, *changes):
        other = replace(case, **change)
        layer = layer_of(other)
        status, text, out = run("address", other, layer)
        assert status == 0, text
        results.append(inner_of(other, out).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(("arithmetic", "x_split"), [
    ("tf32x3", False), ("fp16x3", False), ("fp16x3", True), ("bf16x3", False), ("bf16x3", True),
])
def test_what_does_not_fit_becomes_nan_and_stays_in_its_image(run: Run, arithmetic: str, x_split: bool) -> None:
    """NaN and infinities in all arithmetics, values beyond 65504 in fp16x3; an odd channel, which is read twice."""
    case = Case(arithmetic, 5, 9, 3, 3, octets=2, x_split=x_split)
    clean = run("address", case, layer_of(case))[2]
    spoiled = {3: np.nan, 9: np.inf, 17: -np.inf, 30: np.float32(65520)}
    values = layer_of(case)
    maps = dict(values.maps)
    x = places(maps["x"]) if x_split else maps["x"].copy()
    for image, value in spoiled.items():
        values.x[0, 0, 0, 4, image] = value
    x[:, 1:-1, 1:-1, : lines_of(5) if x_split else 5] = to_pairs(values.x, arithmetic) if x_split else values.x
    maps["x"] = places(x) if x_split else x
    status, text, out = run("address", case, replace(values, maps=maps))
    assert status == 0, text
    got, want = inner_of(case, out), inner_of(case, clean)
    reached = np.zeros(got.shape, bool)
    for image in spoiled:
        reached[0, :2, :2, :, image] = arithmetic == "fp16x3" or image != 30
    assert np.isnan(got[reached]).all()
    others = ~reached
    others[0, :2, :2, :, 30] = False
    np.testing.assert_array_equal(got[others].view(np.uint32), want[others].view(np.uint32))
    assert arithmetic == "fp16x3" or np.isfinite(got[..., 30]).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"arithmetic": "tf32x3", "x_split": True}, "tf32x3 has no split ones"),
    ({"arithmetic": "tf32x3", "writes": 2}, "tf32x3 has no split ones"),
    ({"writes": 0}, "an output expected"),
    ({"octets": 3}, "larger of the even parts"),
    ({"octets": 5}, "larger of the even parts"),
    ({"channel_warps": 3, "pixel_warps": 2}, "1 to 4 warps"),
    ({"blocks": -65}, "valid blocks"),
    ({"inputs": 3000, "kernel": (1, 9), "padding": (0, 4)}, "their table exceeds shared memory"),
])  # fmt: skip
def test_wrong_arguments_are_refused(run: Run, change: dict[str, object], message: str) -> None:
    case = replace(Case("bf16x3", 4, 9, 1, 1, octets=2), **change)  # type: ignore[arg-type]
    status, text, _ = run("address", case, layer_of(case))
    assert status == 3 and message in text


# -- numbers and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_two_parts_are_as_close_as_the_bound_says(arithmetic: str) -> None:
    rng = np.random.default_rng(5)
    values = np.ldexp(rng.uniform(1, 2, 100_000), rng.integers(-14, 15, 100_000)).astype(np.float32)
    values[:4] = [1 + 2**-11, 2 - 2**-23, 1 + 2**-8, 1 + 2**-12 - 2**-23]
    high, low = split(values, arithmetic)
    exact = values.astype(np.float64)
    assert (np.abs(exact - high) <= HIGH[arithmetic] * exact).all()
    both = np.abs(exact - high - low.astype(np.float64) / LOW_SCALE[arithmetic])
    assert (both <= BOTH[arithmetic] * exact + LEAST * (arithmetic == "fp16x3")).all()
    assert both.max() > 0


@pytest.mark.parametrize("arithmetic", SPLIT_ARITHMETICS)
def test_weights_in_order(arithmetic: str) -> None:
    weight = np.random.default_rng(1).normal(size=(9, 5, 3, 2)).astype(np.float32)
    per = 1 if arithmetic == "tf32x3" else 2
    steps, e = step_count(6, 5, arithmetic), weight_exponent(weight, arithmetic)
    words = pack_split(weight, arithmetic).reshape(steps, 2, 8, 4, 2, 2)  # [step][block][o][t][part][half]
    parts = split(np.ldexp(weight, e).astype(np.float32), arithmetic)
    assert e == 0 or 2**14 <= np.abs(np.ldexp(weight, e)).max() < 2**15
    terms, seen = -(-5 // per), 0
    for term in range(8 * steps):
        tap, first = term // terms, term % terms * per
        word = words[term // 8, :, :, term % 4, :, term // 4 % 2]  # [block][o][part]
        for part in range(2):
            for o in range(16):
                got = int(word[o // 8, o % 8, part])
                for k in range(per):
                    real = tap < 6 and o < 9 and first + k < 5
                    want = parts[part][o, first + k, tap // 2, tap % 2] if real else np.float32(0)
                    seen += bool(want)
                    if arithmetic == "tf32x3":
                        assert got == want.view(np.uint32)
                    else:
                        assert numbers_of(np.array([got >> 16 * k & 0xFFFF]), arithmetic)[0] == want
    assert seen >= 2 * weight.size - 3
    with pytest.raises(ValueError, match="float32 weights"):
        pack_split(weight[0], arithmetic)


def test_scales_are_powers_of_two_that_exist() -> None:
    for largest in (1e-38, 1e-7, 0.3, 1.0, 2.0**14, 3e38):
        weight = np.full((1, 1, 1, 1), largest, np.float32)
        e = weight_exponent(weight, "fp16x3")
        assert np.isfinite(np.ldexp(weight, e)).all() and -126 <= e <= 126
        assert abs(e) == 126 or 2**14 <= np.ldexp(weight, e)[0, 0, 0, 0] < 2**15
    assert weight_exponent(np.zeros((1, 1, 1, 1), np.float32), "fp16x3") == 0
    assert weight_exponent(np.ones((1, 1, 1, 1), np.float32), "bf16x3") == 0
