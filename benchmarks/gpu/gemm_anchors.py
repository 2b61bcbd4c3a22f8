"""What our matrix products are held against. Each anchor is verified against float64 before it is timed; a package that is not
installed is named as such.

Every anchor gets random operands in its own types, as many copies as keep L2 cold, and the precision that it is made for.
GemLite tunes itself for the shape before it is timed. Anchors with dynamic quantization are timed with it: it is part of what
they do.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import measure

GROUP = 128  # weights that share a scale in the 4-bit anchors
INT_MM_LEAST = 17  # rows that torch._int_mm takes
FLOAT_BOUND = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
QUANTIZED_BOUND = 3e-2  # against the float64 product of the operands before they are quantized dynamically


class Absent(Exception):
    """The anchor cannot be had here; the message says why."""


@dataclass
class Anchor:
    """calls: over distinct copies; checked: the error that was found, and its bound."""

    calls: list[Callable[[], object]]
    checked: dict[str, float]


def _copies(make: Callable[[], Callable[[], object]], first: Callable[[], object], each: int) -> list[Callable[[], object]]:
    return [first, *(make() for _ in range(measure.copies(each) - 1))]


def float_product(n: int, k: int, m: int, dtype: torch.dtype) -> Anchor:
    """torch.mm, cuBLAS."""
    x, w = torch.randn(m, k, dtype=dtype, device="cuda"), torch.randn(n, k, dtype=dtype, device="cuda")
    checked = measure.check_close(f"torch.mm {dtype}", torch.mm(x, w.T), x.double() @ w.double().T, FLOAT_BOUND[dtype])

    def make() -> Callable[[], object]:
        return partial(torch.mm, x.clone(), w.clone().T)

    return Anchor(_copies(make, partial(torch.mm, x, w.T), 2 * (m * k + n * k + m * n)), checked)


def int_mm(n: int, k: int, m: int) -> Anchor:
    """torch._int_mm, cuBLASLt: int32 sums without an epilogue."""
    if m < INT_MM_LEAST:
        raise Absent(f"torch._int_mm takes {INT_MM_LEAST} rows and more")
    x = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda")
    w = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda")
    if not torch.equal(torch._int_mm(x, w.T).double(), x.double() @ w.double().T):
        raise ArithmeticError("torch._int_mm: expected the sums of float64, got others; it is not timed")

    def make() -> Callable[[], object]:
        return partial(torch._int_mm, x.clone(), w.clone().T)

    return Anchor(_copies(make, partial(torch._int_mm, x, w.T), m * k + n * k + 4 * m * n), {"error": 0.0, "bound": 0.0})


def int4pack(n: int, k: int, m: int) -> Anchor:
    """aten::_weight_int4pack_mm: bfloat16 activations, 4-bit weights in groups."""
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(n, k // GROUP, device="cuda").add_(0.5).bfloat16()
    zeros = torch.randn(n, k // GROUP, device="cuda").bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
    both = torch.stack([scales, zeros], 2).transpose(0, 1).contiguous()  # [K / GROUP][N][scale, zero]
    weight = (codes.double().view(n, -1, GROUP) - 8) * scales.double()[..., None] + zeros.double()[..., None]
    product = torch.ops.aten._weight_int4pack_mm
    checked = measure.check_close("_weight_int4pack_mm", product(x, packed, GROUP, both), x.double() @ weight.view(n, k).T, 1e-2)

    def make() -> Callable[[], object]:
        return partial(product, x.clone(), packed.clone(), GROUP, both.clone())

    return Anchor(_copies(make, partial(product, x, packed, GROUP, both), n * k // 2 + 2 * m * (k + n)), checked)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.split(".")[0]
        raise Absent(f"{top} is not installed" if error.name == top else f"{name}: {error}") from None


def gemlite(n: int, k: int, m: int, kind: str) -> Anchor:
    """GemLite: ``A8W8`` int8 with dynamic scales, or ``A16W4`` in groups; its exhaustive tuning is switched on."""
    package = _package("gemlite")
    helper = _package("gemlite.helper")
    if hasattr(package, "set_autotune"):
        package.set_autotune("max")
    x = torch.randn(m, k, dtype=torch.float16, device="cuda")
    if kind == "A8W8":
        names = ("A8W8_INT8_dynamic", "A8W8_int8_dynamic")
        found = next((getattr(helper, name) for name in names if hasattr(helper, name)), None)
        if found is None:
            raise Absent(f"gemlite.helper has none of {', '.join(names)}")
        weight = torch.randn(n, k, dtype=torch.float16, device="cuda")
        made = found(device="cuda:0")
        layer = made.from_weights(weight) if hasattr(made, "from_weights") else made.from_linear(_linear(weight))
        expected, bound, each = x.double() @ weight.double().T, QUANTIZED_BOUND, n * k
    else:
        if not hasattr(helper, "A16Wn"):
            raise Absent("gemlite.helper has no A16Wn")
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
        scales = torch.rand(n * k // GROUP, 1, device="cuda").add_(0.5).half()
        zeros = torch.full_like(scales, 8)
        layer = helper.A16Wn(device="cuda:0").from_weights(codes, scales, zeros, W_nbits=4, group_size=GROUP)
        weight = (codes.double().view(-1, GROUP) - 8) * scales.double()
        expected, bound, each = x.double() @ weight.view(n, k).T, 5e-3, n * k // 2
    checked = measure.check_close(f"GemLite {kind}", layer(x), expected, bound)
    calls = [partial(layer, x)]
    if each < measure.COLD_BYTES:  # distinct weights in turns
        for _ in range(min(measure.copies(each), 64) - 1):
            calls.append(partial(copy.deepcopy(layer), x.clone()))
    return Anchor(list(calls), checked)


def _linear(weight: Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    linear.weight.data = weight
    return linear


def torchao(n: int, k: int, m: int, kind: str) -> Anchor:
    """torchao: ``int8`` with dynamic activations, or ``int4`` weights; without torch.compile."""
    quantization = _package("torchao.quantization")
    name = {"int8": "Int8DynamicActivationInt8WeightConfig", "int4": "Int4WeightOnlyConfig"}[kind]
    if not hasattr(quantization, name):
        raise Absent(f"torchao.quantization has no {name}")
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    linears = [_linear(torch.randn(n, k, dtype=torch.bfloat16, device="cuda")) for _ in range(min(measure.copies(n * k), 16))]
    expected = x.double() @ linears[0].weight.double().T
    for linear in linears:
        config = getattr(quantization, name)(group_size=GROUP) if kind == "int4" else getattr(quantization, name)()
        quantization.quantize_(linear, config)
    bound = QUANTIZED_BOUND if kind == "int8" else 0.15  # 4 bits of normal weights, rounded to the nearest
    with torch.no_grad():
        checked = measure.check_close(f"torchao {kind}", linears[0](x), expected, bound)
    return Anchor([partial(_without_gradients, linear, x) for linear in linears], checked)


def _without_gradients(linear: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return linear(x)


def all_of(n: int, k: int, m: int) -> Iterator[tuple[str, Callable[[], Anchor]]]:
    yield "torch.mm bf16", partial(float_product, n, k, m, torch.bfloat16)
    yield "torch.mm fp16", partial(float_product, n, k, m, torch.float16)
    yield "torch._int_mm", partial(int_mm, n, k, m)
    yield "_weight_int4pack_mm", partial(int4pack, n, k, m)
    for kind in ("A8W8", "A16W4"):
        yield f"GemLite {kind}", partial(gemlite, n, k, m, kind)
    for kind in ("int8", "int4"):
        yield f"torchao {kind}", partial(torchao, n, k, m, kind)
