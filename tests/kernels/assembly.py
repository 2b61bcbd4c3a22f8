"""Executes the inline assembly of a kernel file on the host: it is read from the source, so that no copy can differ."""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType

import numpy as np

REGISTERS = re.compile(r"\.reg \.b32 [\w, ]+")
SIMPLE = {"and.b32": np.bitwise_and, "or.b32": np.bitwise_or, "xor.b32": np.bitwise_xor, "shl.b32": np.left_shift, "shr.u32": np.right_shift}
SATURATED = {"cvt.pack.sat.s8.s32.b32": (8, -128, 127), "cvt.pack.sat.u4.s32.b32": (4, 0, 15)}


def assembly(module: ModuleType) -> dict[str, tuple[str, str]]:
    """Text and constraints of the assembly of each function of a module that has one."""
    found: dict[str, tuple[str, str]] = {}
    for function in ast.parse(inspect.getsource(module)).body:
        if isinstance(function, ast.FunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            calls = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "inline_asm_elementwise"]
            assert len(calls) <= 1
            for node in calls:
                found[function.name] = (ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1]))
    return found


def _prmt(a: np.ndarray, b: np.ndarray, selector: int) -> np.ndarray:
    """Byte i of the result is byte ``selector >> 4 i & 7`` of b:a; the sign replication of bit 3 is not used here."""
    result = np.zeros_like(a)
    for i in range(4):
        choice = selector >> 4 * i & 15
        assert choice < 8
        source = a if choice < 4 else b
        result |= (source >> np.uint32(8 * (choice % 4)) & np.uint32(255)) << np.uint32(8 * i)
    return result


def _pack(operation: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """{c shifted up, a, b}: a and b saturated from int32, b in the lowest bits (PTX ISA, cvt.pack)."""
    bits, low, high = SATURATED[operation]
    mask = np.uint32((1 << bits) - 1)
    low_part, high_part = (np.clip(v.view(np.int32), low, high).view(np.uint32) & mask for v in (b, a))
    return c << np.uint32(2 * bits) | high_part << np.uint32(bits) | low_part


def execute(text: str, constraints: str, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Runs the instructions named above on words, uint32 arrays of one shape: outputs are $0 and up, inputs follow them.
    Anything else is refused."""
    outputs = constraints.count("=")
    # "&": outputs are written before the last input is read, so they must not share a register with one.
    assert constraints.split(",") == ["=&r"] * outputs + ["r"] * len(inputs)
    values = {f"${outputs + i}": word for i, word in enumerate(inputs)}
    fixed = set(values)
    body = text.strip()
    assert body.startswith("{") and body.endswith("}")
    for line in body[1:-1].split(";"):
        line = line.strip()
        if not line or REGISTERS.fullmatch(line):
            continue
        operation, _, rest = line.partition(" ")
        target, *names = (name.strip() for name in rest.split(","))
        assert target not in fixed
        operands = [values[n] if n in values else np.full_like(inputs[0], int(n, 0)) for n in names]
        if operation in SIMPLE:
            values[target] = SIMPLE[operation](*operands)
        elif operation == "prmt.b32":
            values[target] = _prmt(operands[0], operands[1], int(names[2], 0))
        else:
            assert operation in SATURATED, f"unknown instruction {line!r}"
            values[target] = _pack(operation, *operands)
    return [values[f"${i}"] for i in range(outputs)]
