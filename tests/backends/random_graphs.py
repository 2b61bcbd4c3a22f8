"""Random legal graphs over the whole table of operations, quantized and float, with shared trunks and several members.

Every step appends one operation to a value drawn from all values so far, so values get read twice, by several
operations, and after others were made from them. What does not fit (a kernel larger than its map) is drawn again.
"""

from __future__ import annotations

import numpy as np

from hce_engine.dtypes import DTYPES
from hce_engine.graph import Graph, Member, verify
from hce_engine.graph.ops import ShapeError
from tests.backends.graphs import GraphBuilder

CLASSES = 3


def _float(value: float) -> float:
    return float(np.float32(value))


class RandomGraph:
    """``graph`` is drawn from ``seed`` alone; ``images(count)`` are images that it takes.

    low_bit: many blocks of 3x3 convolutions on 3- and 4-bit codes among the operations.
    """

    def __init__(self, seed: int, low_bit: bool = False) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.float_images = seed % 3 == 2
        c, h, w = int(self.rng.integers(1, 7)), *(int(v) for v in self.rng.integers(1, 11, 2))
        self.shape = (c, h, w)
        self.b = GraphBuilder(self.shape, dtype="f32" if self.float_images else "u8", seed=seed)
        self.values: list[str] = ["image"]
        for _ in range(int(self.rng.integers(4, 22))):
            operations = self.OPERATIONS + (RandomGraph.low_bit_block,) * (len(self.OPERATIONS) // 2 if low_bit else 0)
            operation = operations[int(self.rng.integers(len(operations)))]
            try:
                name = operation(self)
            except ShapeError:
                continue
            if name is not None:
                self.values.append(name)
        self.graph = self._finish()

    def images(self, count: int) -> np.ndarray:
        c, h, w = self.shape
        if self.float_images:
            return self.rng.uniform(-0.2, 1.2, (count, c, h, w)).astype(np.float32)
        images = self.rng.integers(0, 256, (count, h, w, c), dtype=np.uint8)
        images[self.rng.random(images.shape) < 0.2] = 255
        return images

    # -- draws --------------------------------------------------------------------------------------------------------

    def _pick(self, *, floats: bool | None = None, maps: bool | None = True, like: str | None = None) -> str:
        """A value; of late ones more often. like: one of the same shape (and for floats, type) as that value."""
        specs = self.b.specs
        fits = [
            v for v in self.values
            if (floats is None or specs[v].type.is_float == floats)
            and (maps is None or (len(specs[v].shape) == 3) == maps)
            and (like is None or specs[v].shape == specs[like].shape)
        ]
        if not fits:
            raise ShapeError("no such value yet")
        return fits[max(int(self.rng.integers(len(fits))), int(self.rng.integers(len(fits))))]

    def _pair(self, low: int, high: int) -> tuple[int, int]:
        return (int(self.rng.integers(low, high)), int(self.rng.integers(low, high)))

    def _codes(self) -> tuple[str, int, dict[str, int]]:
        """(type, zero point, code range) of a quantized output."""
        dtype = str(self.rng.choice(["u8", "u8", "u4", "u3"]))
        top = DTYPES[dtype].qmax
        zero = int(self.rng.choice([0, 0, top // 2 + 1]))
        qmin, qmax = (0, top) if self.rng.random() < 0.7 else (zero // 2, (zero + top + 1) // 2)
        return dtype, zero, {"qmin": qmin, "qmax": qmax}

    def _geometry(self, x: str) -> dict:
        c = self.b.specs[x].shape[0]
        groups = int(self.rng.choice([g for g in range(1, c + 1) if c % g == 0])) if self.rng.random() < 0.3 else 1
        kind = self.rng.random()
        if kind < 0.25:
            kernel, padding, stride = (1, 1), (0, 0), self._pair(1, 4)
        elif kind < 0.6:
            kernel, padding, stride = (3, 3), (1, 1), (1, 1)
        else:
            kernel, padding, stride = self._pair(1, 5), self._pair(0, 5), self._pair(1, 5)
        return {"kernel": kernel, "padding": padding, "stride": stride, "groups": groups,
                "dilation": self._pair(1, 3) if self.rng.random() < 0.2 else (1, 1)}

    def _channels(self, groups: int) -> int:
        return groups * int(self.rng.integers(1, 1 + max(1, 40 // groups)))

    # -- operations ---------------------------------------------------------------------------------------------------

    def normalize(self) -> str:
        c = self.shape[0]
        scale = 1.0 if self.float_images else 1 / 255
        params = {"scale": self.rng.uniform(0.5, 2, c).astype(np.float32) * np.float32(scale),
                  "offset": self.rng.normal(0, 1, c).astype(np.float32)}
        return self.b.add("normalize", ["image"], {}, params, dtype="f32")

    def quantize_input(self) -> str | None:
        if not self.float_images:
            return None
        return self.b.add("quantize_input", ["image"], {"low": -0.1, "multiplier": 212.5}, dtype="u8", scale=0.004,
                          zero_point=int(self.rng.choice([0, 25])))

    def conv(self) -> str:
        x = self._pick(floats=True)
        geometry = self._geometry(x)
        low = 0.0 if self.rng.random() < 0.5 else None
        high = 1.5 if self.rng.random() < 0.3 else None
        oc = self._channels(geometry["groups"])
        y = self.b.conv(x, oc, **geometry, low=low, high=high)
        self._scale_weights(y)
        if self.rng.random() < 0.5:
            try:
                residual = self._pick(floats=True, like=y)
            except ShapeError:
                residual = y
            self.values.append(y)
            y = self.b.conv(x, oc, **geometry, low=low, high=high, residual=residual)
            self._scale_weights(y)
        return y

    def _scale_weights(self, name: str) -> None:
        """Sums of the magnitude of their inputs, so that errors stay relative to what is compared."""
        weight = self.b.nodes[-1].params["weight"]
        weight /= np.float32(np.sqrt(weight[0].size))

    def qconv(self) -> str:
        x = self._pick(floats=False)
        geometry = self._geometry(x)
        dtype, zero, limits = self._codes()
        oc = self._channels(geometry["groups"])
        top = self.b.specs[x].type.qmax
        options = {"weight_dtype": str(self.rng.choice(["s3", "s4", "s8"])), "out": dtype, "zero_point": zero,
                   "qmax": limits["qmax"]}
        if x == "image":
            options["pad_code"] = [int(v) for v in self.rng.choice([0, 7, top], self.shape[0])]
        y = self.b.qconv(x, oc, **geometry, **options)
        if self.rng.random() < 0.5:
            try:
                residual = self._pick(floats=False, like=y)
            except ShapeError:
                residual = y
            self.values.append(y)
            y = self.b.qconv(x, oc, **geometry, **options, residual=residual)
        return y

    def low_bit_block(self) -> str:
        """A residual block as quantized networks have them: codes recoded to 3 or 4 bits, two 3x3 convolutions of stride 1."""
        x = self._pick(floats=False)
        bits = int(self.rng.choice([3, 4]))
        padding = (1, 1) if self.rng.random() < 0.6 else self._pair(0, 3)
        options = {"weight_dtype": f"s{self.rng.choice([3, 4])}", "padding": padding}
        k = int(self.rng.integers(1, 1 << 17))
        narrow = self.b.add("qrecode", [x], {"k": k, "qmin": 0, "qmax": (1 << bits) - 1}, dtype=f"u{bits}", scale=0.1)
        inner = self.b.qconv(narrow, self._channels(1), out=f"u{bits}", **options)
        self.values += [narrow, inner]
        try:
            residual = self._pick(floats=False, like=narrow)
        except ShapeError:
            residual = None
        options["padding"] = (1, 1)
        oc = self.b.specs[residual].shape[0] if residual and self.b.specs[residual].shape[1:] == self.b.specs[inner].shape[1:] else None
        return self.b.qconv(inner, oc or self._channels(1), residual=residual if oc else None, **options)

    def qrecode(self) -> str:
        x = self._pick(floats=False, maps=None)
        dtype, zero, limits = self._codes()
        k = int(65536 * DTYPES[dtype].qmax / self.b.specs[x].type.qmax * self.rng.uniform(0.3, 2))
        return self.b.add("qrecode", [x], {"k": k, **limits}, dtype=dtype, scale=0.1, zero_point=zero)

    def add(self) -> str:
        a = self._pick(floats=True, maps=None)
        b = self._pick(floats=True, maps=None, like=a)
        return self.b.add("add", [a, b], {"min": -1.0 if self.rng.random() < 0.5 else None, "max": None})

    def qadd(self) -> str:
        a = self._pick(floats=False, maps=None)
        b = self._pick(floats=False, maps=None, like=a)
        dtype, zero, limits = self._codes()
        top = DTYPES[dtype].qmax
        factors = tuple(_float(self.rng.uniform(-1, 1) * top / self.b.specs[v].type.qmax) for v in (a, b))
        return self.b.add("qadd", [a, b], {**limits, "multipliers": factors}, dtype=dtype, scale=0.1, zero_point=zero)

    def clamp(self) -> str:
        return self.b.add("clamp", [self._pick(floats=True, maps=None)], {"min": -0.5, "max": None if self.rng.random() < 0.5 else 1.0})

    def _window(self) -> dict:
        kernel = self._pair(1, 5)
        padding = tuple(int(self.rng.integers(0, k // 2 + 1)) for k in kernel)
        return {"kernel": kernel, "stride": self._pair(1, 6), "padding": padding}

    def max_pool(self) -> str:
        return self.b.add("max_pool2d", [self._pick()], self._window())

    def avg_pool(self) -> str:
        x = self._pick(floats=True)
        if self.rng.random() < 0.3:
            return self.b.add("global_avg_pool", [x])
        return self.b.add("avg_pool2d", [x], {**self._window(), "count_include_pad": int(self.rng.integers(2))})

    def qavg_pool(self) -> str:
        x = self._pick(floats=False)
        dtype, zero, limits = self._codes()
        spec, window = self.b.specs[x], self._window()
        whole = self.rng.random() < 0.3
        count = spec.shape[1] * spec.shape[2] if whole else window["kernel"][0] * window["kernel"][1]
        factor = {"multiplier": _float(DTYPES[dtype].qmax / spec.type.qmax / count)}
        attrs = {**factor, **limits} if whole else {**window, **factor, **limits}
        return self.b.add("qglobal_avg_pool" if whole else "qavg_pool2d", [x], attrs, dtype=dtype, scale=0.1, zero_point=zero)

    def flatten(self) -> str:
        return self.b.add("flatten", [self._pick(maps=None)])

    def strided_slice(self) -> str:
        x = self._pick()
        _, h, w = self.b.specs[x].shape
        starts = [int(self.rng.integers(size)) for size in (h, w)]
        ranges = [(s, int(self.rng.integers(s + 1, n + 1)), int(self.rng.integers(1, 4))) for s, n in zip(starts, (h, w), strict=True)]
        y = self.b.add("strided_slice", [x], {"h": ranges[0], "w": ranges[1]})
        if self.rng.random() < 0.5:
            if self.rng.random() < 0.5:
                self.values.append(y)
            y = self.b.add("channel_pad", [y], {"before": int(self.rng.integers(5)), "after": int(self.rng.integers(5))})
        return y

    def channel_pad(self) -> str:
        return self.b.add("channel_pad", [self._pick()], {"before": int(self.rng.integers(6)), "after": int(self.rng.integers(6))})

    def concat(self) -> str:
        first = self._pick()
        spec = self.b.specs[first]
        fits = [v for v in self.values if self.b.specs[v].shape[1:] == spec.shape[1:] and len(self.b.specs[v].shape) == 3
                and self.b.specs[v].dtype == spec.dtype and self.b.specs[v].scale == spec.scale
                and self.b.specs[v].zero_point == spec.zero_point]
        others = [fits[int(self.rng.integers(len(fits)))] for _ in range(int(self.rng.integers(3)))]
        return self.b.add("concat", [first, *others])

    def linear(self, x: str | None = None, outputs: int | None = None) -> str:
        """A float or quantized linear layer over a vector; a map is flattened first."""
        x = x or self._pick(maps=None)
        if len(self.b.specs[x].shape) == 3:
            x = self.b.add("flatten", [x])
            if self.rng.random() < 0.5:
                self.values.append(x)
        spec = self.b.specs[x]
        size = outputs or int(self.rng.integers(1, 8))
        shape = (size, spec.shape[0])
        if spec.type.is_float:
            params = {"weight": self.rng.normal(0, 1 / np.sqrt(shape[1]), shape).astype(np.float32),
                      "bias": self.rng.normal(0, 1, size).astype(np.float32)}
            return self.b.add("linear", [x], {"min": None, "max": None}, params, dtype="f32")
        weights = {"s3": 4, "s4": 8, "s8": 128}
        dtype = str(self.rng.choice(list(weights)))
        params = {"weight": self.rng.integers(-weights[dtype], weights[dtype], shape).astype(np.int8),
                  "bias": self.rng.integers(-2000, 2000, size).astype(np.int32),
                  "multiplier": self.rng.uniform(1e-4, 1e-3, size).astype(np.float32),
                  "offset": self.rng.normal(0, 1, size).astype(np.float32)}
        bits = (DTYPES[dtype].bits, spec.type.bits)
        return self.b.add("qlinear", [x], {"weight_dtype": dtype, "bits": bits}, params, dtype="f32")

    def mean(self) -> str:
        a = self._pick(floats=True, maps=None)
        others = [self._pick(floats=True, maps=None, like=a) for _ in range(int(self.rng.integers(3)))]
        return self.b.add("mean", [a, *others])

    OPERATIONS = (
        normalize, quantize_input, conv, conv, conv, qconv, qconv, qconv, qconv, qrecode, qrecode, add, qadd, qadd, clamp,
        max_pool, avg_pool, qavg_pool, flatten, strided_slice, channel_pad, concat, linear, mean,
    )

    # -- members ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Graph:
        outputs, classes = [], CLASSES
        maps = [v for v in self.values if self.b.specs[v].type.is_float and v != "image" and self.b.specs[v].elements <= 300]
        if maps and self.rng.random() < 0.4:  # a flatten that is an output, and read by a layer
            outputs.append(self.b.add("flatten", [maps[-1]]))
            classes = self.b.specs[maps[-1]].elements
            outputs.append(self.linear(outputs[-1], classes))
        for _ in range(int(self.rng.integers(1, 4))):
            outputs.append(self.linear(self._pick(maps=None), classes))
            if self.rng.random() < 0.3:  # an output that another member reads on
                outputs.append(self.b.add("clamp", [outputs[-1]], {"min": None, "max": 0.5}))
        if self.rng.random() < 0.2:
            outputs.append(outputs[0])
        roles = ["vote", *("reference" if self.rng.random() < 0.2 else "vote" for _ in outputs[1:])]
        members = tuple(Member(f"m{i}", o, r) for i, (o, r) in enumerate(zip(outputs, roles, strict=True)))
        return verify(Graph(tuple(self.b.nodes), members))
