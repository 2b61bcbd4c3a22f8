"""A stage without a GPU, whose items do what their names say. ``FAKE`` in the environment lists them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.gpu import stage


def item(name: str) -> stage.Item:
    def measure() -> stage.Result:
        if name.startswith("sleep"):
            time.sleep(float(name[5:]))
        if name == "raises":
            raise ValueError("as asked")
        if name == "poisons":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if name == "dies":
            os._exit(9)
        return {"held": name != "wrong", "process": os.getpid()}

    return stage.Item(name, 1.0 if name != "long" else 1e6, measure)


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, [item(name) for name in os.environ["FAKE"].split()], deadline)


if __name__ == "__main__":
    sys.exit(stage.main(sys.argv[1], run, sys.argv[2:], gpu=False))
