"""Unpacking, checked on every byte in every place of a word: assembly, plain twin and the definition agree bit for bit.

Where kernels are interpreted, the assembly is read from the source and executed here; on a GPU it runs there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from hce_engine.kernels import tiles
from hce_engine.kernels.launch import INTERPRETED

from .assembly import assembly, execute

COLUMNS = 256
@triton.jit
def unpack_kernel(a, b, c, out, SIZE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ASM: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(a + at)
    y = tl.load(b + at)
    if KIND == 0:
        t = tiles.unpack_pairs(x, ASM)
    elif KIND == 1:
        t = tiles.unpack_weight_pairs(x, ASM)
    elif KIND == 2:
        t = tiles.unpack_triples(x, y, ASM)
    else:
        t = tiles.unpack_weight_triples(x, y, tl.load(c + at), ASM)
    tl.store(out + at, t[0])
    tl.store(out + SIZE + at, t[1])
    if KIND > 1:
        tl.store(out + 2 * SIZE + at, t[2])
        tl.store(out + 3 * SIZE + at, t[3])
    if KIND > 2:
        tl.store(out + 4 * SIZE + at, t[4])
        tl.store(out + 5 * SIZE + at, t[5])
        tl.store(out + 6 * SIZE + at, t[6])
        tl.store(out + 7 * SIZE + at, t[7])


def signed(codes: np.ndarray, bits: int) -> np.ndarray:
    """WEIGHT_SCALE times the two's complement number of ``bits`` bits, as a byte."""
    half = 1 << (bits - 1)
    return (((codes.astype(np.int32) ^ half) - half) << (8 - bits)).astype(np.uint8)


def pairs(a: np.ndarray) -> list[np.ndarray]:
    return [a % 16, a // 16]


def weight_pairs(a: np.ndarray) -> list[np.ndarray]:
    return [signed(a % 16, 4), signed(a // 16, 4)]


def triples(a: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
    return [a // 4**t % 4 + 4 * (h // 2**t % 2) for t in range(4)]


def weight_triples(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    whole = [code for byte in (a, b, c) for code in (byte // 32, byte // 4 % 8)]
    return [signed(code, 3) for code in (*whole, a % 4 * 2 + c // 2 % 2, b % 4 * 2 + c % 2)]


# Element by element: which of them share a word is the compiler's choice, so no place in it may matter.
DEFINITIONS: list[Callable[..., list[np.ndarray]]] = [pairs, weight_pairs, triples, weight_triples]


def every_byte(operands: int) -> list[np.ndarray]:
    """uint8 [rows, 256] per operand: each value in each of the four places of a word, and with several operands each pair
    of values of the first and the last, and of the second and the last."""
    j, turn = np.arange(COLUMNS), np.arange(4)
    turned = ((j[None, :] + turn[:, None]) % 256).astype(np.uint8)
    if operands == 1:
        return [turned]
    a = np.broadcast_to(np.repeat(np.arange(256, dtype=np.uint8), 4)[:, None], (1024, COLUMNS))
    last = np.tile(turned, (256, 1))
    return [np.ascontiguousarray(v) for v in ([a, last] if operands == 2 else [a, a ^ np.uint8(0x5A), last])]


@pytest.mark.parametrize("asm", [False, True], ids=["plain", "assembly"])
@pytest.mark.parametrize("kind", range(4), ids=[f.__name__ for f in DEFINITIONS])
def test_truth_table(device: str, kind: int, asm: bool) -> None:
    definition = DEFINITIONS[kind]
    operands = every_byte((1, 1, 2, 3)[kind])
    expected = definition(*operands)
    if asm and INTERPRETED:
        words = [v.view("<u4") for v in operands]
        found = np.stack([word.view(np.uint8) for word in execute(*assembly(tiles)[f"unpack_{definition.__name__}"], words)])
    else:
        rows, size = min(len(operands[0]), 16), operands[0].size
        out = torch.zeros((len(expected), size), dtype=torch.int8, device=device)
        arguments = [torch.from_numpy(operands[min(i, len(operands) - 1)].view(np.int8)).to(device) for i in range(3)]
        grid = (len(operands[0]) // rows,)
        unpack_kernel[grid](*arguments, out, SIZE=size, KIND=kind, ROWS=rows, COLUMNS=COLUMNS, ASM=asm)
        found = out.cpu().numpy().view(np.uint8).reshape(len(expected), *operands[0].shape)
    for tile, values in enumerate(expected):
        np.testing.assert_array_equal(found[tile], values, err_msg=f"tile {tile}")


def test_every_assembly_is_checked() -> None:
    assert set(assembly(tiles)) == {f"unpack_{definition.__name__}" for definition in DEFINITIONS}


def test_the_evaluator_refuses_what_it_does_not_know() -> None:
    word = np.array([0x01020304], np.uint32)
    assert execute("{ .reg .b32 t; shr.u32 t, $1, 8; and.b32 $0, t, 0xFF; }", "=&r,r", [word])[0][0] == 3
    with pytest.raises(AssertionError, match="unknown instruction"):
        execute("{ lop3.b32 $0, $1, $1, $1, 0; }", "=&r,r", [word])
    with pytest.raises(AssertionError, match="unknown instruction"):
        execute("{ shr.b32 $0, $1, 8; }", "=&r,r", [word])
