"""compute-sanitizer on every C++ kernel (small_shapes.py): bad addresses, races in shared memory, memory that nobody wrote, barriers.

Each tensor is an allocation of its own there, so that an access beyond one is seen. Where the tool is missing, or the machine
does not let it at the GPU, the result says so and nothing is claimed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from . import stage

NAME = "sanitizer"
TOOL = "compute-sanitizer"
TOOLS = {"memcheck": [], "racecheck": ["--racecheck-report", "all"], "initcheck": [], "synccheck": []}
SECONDS = 90.0  # that a tool may take
LEAST = 40.0  # below which none is begun
MARGIN = 3.0  # to write a result before the stage is ended
ERRORS = 99  # the exit code for what the tool found
REFUSED = re.compile(r"Device not supported|not supported on this|Unable to find injection|Failed to initialize|Target application terminated before first")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?(?: displayed \((\d+) errors?, (\d+) warnings?\))?")


def find() -> str | None:
    return shutil.which(TOOL) or shutil.which(TOOL, path="/usr/local/cuda/bin")


def check(tool: str, deadline: stage.Deadline) -> stage.Result:
    program = find()
    if program is None:
        return {"why": f"{TOOL} was not found"}
    command = [program, "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20", *TOOLS[tool], sys.executable, "-m",
               "benchmarks.gpu.small_shapes"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "HCE_GPU_NAME": stage.gpu_name()}
    limit = min(SECONDS, deadline.left() - MARGIN)
    process = subprocess.Popen(command, cwd=stage.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        output, errors = process.communicate(timeout=max(limit, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the program under the tool too
        process.communicate()
        if limit < SECONDS:
            raise stage.Late from None
        return {"held": False, "error": f"no end within {SECONDS:.0f} s"}
    return outcome(process.returncode, output, errors)


def outcome(code: int, output: str, errors: str) -> stage.Result:
    """What the tool and the program under it said."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    summary = SUMMARY.search(output + errors)
    tail = (output + errors)[-1500:]
    if summary is None or not lines:
        refused = REFUSED.search(output + errors)
        if refused:
            return {"why": f"{TOOL} cannot work here: {refused[0]}"}
        return {"held": False, "error": f"ended with code {code} and without a summary", "tail": tail}
    told = json.loads(lines[-1])
    found = {"errors": int(summary[1]), "exit_code": code, **told}
    clean = found["errors"] == 0 and code == 0 and not told["missing"] and not told["wrong"]
    return found | ({"held": True} if clean else {"held": False, "error": reason(found), "tail": tail})


def reason(found: stage.Result) -> str:
    if found["errors"]:
        return f"{found['errors']} errors"
    if found["wrong"]:
        return f"wrong results: {found['wrong'][0]}"
    return f"not started: {', '.join(found['missing'])}" if found["missing"] else f"exit code {found['exit_code']}"


def items(deadline: stage.Deadline) -> list[stage.Item]:
    return [stage.Item(tool, LEAST, partial(check, tool, deadline)) for tool in TOOLS]


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(deadline), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
