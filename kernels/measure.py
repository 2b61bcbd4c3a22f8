"""The two kinds of work behind the compile check: run cases and compare them, or compile them and count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch

from .budgets import expected_mma
from .case import Built, Case
from .cases import all_cases
from .compiler import compile_launch
from .launch import INTERPRETED, Launch

# Opcodes that spread, shift and mask: what unpacking consists of.
UNPACK = ("LOP3", "SHF", "PRMT", "IMAD.SHL", "SGXT", "BFE", "LEA")
SMALLEST_MMA = 16 * 8  # rows x columns: warps that have none of their own repeat one


def product_tile(launch: Launch) -> tuple[int, int, int]:
    """Rows and columns of the product of one program and the length of its sums; zeros where there is none."""
    if not launch.cost.walked:
        return 0, 0, 0
    rows = launch.constants["MMA_ROWS" if "MMA_ROWS" in launch.constants else "BLOCK_M"]
    columns = launch.constants["BLOCK_N"]
    inner = launch.cost.walked // (prod(launch.grid) * rows * columns)
    return (columns, rows, inner) if launch.constants.get("SWAP") else (rows, columns, inner)


def warp_macs(launch: Launch) -> int:
    """Multiply-accumulates that the tensor cores make for one warp."""
    rows, columns, inner = product_tile(launch)
    return max(rows * columns // launch.num_warps, SMALLEST_MMA) * inner


def _weights(launch: Launch) -> int:
    """Weights that one program unpacks."""
    return launch.constants["BLOCK_N"] * product_tile(launch)[2]


def _compile(built: Built, target: int) -> tuple[dict[str, Any], Counter[str]]:
    """Measurements of all launches together, and what the warps of one program execute."""
    codes = [compile_launch(launch, target) for launch in built.launches]
    outputs = prod(built.launches[-1].grid) * built.tile
    executed: Counter[str] = Counter()
    instructions = 0.0
    for launch, code in zip(built.launches, codes, strict=True):
        counts = code.executed(warp_macs(launch))
        executed.update({name: count * launch.num_warps for name, count in counts.items()})
        instructions += counts.total() * launch.num_warps * prod(launch.grid) * 32 / outputs
    rows, warps = next(((product_tile(launch)[0], launch.num_warps) for launch in built.launches if launch.cost.walked), (0, 0))
    measured = {
        "registers": max(code.registers for code in codes), "stack": max(code.stack for code in codes),
        "local": max(code.local for code in codes), "shared": max(code.shared for code in codes),
        "spills": sum(code.spills for code in codes), "fused": sum(code.fused for code in codes),
        "mma": "+".join(sorted({code.mma for code in codes} - {"none"})) or "none",
        "expected_mma": expected_mma(target, rows, warps),
        "prmt": sum(code.loop["PRMT"] for code in codes), "code": sum(code.instructions for code in codes), "instructions": round(instructions, 1),
        "opcodes": dict(sum((code.opcodes for code in codes), Counter())),
    }
    return measured, executed


def measure(case: Case, targets: Sequence[int]) -> dict[str, Any]:
    """Per target: what ``budgets.py`` judges, the length of the code and its opcodes."""
    built = case.build("cpu", True)
    twin = case.weights_as_bytes("cpu", True) if case.weights_as_bytes else None
    found = {}
    for target in targets:
        measured, executed = _compile(built, target)
        measured["unpack"] = None
        if twin:
            _, plain = _compile(twin, target)
            more = sum(executed[name] - plain[name] for name in UNPACK)
            measured["unpack"] = round(more * 32 / _weights(built.launches[0]), 2)
        found[str(target)] = measured
    return {"targets": found}


def run(case: Case) -> dict[str, Any]:
    """Runs the small launches and counts what differs from the reference."""
    device = "cpu" if INTERPRETED else "cuda"
    built = case.build(device, False)
    for launch in built.launches:
        launch()
    return {"differing": built.differing(), "where": "interpreter" if INTERPRETED else "cuda"}


def work(kind: str, only: Sequence[str], quick: bool, targets: Sequence[int], first: int, count: int) -> Iterator[dict[str, Any]]:
    """The names of all selected cases, then one answer for each ``count``-th of them from ``first`` on."""
    if kind == "run" and not INTERPRETED and not torch.cuda.is_available():
        raise SystemExit("kernels run neither in the interpreter nor on a GPU here")
    torch.set_num_threads(1)
    cases = [case for case in all_cases() if (case.quick or not quick) and (not only or any(text in case.title for text in only))]
    yield {"cases": [case.title for case in cases]}
    for case in cases[first::count]:
        try:
            answer = run(case) if kind == "run" else measure(case, targets)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        yield {"name": case.title, **answer}
