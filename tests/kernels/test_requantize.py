"""The steps of the epilogue, alone: assembly, plain twin and the definition agree bit for bit, saturation included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from hce_engine import numerics
from hce_engine.kernels import requantize
from hce_engine.kernels.description import Clamps, Codes, clamps
from hce_engine.kernels.launch import INTERPRETED

from .assembly import assembly, execute

SIZE = 1024
# Around every end that a code may saturate at, and the ends of int32.
EDGES = np.unique(np.concatenate([np.arange(-300, 600), [-(2**31), -(2**31) + 128, -70000, 70000, 2**31 - 1]])).astype(np.int32)


def words_of_bytes(packed: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([word.view(np.uint8) for word in packed])


@triton.jit
def pack_kernel(a, b, out, NIBBLES: tl.constexpr, SIZE: tl.constexpr, ASM: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(a + i)
    if NIBBLES:
        tl.store(out + i, requantize.pack_nibbles(x, tl.load(b + i), ASM))
    else:
        tl.store(out + i, requantize.pack_bytes(x, ASM))


@triton.jit
def residual_kernel(r, out, ZERO: tl.constexpr, SIZE: tl.constexpr, ASM: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, requantize.residual_to_float(tl.load(r + i), ZERO, ASM))


@triton.jit
def code_kernel(v, out, ZERO: tl.constexpr, QMIN: tl.constexpr, QMAX: tl.constexpr, CLAMP: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, requantize.to_code(tl.load(v + i), ZERO, QMIN, QMAX, CLAMP))


@pytest.mark.parametrize("asm", [False, True], ids=["plain", "assembly"])
@pytest.mark.parametrize("nibbles", [False, True], ids=["bytes", "nibbles"])
def test_packing_saturates(device: str, nibbles: bool, asm: bool) -> None:
    a = np.resize(EDGES, SIZE)
    b = np.resize(EDGES[::-1], SIZE)
    if nibbles:
        expected = (np.clip(a, 0, 15) | np.clip(b, 0, 15) << 4).astype(np.uint8)
    else:
        a = np.maximum(a, -(2**31) + 128)  # code - 128 is an int32
        expected = (np.clip(a, 0, 255) - 128).astype(np.int8).view(np.uint8)
    if asm and INTERPRETED:
        operands = [v.reshape(-1, 4).T for v in ((a, b) if nibbles else (a - 128,))]
        words = [np.ascontiguousarray(word).view(np.uint32) for operand in operands for word in operand]
        text, constraints = assembly(requantize)["pack_nibbles" if nibbles else "pack_bytes"]
        found = words_of_bytes(execute(text, constraints, words))
    else:
        out = torch.zeros(SIZE, dtype=torch.int8, device=device)
        pack_kernel[(1,)](torch.from_numpy(a).to(device), torch.from_numpy(b.copy()).to(device), out, nibbles, SIZE, asm)
        found = out.cpu().numpy().view(np.uint8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("asm", [False, True], ids=["plain", "assembly"])
@pytest.mark.parametrize("zero", [0, 7, 128, 255])
def test_residual(device: str, zero: int, asm: bool) -> None:
    codes = np.resize(np.arange(256, dtype=np.uint8), SIZE)
    stored = (codes ^ 128).view(np.int8)
    expected = codes.astype(np.float32) - np.float32(zero)
    if asm and INTERPRETED:
        words = execute(*assembly(requantize)["residual_to_float"], [stored.view(np.uint32)])
        found = np.stack(words, axis=1).reshape(-1).view(np.float32) - np.float32(8388608.0 + zero)
    else:
        out = torch.zeros(SIZE, dtype=torch.float32, device=device)
        residual_kernel[(1,)](torch.from_numpy(stored).to(device), out, zero, SIZE, asm)
        found = out.cpu().numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("zero", "qmin", "qmax"), [(0, 0, 255), (0, 0, 15), (128, 0, 255), (128, 3, 250), (7, 2, 9)])
def test_rounding_is_half_to_even_and_the_clamp_comes_first(device: str, zero: int, qmin: int, qmax: int) -> None:
    rng = np.random.default_rng(0)
    v = np.concatenate([np.arange(-300, 300, 0.5), rng.normal(0, 300, 800), [1e30, -1e30, 3e9, -0.0]]).astype(np.float32)
    v = np.resize(v, 2048)
    out = torch.zeros(2048, dtype=torch.int32, device=device)
    code_kernel[(1,)](torch.from_numpy(v).to(device), out, zero, qmin, qmax, True, 2048)
    expected = np.rint(np.clip(v, qmin - zero, qmax - zero)).astype(np.int32) + zero
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


def test_without_the_clamp_every_value_below_two_to_the_22_is_rounded(device: str) -> None:
    rng = np.random.default_rng(0)
    v = np.concatenate([rng.uniform(-(2.0**22) + 1, 2.0**22 - 1, 1000), np.arange(24) - 11.5]).astype(np.float32)
    out = torch.zeros(SIZE, dtype=torch.int32, device=device)
    code_kernel[(1,)](torch.from_numpy(v).to(device), out, 128, 0, 255, False, SIZE)
    np.testing.assert_array_equal(out.cpu().numpy(), np.rint(v).astype(np.int32) + 128)


def test_clamps_go_only_where_storing_saturates_to_the_same_range() -> None:
    full8, full4 = Codes(0, 0, 255), Codes(0, 0, 15)
    assert clamps(1000.0, full8, 8) == Clamps(False, True)
    assert clamps(2.0**22, full8, 8).value  # not proven to be small
    assert clamps(1000.0, Codes(0, 0, 200), 8).value
    assert clamps(1000.0, Codes(0, 0, 7), 4).value  # 3-bit codes in 4-bit storage
    assert clamps(1000.0, Codes(0, 0, 7), 3).value  # storing 3 bits does not saturate
    assert clamps(1000.0, full8, 8, (full4, 4, 4096)) == Clamps(False, False)
    assert clamps(1000.0, full8, 8, (full4, 4, 3000)).value  # code 255 becomes 12: clamping first is not the same
    assert clamps(2.0**21, full8, 8, (full4, 4, 4096)).value  # (code - z) * k would overflow
    assert clamps(1000.0, full8, 8, (Codes(0, 0, 7), 4, 4096)) == Clamps(False, True)


def test_where_a_clamp_is_left_out_nothing_changes() -> None:
    """Every code and every factor: recoding before the clamp equals recoding after it wherever ``clamps`` says so."""
    wide = np.arange(-3000, 3001, dtype=np.int64)
    left_out = 0
    for factor in range(1, 20000, 37):
        for zero, grid in ((0, Codes(0, 0, 15)), (128, Codes(8, 0, 15)), (0, Codes(0, 0, 255))):
            codes = Codes(zero, 0, 255)
            decision = clamps(3000.0, codes, 8, (grid, 8 if grid.qmax == 255 else 4, factor))
            if decision.value:
                continue
            left_out += 1
            early = np.clip(grid.zero_point + (((wide - zero) * factor + 32768) >> 16), grid.qmin, grid.qmax)
            late = numerics.recode(np.clip(wide, 0, 255).astype(np.uint8), factor, zero_point_in=zero, zero_point=grid.zero_point,
                                   qmin=grid.qmin, qmax=grid.qmax)
            np.testing.assert_array_equal(early, late)
    assert left_out > 100
