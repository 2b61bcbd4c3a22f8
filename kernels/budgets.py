"""What compiled kernels may cost, and what they must be made of.

Some limits hold for every version of Triton: tensor cores are used, and the fast ones where the tile allows it; nothing is kept in
local memory; no multiply-add rounds once; shared memory fits. Others are numbers that were reached once and must not be lost:
budgets.json holds them for each minor version of Triton, each target and each case. A measurement may exceed them by the
margins below, because another patch release of the compiler moves a few instructions. No torch, no Triton.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import atomic_write

PATH = Path(__file__).with_name("budgets.json")
# Per number: what it may grow by, as a share of the budget and on top of it. prmt: byte permutations in the loop of products,
# which an unpack that moves nothing between lanes does not need.
MARGINS = {"instructions": (0.03, 0.5), "registers": (0.0, 8.0), "unpack": (0.05, 0.05), "prmt": (0.0, 0.0)}
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that one program may have
WGMMA_ROWS = 64

Measured = Mapping[str, Any]
Table = dict[str, dict[str, dict[str, dict[str, float]]]]  # Triton version, case, target, number


def expected_mma(target: int, rows: int, num_warps: int) -> str:
    """Kind of the int8 tensor-core instructions that a product gets whose first operand has ``rows`` rows (0: no product):
    wgmma exists on sm_90 alone, for 64 rows and 4 warps; Triton has no int8 form of tcgen05."""
    if not rows:
        return "none"
    return "wgmma" if target == 90 and rows >= WGMMA_ROWS and num_warps % 4 == 0 else "mma.sync"


def minor_version(version: str) -> str:
    return ".".join(version.split(".")[:2])


def read_budgets(path: Path = PATH) -> Table:
    table: Table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return table


def write_budgets(table: Table, path: Path = PATH) -> None:
    """One line per case, so that a change shows where it is."""
    versions = []
    for version, cases in sorted(table.items()):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(targets)}" for name, targets in sorted(cases.items()))
        versions.append(f" {json.dumps(version)}: {{\n{lines}\n }}")
    with atomic_write(path) as file:
        file.write(("{\n" + ",\n".join(versions) + "\n}\n").encode())


def numbers_of(measured: Measured) -> dict[str, float]:
    """The numbers of a measurement that are budgeted."""
    return {name: measured[name] for name in MARGINS if measured.get(name) is not None}


def structural_faults(target: int, measured: Measured) -> list[str]:
    """What is wrong with machine code whatever compiled it."""
    faults = [
        f"{measured[name]} {text}"
        for name, text in (
            ("spills", "loads and stores of local memory"), ("local", "bytes of local memory"), ("stack", "bytes of stack"),
            ("fused", "fused multiply-adds"),
        )
        if measured[name]
    ]
    if measured["mma"] != measured["expected_mma"]:
        faults.append(f"MMA {measured['mma']}, expected {measured['expected_mma']}")
    if measured["shared"] > SHARED_LIMIT[target]:
        faults.append(f"{measured['shared']} bytes of shared memory, at most {SHARED_LIMIT[target]}")
    return faults


def budget_faults(measured: Measured, budget: Mapping[str, float]) -> list[str]:
    """Which numbers exceed their budgets by more than their margins."""
    faults = []
    for name, value in numbers_of(measured).items():
        share, more = MARGINS[name]
        if name not in budget:
            faults.append(f"no budget for {name}")
        elif value > budget[name] * (1 + share) + more:
            faults.append(f"{name} {value:g}, budget {budget[name]:g}")
    return faults
