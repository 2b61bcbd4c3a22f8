"""Unpacking, checked on every byte in every place of a word: assembly, plain twin and the definition agree bit for bit.

Where kernels are interpreted, the assembly is read from the source and executed here; on a GPU it runs there.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from hce_engine.kernels import tiles
from hce_engine.kernels.launch import INTERPRETED

COLUMNS = 256
INSTRUCTION = re.compile(r"(and|or|shl|shr)\.(b32|u32) ([$\w]+), ([$\w]+), ([$\w]+)")
REGISTERS = re.compile(r"\.reg \.b32 [\w, ]+")


@cache
def assembly() -> dict[str, list[tuple[str, str]]]:
    """Text and constraints of each assembly by function of tiles.py, in the order of the source."""
    found: dict[str, list[tuple[str, str]]] = {}
    for function in ast.parse(inspect.getsource(tiles)).body:
        if isinstance(function, ast.FunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            calls = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "inline_asm_elementwise"]
            calls.sort(key=lambda node: node.lineno)
            texts = [(ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1])) for node in calls]
            if texts:
                found[function.name] = texts
    return found


def execute(text: str, constraints: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Runs and, or, shl and shr on words: outputs are $0 and up, inputs follow them. Anything else is refused."""
    outputs = constraints.count("=")
    assert constraints.split(",") == ["=r"] * outputs + ["r"] * len(inputs)
    values = {f"${outputs + i}": word for i, word in enumerate(inputs)}
    body = text.strip()
    assert body.startswith("{") and body.endswith("}")
    for line in body[1:-1].split(";"):
        line = line.strip()
        if not line or REGISTERS.fullmatch(line):
            continue
        match = INSTRUCTION.fullmatch(line)
        assert match, f"unknown instruction {line!r}"
        operation, kind, target, *operands = match.groups()
        assert kind == ("u32" if operation == "shr" else "b32")
        assert target not in (f"${outputs + i}" for i in range(len(inputs)))
        a, b = (values[o] if o in values else np.uint32(int(o, 0)) for o in operands)
        if operation == "and":
            values[target] = a & b
        elif operation == "or":
            values[target] = a | b
        elif operation == "shl":
            values[target] = a << b
        else:
            values[target] = a >> b
    return [values[f"${i}"] for i in range(outputs)]


@triton.jit
def unpack_kernel(a, b, out, SIZE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ASM: tl.constexpr):
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
    elif KIND == 3:
        t = tiles.unpack_weight_triples(x, y, 0, ASM)
    else:
        t = tiles.unpack_weight_triples(x, y, 1, ASM)
    tl.store(out + at, t[0])
    tl.store(out + SIZE + at, t[1])
    if KIND > 1:
        tl.store(out + 2 * SIZE + at, t[2])
        tl.store(out + 3 * SIZE + at, t[3])


def signed(codes: np.ndarray, bits: int) -> np.ndarray:
    """WEIGHT_SCALE times the two's complement number of ``bits`` bits, as a byte."""
    half = 1 << (bits - 1)
    return (((codes.astype(np.int32) ^ half) - half) << (8 - bits)).astype(np.uint8)


def pairs(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    return [a % 16, a // 16]


def weight_pairs(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    return [signed(a % 16, 4), signed(a // 16, 4)]


def triples(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    nibble = np.where(np.arange(a.shape[1]) % 2, b // 16, b % 16)
    return [a // 4**t % 4 + 4 * (nibble // 2**t % 2) for t in range(4)]


def weight_triples(half: int) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    return lambda a, b: [signed(a // 4**t % 4 + 4 * (b // 2 ** (4 * half + t) % 2), 3) for t in range(4)]


KINDS: list[tuple[str, int, Callable[[np.ndarray, np.ndarray], list[np.ndarray]]]] = [
    ("unpack_pairs", 0, pairs), ("unpack_weight_pairs", 0, weight_pairs), ("unpack_triples", 0, triples),
    ("unpack_weight_triples", 0, weight_triples(0)), ("unpack_weight_triples", 1, weight_triples(1)),
]


def every_byte(both: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [rows, 256]: each value, or each pair of values, in each of the four places of a word."""
    j, turn = np.arange(COLUMNS), np.arange(4)
    turned = ((j[None, :] + turn[:, None]) % 256).astype(np.uint8)
    if not both:
        return turned, turned
    a = np.repeat(np.arange(256, dtype=np.uint8), 4)[:, None]
    return np.ascontiguousarray(np.broadcast_to(a, (1024, COLUMNS))), np.ascontiguousarray(np.tile(turned, (256, 1)))


@pytest.mark.parametrize("asm", [False, True], ids=["plain", "assembly"])
@pytest.mark.parametrize("kind", range(5), ids=["pairs", "weight pairs", "triples", "weight triples 0", "weight triples 1"])
def test_truth_table(device: str, kind: int, asm: bool) -> None:
    name, which, definition = KINDS[kind]
    a, b = every_byte(both=kind > 1)
    expected = definition(a, b)
    if asm and INTERPRETED:
        words = [v.view("<u4") for v in ((a,) if kind < 2 else (a, b))]
        found = np.stack([word.view(np.uint8) for word in execute(*assembly()[name][which], words)])
    else:
        out = torch.zeros((len(expected), *a.shape), dtype=torch.int8, device=device)
        rows = min(len(a), 16)
        arguments = [torch.from_numpy(v.view(np.int8)).to(device) for v in (a, b)]
        unpack_kernel[(len(a) // rows,)](*arguments, out, SIZE=a.size, KIND=kind, ROWS=rows, COLUMNS=COLUMNS, ASM=asm)
        found = out.cpu().numpy().view(np.uint8)
    for tile, values in enumerate(expected):
        np.testing.assert_array_equal(found[tile], values, err_msg=f"tile {tile}")


def test_every_assembly_is_checked() -> None:
    assert {name: len(texts) for name, texts in assembly().items()} == {
        "unpack_pairs": 1, "unpack_weight_pairs": 1, "unpack_triples": 1, "unpack_weight_triples": 2,
    }


def test_the_evaluator_refuses_what_it_does_not_know() -> None:
    word = np.array([0x01020304], np.uint32)
    assert execute("{ .reg .b32 t; shr.u32 t, $1, 8; and.b32 $0, t, 0xFF; }", "=r,r", [word])[0][0] == 3
    with pytest.raises(AssertionError, match="unknown instruction"):
        execute("{ prmt.b32 $0, $1, $1, 0; }", "=r,r", [word])
    with pytest.raises(AssertionError):
        execute("{ shr.b32 $0, $1, 8; }", "=r,r", [word])
