"""Compiles a launch for a GPU that is not there, as the launch itself would be compiled on it.

The signature follows from the launch: tensors are pointers, aligned to 16 bytes as every buffer of the engine is; ints are
int32 and floats binary32 at run time; constants are part of the code. Needs a process that does not interpret kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import INTERPRETED, Launch, require
from .machine_code import MachineCode, read_cubin

TARGETS = (80, 90, 100)
WARP = 32
ALIGNMENT = 16
POINTERS = {
    torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
    torch.float16: "*fp16", torch.float32: "*fp32",
}


def source(launch: Launch) -> ASTSource:
    """The launch as the compiler takes it. Raises ValueError where it would be compiled more than once at run time."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        name, place = parameter.name, (parameter.num,)
        if name in launch.constants:
            require(launch.name, parameter.is_constexpr, f"a constexpr parameter {name}", "an argument of the run time")
            signature[name], constants[place] = "constexpr", launch.constants[name]
            continue
        require(launch.name, name in launch.arguments, f"a value for {name}", sorted(launch.arguments))
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            require(launch.name, value.dtype in POINTERS, f"a tensor of {[*POINTERS]} as {name}", value.dtype)
            signature[name], attributes[place] = POINTERS[value.dtype], [["tt.divisibility", ALIGNMENT]]
        else:
            require(launch.name, parameter.do_not_specialize, f"{name} in do_not_specialize", "a number that is compiled in")
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    unknown = {*launch.constants, *launch.arguments} - set(signature)
    require(launch.name, not unknown, f"parameters of {launch.kernel.__name__}", sorted(unknown))
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_launch(launch: Launch, target: int) -> MachineCode:
    """The machine code of ``launch`` on compute capability ``target`` (90 is sm_90)."""
    if INTERPRETED:
        raise RuntimeError("compile_launch: expected a process that compiles kernels, got TRITON_INTERPRET=1; start another one without it")
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": False}
    kernel = triton.compile(source(launch), target=GPUTarget("cuda", target, WARP), options=options)
    return read_cubin(kernel.asm["cubin"], kernel.metadata.shared)
