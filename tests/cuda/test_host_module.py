"""The bindings, argument by argument: a small network through the module, against float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

TILE = 32
Ref = tuple[int, int, int, int]


class Lanes:
    """A map in the layout of csrc/cuda/lanes.h on numpy memory, poisoned with NaN inside its halo of zeros."""

    def __init__(self, tiles: int, h: int, w: int, c: int, halo: int = 0) -> None:
        memory = np.zeros(tiles * (h + 2 * halo) * (w + 2 * halo) * c * TILE + 32, np.float32)
        first = -memory.ctypes.data % 128 // 4
        self.whole = memory[first : first + memory.size - 32].reshape(tiles, h + 2 * halo, w + 2 * halo, c, TILE)
        self.inner = self.whole[:, halo : halo + h, halo : halo + w]
        self.inner[...] = np.nan
        self.memory, self.c = memory, c

    def ref(self, channel: int = 0) -> Ref:
        tile, row, pixel = (s // 4 for s in self.inner.strides[:3])
        return (self.inner.ctypes.data + 4 * TILE * channel, tile, row, pixel)

    def before(self, rows: int, columns: int) -> Ref:
        """The pixel at (-rows, -columns): tap (0, 0) of a convolution with this padding."""
        address, tile, row, pixel = self.ref()
        return (address - 4 * (rows * row + columns * pixel), tile, row, pixel)

    def images(self, count: int) -> np.ndarray:
        """[count, C, H, W], float64."""
        return self.inner.transpose(0, 4, 3, 1, 2).reshape(-1, self.c, *self.inner.shape[1:3])[:count].astype(np.float64)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int, groups: int = 1) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(weight.astype(np.float64), groups), strict=True)
    return np.concatenate([np.einsum("nchwab,ocab->nohw", a, b) for a, b in parts], axis=1) + bias[:, None, None]


def test_a_network_of_every_kernel(host_cuda: ModuleType) -> None:
    m, rng = host_cuda, np.random.default_rng(3)
    infinity = float("inf")
    count, tiles = 35, 2

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    def config(channels: int, lines: int, pixels: int = 2) -> tuple[int, ...]:
        return (pixels, channels, 2, 2, lines, 0)

    def close(got: np.ndarray, want: np.ndarray) -> None:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

    images = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    scale, offset = floats(3) / 64, floats(3)
    x = Lanes(tiles, 6, 5, 3, halo=1)
    m.load_images(0, 0, images=images.ctypes.data, from_float=False, shape=(count, 6, 5, 3), scale=scale.ctypes.data,
                  offset=offset.ctypes.data, y=x.ref())
    want = images.transpose(0, 3, 1, 2).astype(np.float64) * scale[:, None, None] + offset[:, None, None]
    close(x.images(count), want)

    weight, bias = floats(9, 3, 3, 3), floats(9)
    y = Lanes(tiles, 6, 5, 9, halo=1)
    channels = m.conv_channels(9, m.CONV_CHANNELS[2])
    packed = m.pack_conv_weights(weight, groups=1, channels=channels)
    m.conv2d_f32(0, 0, x=x.before(1, 1), weight=packed.ctypes.data, bias=bias.ctypes.data, y=y.ref(), residual=None,
                 shape=(tiles, 6, 5, 3, 3, 1, 1, 1, 1, 1, 3, 9), limits=(0.0, infinity), config=config(channels, 27))
    want = np.maximum(convolve(want, weight, bias, 1, 1), 0)
    close(y.images(count), want)

    shortcut = Lanes(tiles, 3, 3, 12)
    m.copy_f32(0, 0, x=y.ref(), y=shortcut.ref(), shape=(tiles, 3, 3, 9), to=(1, 12), pixels=(0, 2, 0, 2))
    skip = np.pad(want[:, :, ::2, ::2], ((0, 0), (1, 2), (0, 0), (0, 0)))
    close(shortcut.images(count), skip)

    weight, bias = floats(12, 3, 3, 3), floats(12)
    z = Lanes(tiles, 3, 3, 12, halo=1)
    packed = m.pack_conv_weights(weight, groups=3, channels=4)
    m.conv2d_f32(0, 0, x=y.before(1, 1), weight=packed.ctypes.data, bias=bias.ctypes.data, y=z.ref(), residual=shortcut.ref(),
                 shape=(tiles, 3, 3, 3, 3, 2, 2, 1, 1, 3, 3, 4), limits=(0.0, 6.0), config=config(4, 10, pixels=1))
    want = np.clip(convolve(want, weight, bias, 2, 1, groups=3) + skip, 0, 6)
    close(z.images(count), want)

    weight, bias = floats(12, 1, 3, 3), floats(12)
    d = Lanes(tiles, 3, 3, 12)
    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    m.depthwise_f32(0, 0, x=z.before(1, 1), weight=taps.ctypes.data, bias=bias.ctypes.data, y=d.ref(), residual=None,
                    shape=(tiles, 3, 3, 3, 3, 1, 1, 1, 1, 12, 1), limits=(-infinity, infinity))
    close(d.images(count), convolve(want, weight, bias, 1, 1, groups=12))

    total = Lanes(tiles, 3, 3, 12)
    m.add_f32(0, 0, a=z.ref(), b=d.ref(), y=total.ref(), shape=(tiles, 3, 3, 12), scale=0.5, limits=(-infinity, infinity))
    want = (want + d.images(count)) * 0.5
    close(total.images(count), want)

    largest, mean = Lanes(tiles, 2, 2, 12), Lanes(tiles, 1, 1, 12)
    m.pool_f32(0, 0, kind="max", x=total.ref(), y=largest.ref(), shape=(tiles, 3, 3, 2, 2, 12), window=(2, 2, 1, 1, 0, 0))
    want = np.lib.stride_tricks.sliding_window_view(want, (2, 2), axis=(2, 3)).max(axis=(4, 5))
    close(largest.images(count), want)
    m.pool_f32(0, 0, kind="average", x=largest.ref(), y=mean.ref(), shape=(tiles, 2, 2, 1, 1, 12), window=(2, 2, 1, 1, 0, 0))
    close(mean.images(count)[:, :, 0, 0], want.mean(axis=(2, 3)))

    features, weight, bias = Lanes(tiles, 1, 1, 48), floats(10, 48, 1, 1), floats(10)
    m.flatten_f32(0, 0, x=largest.ref(), y=features.ref()[0], shape=(tiles, 2, 2, 12))
    logits = Lanes(tiles, 1, 1, 10)
    packed = m.pack_conv_weights(weight, groups=1, channels=5)
    m.linear_f32(0, 0, x=features.ref()[0], weight=packed.ctypes.data, bias=bias.ctypes.data, y=logits.ref()[0],
                 shape=(tiles, 48, 10), limits=(-infinity, infinity), config=config(5, 48))
    out, flags = np.full((count, 10), np.nan, np.float32), np.zeros(count, np.float32)
    flags[4] = np.nan
    m.store_logits(0, 0, x=logits.ref()[0], out=out.ctypes.data, count=count, classes=10, flags=flags.ctypes.data)
    want = want.reshape(count, -1) @ weight[:, :, 0, 0].astype(np.float64).T + bias
    want[4] = np.nan
    close(out, want)

    both = np.empty_like(out)
    m.ensemble_mean(0, 0, members=[out.ctypes.data, out.ctypes.data], out=both.ctypes.data, elements=out.size)
    np.testing.assert_array_equal(both, out)


def test_wrong_arguments_are_value_errors(host_cuda: ModuleType) -> None:
    with pytest.raises(ValueError, match="max or average expected, got median"):
        host_cuda.pool_f32(0, 0, kind="median", x=(0, 0, 0, 0), y=(0, 0, 0, 0), shape=(1,) * 6, window=(1,) * 6)
    with pytest.raises(ValueError, match="conv2d_f32: x, y, weight and bias expected"):
        host_cuda.conv2d_f32(0, 0, x=(0, 0, 0, 0), weight=0, bias=0, y=(0, 0, 0, 0), residual=None, shape=(1,) * 12,
                             limits=(0.0, 1.0), config=(1,) * 6)
    with pytest.raises(ValueError, match="pack_conv_weights"):
        host_cuda.pack_conv_weights(np.zeros((3, 1, 1, 1), np.float32), groups=2, channels=1)


ONE: Ref = (128, 0, 0, 0)
NEVER_READ = {"x": ONE, "weight": 128, "bias": 128, "y": ONE, "residual": None, "limits": (0.0, 1.0)}


@pytest.mark.parametrize(("kernel", "message", "arguments"), [
    ("conv2d_f32", "a smaller chunk", {"shape": (1,) * 12, "config": (1, 1, 4, 1, 1 << 28, 0)}),  # 2^32 floats, 0 in 32 bits
    ("conv2d_f32", "fewer taps", {"shape": (1, 1, 1, 1 << 15, 1 << 15, *(1,) * 7), "config": (1, 1, 1, 1, 1, 0)}),
    ("conv2d_f32", "fewer outputs", {"shape": (*(1,) * 9, 1 << 16, 1, 1), "config": (1, 1, 1, 1, 1, 0)}),
    ("winograd_f32", "fewer outputs", {"shape": (1, 2, 2, 1, 1 << 16), "config": (2, 1, 1, 1, 1, 1, 0)}),
    ("conv2d_bf16x3", "fewer outputs",
     {"x_split": False, "split": None, "factor": 1.0, "shape": (*(1,) * 10, 8 << 16), "config": (1, 1, 1, 0)}),
])  # fmt: skip
def test_what_only_a_gpu_would_refuse_is_refused(
    host_cuda: ModuleType, kernel: str, message: str, arguments: dict[str, object]
) -> None:
    """Shared memory whose size overflows, and grids of more than 65535 blocks along y; nothing is read before."""
    with pytest.raises(ValueError, match=f"{kernel}: {message}"):
        getattr(host_cuda, kernel)(0, 0, **NEVER_READ, **arguments)
