"""The test suite on the GPU, with compiled kernels: counts, and the name and reason of what failed or was skipped.

Each test's outcome is noted as it comes (outcomes.py), so that a run that is cut short has what it has, and the next one
goes on behind it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from . import stage

NAME = "tests"
FOLDERS = ("tests/cuda", "tests/kernels", "tests/backends", "tests/training/test_cuda_graph.py")
# Of compilers and of threads on the host: a GPU adds nothing to what CI says of them.
WITHOUT_A_GPU = ("tests/cuda/test_build.py", "tests/cuda/test_host_kernels.py", "tests/cuda/test_host_module.py", "tests/cuda/test_winograd.py")
MARGIN = 5.0  # seconds to end pytest and write
WORKERS = 8
GOOD = (0, 1, 5)  # all passed, some failed, none left to run: what any other code means, no count would show


def take(document: stage.Document, outcomes: Path) -> None:
    """Moves what pytest noted so far into the document."""
    for line in outcomes.read_text().splitlines() if outcomes.exists() else ():
        try:
            test, outcome, seconds, why = json.loads(line)
        except ValueError:  # a line that is still being written
            continue
        result = {"outcome": outcome, "seconds": seconds, "held": outcome != "failed"}
        document.items[test] = result | ({"why": why} if why else {})
    document.content["counts"] = dict(Counter(result["outcome"] for result in document.items.values()))


def pytest(document: stage.Document, deadline: stage.Deadline, options: Sequence[str]) -> int | None:
    """Runs what has no outcome yet; the exit code, None out of time."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes, known = Path(folder) / "outcomes", Path(folder) / "known"
        known.write_text(json.dumps(sorted(document.items)))
        environment = {**os.environ, "HCE_TEST_OUTCOMES": str(outcomes), "HCE_TEST_KNOWN": str(known)}
        command = [sys.executable, "-m", "pytest", *(f for f in FOLDERS if (stage.ROOT / f).exists()), *(f"--ignore={f}" for f in WITHOUT_A_GPU),
                   "-q", "--tb=short", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", *options]
        process = subprocess.Popen(command, cwd=stage.ROOT, env=environment, start_new_session=True)
        while process.poll() is None and deadline.left() > MARGIN:
            time.sleep(1)
            take(document, outcomes)
            document.save(5 * stage.SAVE_EVERY)
        late = process.poll() is None
        if late:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=MARGIN / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        take(document, outcomes)
    return None if late else code


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    workers = min(WORKERS, len(os.sched_getaffinity(0)))
    parallel = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    code = pytest(document, deadline, parallel)
    if parallel and code not in (*GOOD, None) and not document.items:  # the plugin itself does not work here
        parallel = []
        code = pytest(document, deadline, parallel)
    document.content["pytest"] = {"code": code, "workers": workers if parallel else 1, "data": bool(os.environ.get("HCE_DATA"))}
    if code is None:
        return stage.finish(document, ["the rest of the tests"])
    if code not in GOOD or not document.items:
        document.add("pytest itself", {"held": False, "error": f"pytest ended with code {code}"})
    return stage.finish(document, [])


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
