"""What this machine can do at all: its name and versions, and the rates that everything else is held against.

Copies count bytes read and written. Matrix rates count two operations per multiply-accumulate, on random operands; the best of
a library's product and a loop of tensor-core instructions over operands that are already on the chip. The same loop tells
mma.sync from wgmma: which of the two a kernel got is read from its PTX. Float32 outside the tensor cores: ffma.py. Results are
verified first.
"""

from __future__ import annotations

import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from hce_engine.bench.cuda_clocks import FIELDS, ask
from hce_engine.machine import processor

from . import ffma, measure, stage

NAME = "machine"
MEBI = 1 << 20
COPY_SIZES = (64 * MEBI, 256 * MEBI, 1024 * MEBI, 4096 * MEBI)
MATRIX = 8192
# Rows and columns of a tile, warps: fewer than four warps get mma.sync, four and more wgmma from 64 rows on.
TILES = ((16, 64, 4), (32, 64, 4), (32, 128, 4), (64, 64, 2), (64, 32, 1), (64, 64, 4), (64, 128, 4), (64, 256, 4), (128, 128, 4), (128, 256, 8))
INNER, REPEATS = 64, 4096
NODES = (1, 64, 256, 1024)
SECONDS = 1.0


@triton.jit
def dot_loop_kernel(x, w, y, REPEATS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """y[program] = REPEATS * x w^T, as REPEATS products that each wait for nothing but the sum before."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x + m[:, None] * K + k[None, :])
    b = tl.trans(tl.load(w + n[:, None] * K + k[None, :]))
    acc = tl.zeros((M, N), tl.int32)
    for _ in range(REPEATS):
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    tl.store(y + tl.program_id(0) * (M * N) + m[:, None] * N + n[None, :], acc)


@triton.jit
def one_store_kernel(x):
    tl.store(x, 1)


def environment() -> stage.Result:
    """Versions, the GPU as torch and nvidia-smi describe it; a field that nvidia-smi does not know is left out."""
    gpu = torch.cuda.get_device_properties(0)
    fields = ("name", "driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "pcie.link.gen.current",
              "pcie.link.width.current", "ecc.mode.current", "persistence_mode", "compute_mode", *FIELDS)
    return {
        "gpu": gpu.name, "capability": list(torch.cuda.get_device_capability()), "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory, "l2_bytes": gpu.L2_cache_size, "nvidia_smi": ask(fields), "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__, "kernel": platform.release(), "processor": processor(), "commit": stage.commit(),
    }


def copy_rate() -> stage.Result:
    """Best median over sizes, of copies between two buffers of random bytes."""
    found = {}
    for size in COPY_SIZES:
        source = torch.randint(0, 1 << 30, (size // 4,), dtype=torch.int32, device="cuda")
        target = torch.empty_like(source)
        repeats = max(1, measure.copies(2 * size))
        pairs = [(source, target), *((source.clone(), torch.empty_like(source)) for _ in range(repeats - 1))]
        recording = measure.Recording([partial(b.copy_, a) for a, b in pairs])
        if not torch.equal(source, target):
            raise ArithmeticError("a copy differs from its source")
        timed = measure.interleave({"copy": recording}, SECONDS)["copy"]
        found[f"{size // MEBI} MiB"] = timed | {"gb_s": measure.digits(2 * size / timed["median_us"] / 1e3)}
        del recording, pairs, source, target
        torch.cuda.empty_cache()
    return {"value": max(result["gb_s"] for result in found.values()), "unit": "GB/s, read and written", "sizes": found}


def _rate(timed: dict[str, Any], operations: float) -> float:
    return measure.digits(operations / timed["median_us"] / 1e6)


def int8_matrix() -> stage.Result:
    x, w = (torch.randint(-128, 128, (MATRIX, MATRIX), dtype=torch.int8, device="cuda") for _ in range(2))
    some = torch.randint(0, MATRIX, (64,), device="cuda")
    expected = (x[some].double() @ w.double().T).to(torch.int32)
    if not torch.equal(torch._int_mm(x, w.T)[some], expected):
        raise ArithmeticError("torch._int_mm differs from float64")
    timed = measure.interleave({"int_mm": measure.Recording([lambda: torch._int_mm(x, w.T)])}, SECONDS)["int_mm"]
    return {"tops": _rate(timed, 2 * MATRIX**3), **timed}


def bf16_matrix() -> stage.Result:
    x, w = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    some = torch.randint(0, MATRIX, (64,), device="cuda")
    checked = measure.check_close("torch.mm bf16", torch.mm(x, w.T)[some], x[some].double() @ w.double().T, 1e-2)
    timed = measure.interleave({"mm": measure.Recording([lambda: torch.mm(x, w.T)])}, SECONDS)["mm"]
    rate = _rate(timed, 2 * MATRIX**3)
    return {"value": rate, "unit": "TFLOP/s", **checked, **timed}


def int8_instructions() -> stage.Result:
    """The rate of tensor-core instructions alone, per tile; int8."""
    found = {}
    for m, n, warps in TILES:
        x = torch.randint(-128, 128, (m, INNER), dtype=torch.int8, device="cuda")
        w = torch.randint(-128, 128, (n, INNER), dtype=torch.int8, device="cuda")
        programs = torch.cuda.get_device_properties(0).multi_processor_count * 8
        y = torch.empty((programs, m, n), dtype=torch.int32, device="cuda")
        name = f"{m}x{n}, {warps} warps"
        try:
            kernel = dot_loop_kernel[(programs,)](x, w, y, REPEATS, m, n, INNER, num_warps=warps)
        except Exception as error:
            found[name] = stage.failure(error)
            continue
        expected = (REPEATS * (x.double() @ w.double().T)).to(torch.int32)
        if not bool((y == expected).all()):
            found[name] = {"held": False, "error": "the sums differ from float64"}
            continue
        ptx = kernel.asm["ptx"]
        kind = "wgmma" if "wgmma.mma_async" in ptx else "mma.sync" if "mma.sync" in ptx else "none"
        call = partial(dot_loop_kernel[(programs,)], x, w, y, REPEATS, m, n, INNER, num_warps=warps)
        timed = measure.interleave({name: measure.Recording([call])}, 0.3)[name]
        operations = 2 * programs * m * n * INNER * REPEATS
        found[name] = {"instruction": kind, "tops": _rate(timed, operations), "median_us": timed["median_us"]}
    best = {kind: max((r["tops"] for r in found.values() if r.get("instruction") == kind), default=None) for kind in ("mma.sync", "wgmma")}
    return {"best": best, "tiles": found, "held": all(result.get("held", True) for result in found.values())}


def int8_rate(document: stage.Document) -> stage.Result:
    """The best of what the two items above reached."""
    rates = [document.items[key].get("tops") for key in ("int8_matrix",)]
    rates += document.items["int8_instructions"].get("best", {}).values()
    return {"value": max(rate for rate in rates if rate), "unit": "TOP/s"}


def graph_nodes() -> stage.Result:
    """What a node of a CUDA graph costs: the slope of replay time over the number of kernels that store one number."""
    x = torch.empty(1, dtype=torch.int32, device="cuda")
    recordings = {str(n): measure.Recording([partial(one_store_kernel[(1,)], x)] * n) for n in NODES}
    timed = measure.interleave(recordings, SECONDS)
    totals = {n: n * timed[str(n)]["median_us"] for n in NODES}
    slope = (totals[NODES[-1]] - totals[NODES[0]]) / (NODES[-1] - NODES[0])
    return {"value": measure.digits(slope), "unit": "us per node", "replay_us": {str(n): measure.digits(t) for n, t in totals.items()}}


def launch_cost() -> stage.Result:
    """What the host needs to launch a Triton kernel, and a torch operation, without a graph."""
    x = torch.empty(1, dtype=torch.int32, device="cuda")
    found = {}
    for name, call in (("triton", partial(one_store_kernel[(1,)], x)), ("torch", partial(x.fill_, 1))):
        for _ in range(50):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(500):
            call()
        found[name] = measure.digits((time.perf_counter() - start) * 1e6 / 500)
        torch.cuda.synchronize()
    return {"value": found["triton"], "unit": "us per launch", **found}


def host_link() -> stage.Result:
    """From pinned host memory to the device."""
    source = torch.randint(0, 256, (256 * MEBI,), dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device="cuda")
    timed = measure.interleave({"link": measure.Live(partial(target.copy_, source, non_blocking=True))}, SECONDS)["link"]
    return {"value": measure.digits(source.numel() / timed["median_us"] / 1e3), "unit": "GB/s", **timed}


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    items = [
        stage.Item("environment", 1, environment), stage.Item("copy_gb_s", 8, copy_rate), stage.Item("ffma_tflops", 4, ffma.rate),
        stage.Item("int8_matrix", 4, int8_matrix), stage.Item("int8_instructions", 20, int8_instructions),
        stage.Item("int8_tops", 0, partial(int8_rate, document), "int8_instructions"), stage.Item("bf16_tflops", 4, bf16_matrix),
        stage.Item("graph_node_us", 4, graph_nodes), stage.Item("launch_us", 2, launch_cost), stage.Item("host_link_gb_s", 3, host_link),
    ]
    return stage.measure(document, items, deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
