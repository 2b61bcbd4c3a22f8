"""Small graphs around one operation, with random or extreme values, for the back ends' tests.

A probe head makes inner codes visible: a quantized linear layer with the identity as weight and multiplier 1 turns each
code into one logit, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hce_engine.dtypes import DTYPES
from hce_engine.graph import OPS, Graph, Member, Node, TensorSpec, verify


class GraphBuilder:
    """Appends nodes, infers their shapes, and ends with members."""

    def __init__(self, shape: tuple[int, int, int], dtype: str = "u8", seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes = [Node("image", "input", (), TensorSpec(shape, dtype))]
        self.specs = {"image": self.nodes[0].spec}

    def add(
        self, op: str, inputs: list[str], attrs: dict[str, Any] | None = None,
        params: dict[str, np.ndarray] | None = None, *, dtype: str | None = None, scale: float | None = None,
        zero_point: int = 0,
    ) -> str:
        """One node; without ``dtype`` its type and quantization are those of the first input."""
        name = f"n{len(self.nodes)}_{op}"
        first = self.specs[inputs[0]]
        shape = OPS[op].infer([self.specs[i] for i in inputs], attrs or {}, params or {})
        spec = TensorSpec(tuple(shape), first.dtype, first.scale, first.zero_point)
        if dtype is not None:
            spec = TensorSpec(tuple(shape), dtype, scale, zero_point)
        self.nodes.append(Node(name, op, tuple(inputs), spec, attrs or {}, params or {}))
        self.specs[name] = spec
        return name

    def codes(self, dtype: str, zero_point: int = 0, source: str = "image") -> str:
        """The image's pixels recoded to another type, so that a layer can read u4, u3 or signed codes."""
        top = DTYPES[dtype].qmax
        if dtype == "u8" and zero_point == 0 and source == "image":
            k = 65536
        else:
            k = 65536 * (top - zero_point) // 255 + 1
        return self.add("qrecode", [source], {"k": k, "qmin": 0, "qmax": top}, dtype=dtype, scale=0.1, zero_point=zero_point)

    def qconv(
        self, x: str, oc: int, *, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), groups: int = 1, weight_dtype: str = "s4",
        out: str = "u8", zero_point: int = 0, residual: str | None = None, extreme: int | None = None,
        qmax: int | None = None, pad_code: list[int] | None = None,
    ) -> str:
        """A quantized convolution whose outputs spread over the output range. extreme: every weight is this code."""
        spec, w = self.specs[x], DTYPES[weight_dtype]
        c = spec.shape[0]
        shape = (oc, c // groups, *kernel)
        weight = self.rng.integers(w.qmin, w.qmax + 1, shape).astype(np.int8)
        if extreme is not None:
            weight[:] = extreme
        taps = c // groups * kernel[0] * kernel[1]
        spread = np.sqrt(taps) * w.qmax * spec.type.qmax / 3 if extreme is None else taps * abs(extreme) * spec.type.qmax
        top = DTYPES[out].qmax
        attrs = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "weight_dtype": weight_dtype,
            "bits": (w.bits, spec.type.bits), "pad_code": pad_code or [spec.zero_point] * c, "qmin": 0,
            "qmax": top if qmax is None else qmax, "folded_norm": 0,
            "residual_multiplier": 0.0 if residual is None else float(np.float32(-0.37 if extreme else 0.37)),
        }
        params = {
            "weight": weight, "bias": self.rng.integers(-2000, 2000, oc).astype(np.int32),
            "multiplier": (self.rng.uniform(0.5, 1.5, oc) * top / spread).astype(np.float32),
        }
        return self.add("qconv2d", [x] if residual is None else [x, residual], attrs, params, dtype=out, scale=0.05,
                        zero_point=zero_point)

    def probe(self, x: str) -> str:
        """Every code of ``x`` as one float logit."""
        if len(self.specs[x].shape) == 3:
            x = self.add("flatten", [x])
        f = self.specs[x].shape[0]
        params = {"weight": np.eye(f, dtype=np.int8), "bias": np.zeros(f, np.int32),
                  "multiplier": np.ones(f, np.float32), "offset": np.zeros(f, np.float32)}
        return self.add("qlinear", [x], {"weight_dtype": "s8", "bits": (8, 8 if self.specs[x].dtype == "u8" else 3)},
                        params, dtype="f32")

    def conv(
        self, x: str, oc: int, *, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1), groups: int = 1,
        low: float | None = None, high: float | None = None, residual: str | None = None,
    ) -> str:
        c = self.specs[x].shape[0]
        params = {"weight": self.rng.normal(0, 0.5, (oc, c // groups, *kernel)).astype(np.float32),
                  "bias": self.rng.normal(0, 1, oc).astype(np.float32)}
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "min": low, "max": high,
                 "folded_norm": 0}
        return self.add("conv2d", [x] if residual is None else [x, residual], attrs, params, dtype="f32")

    def normalize(self) -> str:
        c = self.specs["image"].shape[0]
        params = {"scale": np.full(c, 0.017, np.float32), "offset": np.full(c, -2.1, np.float32)}
        return self.add("normalize", ["image"], {}, params, dtype="f32")

    def finish(self, *outputs: str) -> Graph:
        """A verified graph whose members m0, m1, ... are the outputs (maps are flattened, codes probed)."""
        members = []
        for index, name in enumerate(outputs):
            if self.specs[name].dtype != "f32":
                name = self.probe(name)
            elif len(self.specs[name].shape) == 3:
                name = self.add("flatten", [name])
            members.append(Member(f"m{index}", name))
        sizes = {self.specs[m.output].shape for m in members}
        assert len(sizes) == 1, "members of one test graph need equal sizes"
        return verify(Graph(tuple(self.nodes), tuple(members)))


def pixels(shape: tuple[int, int, int], count: int, seed: int = 1) -> np.ndarray:
    """uint8 NHWC images that visit both ends of the range."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, shape[1], shape[2], shape[0]), dtype=np.uint8)
    images[rng.random(images.shape) < 0.1] = 255
    images[rng.random(images.shape) < 0.1] = 0
    return images
