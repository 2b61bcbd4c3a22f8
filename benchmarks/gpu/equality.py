"""Every kernel that later stages may time is compiled and held against the integer reference, byte by byte.

Processes beside each other do it, and leave the compiled kernels in Triton's cache. The kernel is the one that is timed, down
to its constants; only the batch is small. A configuration whose result differs is excluded from everything that follows, and
the stage fails; one that this GPU cannot hold is excluded without a failure. Triton has been seen to compile flattened loops
over taps wrongly at 8 warps: that is what this stage is for.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

from hce_engine.kernels.launch import INTERPRETED

from . import pool, stage
from .candidates import Check, checks
from .operands import Convolution, Product
from .shapes import ConvLayer

NAME = "equality"
EACH = 45.0  # seconds for one check, compilation included
IMAGES = {"resnet20": 3, "resnet50": 2}  # odd where it can be: the last tile is not full
ROWS = 77
REMEMBERED = 4  # operands per worker
WORKERS = 14

_operands: OrderedDict[Any, Convolution | Product] = OrderedDict()


def operands(shape: Any) -> Convolution | Product:
    if shape not in _operands:
        if isinstance(shape, ConvLayer):
            made: Convolution | Product = Convolution(shape, IMAGES[shape.network], exact=True)
        else:
            made = Product(shape[0], shape[1], ROWS, shape[2])
        _operands[shape] = made
        while len(_operands) > REMEMBERED:
            _operands.popitem(last=False)
    _operands.move_to_end(shape)
    return _operands[shape]


def answer(message: pool.Message) -> pool.Message:
    """One check; ``excluded`` names why a configuration cannot run here."""
    check = Check.of_message(message)
    try:
        wrong = operands(check.shape).differing(check.config, asm=check.asm and not INTERPRETED)
    except Exception as error:
        if type(error).__name__ == "OutOfResources":
            return {"held": True, "excluded": " ".join(str(error).split())[:200]}
        return {**stage.failure(error), "last": stage.sticky(error)}
    return {"held": wrong == 0, "differing": wrong}


def verified(out: Path) -> set[str]:
    """Keys of the checks that held and can be timed."""
    items = stage.read(out, NAME).get("items", {})
    return {key for key, result in items.items() if result.get("differing") == 0}


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    wanted = [check for check in checks() if check.key not in document.items]
    remaining = {check.key for check in wanted}
    document.content["pending"] = sorted(remaining)

    def done(task: pool.Message, result: pool.Message) -> None:
        remaining.discard(task["key"])
        document.content["pending"] = sorted(remaining)
        document.add(task["key"], result)
        if not result["held"]:
            why = result.get("error") or f"{result['differing']} bytes differ from the reference"
            print(f"EXCLUDED {task['key']}: {why}", flush=True)

    workers = max(1, min(WORKERS, len(os.sched_getaffinity(0)) - 1))
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker: there are as many as cores
    command = [sys.executable, "-m", f"benchmarks.gpu.{NAME}", "--worker"]
    pool.run(command, [check.message() for check in wanted], workers, EACH, deadline.left, done)
    return stage.finish(document, [check.key for check in wanted if check.key in remaining])


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        pool.serve(answer)
    else:
        sys.exit(stage.main(NAME, run))
