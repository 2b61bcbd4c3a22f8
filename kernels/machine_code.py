"""What a compiled kernel is made of, read from its cubin with the disassembler that ships with Triton.

Nothing runs: registers, stack and memory come from the resource table of the cubin, counts from its instructions. An
opcode is counted by its first word (``LOP3.LUT`` is LOP3), a shift that is done by a multiplier as IMAD.SHL; NOP is not counted.

What a warp executes is the instructions of the code, and those of the loop that holds the tensor-core instructions as often as it
runs. How often follows from the products that a tile needs, because each tensor-core instruction says how many it makes;
``iterations`` is 1 for straight code. Other loops are counted once.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)(.*)")
LABEL = re.compile(r"(\.L_\w+):")
TARGET = re.compile(r"\((\.L_\w+)\)")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# Multiply-accumulates of one int8 instruction: per warp (mma.sync) or per group of 4 warps (wgmma).
WARP_MMA = re.compile(r"\.(\d\d)(\d)(\d\d)(?:\.|$)")
GROUP_MMA = re.compile(r"\.(\d+)x(\d+)x(\d+)(?:\.|$)")
MMA_KINDS = {"IMMA": "mma.sync", "IGMMA": "wgmma", "UTCIMMA": "tcgen05"}
FUSED = re.compile(r"U?FFMA\d*I?$|DFMA$")


@dataclass(frozen=True)
class MachineCode:
    """registers, stack, local: per thread, the last two in bytes.  shared: bytes per program, asked for at the launch
    or before it.  opcodes: of the whole code; loop: of the loop that holds the tensor-core instructions.  mma_macs,
    loop_mma_macs: multiply-accumulates of one warp, in the same places."""

    registers: int
    stack: int
    local: int
    shared: int
    opcodes: Counter[str]
    loop: Counter[str]
    mma_macs: int
    loop_mma_macs: int

    @cached_property
    def instructions(self) -> int:
        return self.opcodes.total()

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.opcodes["LDL"] + self.opcodes["STL"]

    @property
    def mma(self) -> str:
        """Kind of the tensor-core instructions, or none."""
        return "+".join(kind for name, kind in MMA_KINDS.items() if self.opcodes[name]) or "none"

    @property
    def fused(self) -> int:
        """Floating-point multiply-adds that round once."""
        return sum(count for name, count in self.opcodes.items() if FUSED.fullmatch(name))

    def iterations(self, macs: int) -> int:
        """How often the loop runs, if each warp makes ``macs`` multiply-accumulates."""
        if not self.loop_mma_macs:
            return 1
        return max(1, -(-(macs - self.mma_macs + self.loop_mma_macs) // self.loop_mma_macs))

    def executed(self, macs: int) -> Counter[str]:
        """Instructions of a warp by opcode."""
        times = self.iterations(macs) - 1
        return self.opcodes + Counter({name: count * times for name, count in self.loop.items()})


def _tool(name: str, *arguments: str) -> str:
    path = TOOLS / name
    if not path.exists():
        raise RuntimeError(f"machine code: expected {name} of triton {triton.__version__}, got no file {path}; reinstall triton")
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _macs(opcode: str, modifiers: str) -> int:
    """Multiply-accumulates that one warp makes in one instruction."""
    if opcode == "IMMA" and (shape := WARP_MMA.search(modifiers)):
        return int(shape[1]) * int(shape[2]) * int(shape[3])
    if opcode == "IGMMA" and (shape := GROUP_MMA.search(modifiers)):
        return int(shape[1]) * int(shape[2]) * int(shape[3]) // 4
    return 0


def parse_instructions(text: str) -> tuple[Counter[str], Counter[str], int, int]:
    """opcodes, loop, mma_macs and loop_mma_macs of what nvdisasm prints."""
    labels: dict[str, int] = {}
    found: list[tuple[str, int]] = []
    branches: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := LABEL.match(line.strip()):
            labels[label[1]] = len(found)
        elif instruction := INSTRUCTION.search(line):
            opcode, modifiers, rest = instruction[2], instruction[3], instruction[4]
            if opcode == "NOP":
                continue
            if opcode in ("BRA", "UBRA") and (target := TARGET.search(rest)):
                branches.append((len(found), target[1]))
            found.append(("IMAD.SHL" if modifiers.startswith(".SHL") else opcode, _macs(opcode, modifiers)))
    # Backward branches whose body multiplies; of nested ones the innermost.
    bodies = [found[labels[name] : at + 1] for at, name in branches if labels.get(name, at) < at]
    bodies = sorted((body for body in bodies if any(macs for _, macs in body)), key=len)
    body = bodies[0] if bodies else []
    return (
        Counter(opcode for opcode, _ in found), Counter(opcode for opcode, _ in body), sum(macs for _, macs in found),
        sum(macs for _, macs in body),
    )


def read_cubin(cubin: bytes, dynamic_shared: int = 0) -> MachineCode:
    """The machine code of a cubin with one kernel. dynamic_shared: bytes that the launch asks for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", "-ndf", file.name)
    resources = RESOURCES.search(usage)
    if resources is None:
        raise RuntimeError(f"machine code: expected the resources of one kernel, got {usage!r}")
    registers, stack, shared, local = map(int, resources.groups())
    opcodes, loop, macs, loop_macs = parse_instructions(text)
    return MachineCode(registers, stack, local, shared + dynamic_shared, opcodes, loop, macs, loop_macs)
