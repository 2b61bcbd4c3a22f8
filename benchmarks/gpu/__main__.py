"""Runs the stages one after the other within a time, and prints what they found: ``python -m benchmarks.gpu OUT``.

A stage that is complete is skipped, so the same call again goes on where the last one ended. A stage that breaks does not stop
the others. Time that one does not need, the later ones get. Exit codes: 0 everything was measured and holds, 1 something does
not hold or broke, 3 no GPU here, 75 something is still to be measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import report, stage


@dataclass(frozen=True)
class Stage:
    """name: of its JSON file.  command: what runs it, ``--out`` and ``--deadline`` are added.  weight: its share of the time
    that it and the stages behind it have."""

    name: str
    command: tuple[str, ...]
    weight: float


def module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.gpu.{name}")


# What is right first, then what is wanted most; what the first call leaves, the next one has the time for.
STAGES = (
    Stage("machine", module("ceilings"), 60), Stage("tests", module("suite"), 95), Stage("accuracy", module("accuracy"), 45),
    Stage("repeats", module("repeats"), 45), Stage("equality", module("equality"), 50), Stage("tune", module("tune"), 45),
    Stage("float_layers", module("float_layers"), 80), Stage("ensemble", module("ensemble"), 170), Stage("sanitizer", module("sanitizer"), 90),
    Stage("members", module("members"), 30), Stage("layers", module("layers"), 20), Stage("gemm", module("gemm"), 20),
)
GRACE = 10.0  # seconds that a stage may overrun before it is ended
LEAST = 10.0  # seconds below which no stage is begun
RESTARTS = 3  # of one stage after CUDA errors
SECONDS = 570.0


def run_stage(one: Stage, out: Path, seconds: float, log: IO[bytes]) -> int:
    """The stage's exit code; a CUDA error starts it again behind the item that caused it, as long as time is left."""
    deadline = time.time() + seconds
    code = stage.POISONED
    for _ in range(1 + RESTARTS):
        command = [*one.command, "--out", str(out), "--deadline", str(deadline)]
        environment = {**os.environ, "HCE_GPU_NAME": stage.gpu_name()}
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=stage.ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(deadline - time.time(), 0) + GRACE)
        except subprocess.TimeoutExpired:
            end(process)
            log.write(f"{one.name}: ended {GRACE:.0f} s after its deadline\n".encode())
            return stage.LATE
        except BaseException:
            end(process)
            raise
        if code != stage.POISONED or deadline - time.time() < LEAST:
            return code
    return code


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a stage and the processes that it started, all of which are in its group."""
    with suppress(ProcessLookupError):  # ended by itself meanwhile
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def drive(stages: Sequence[Stage], out: Path, seconds: float) -> dict[str, int]:
    """Exit code of each stage; 75 for one that was not begun."""
    out.mkdir(parents=True, exist_ok=True)
    finish = time.time() + seconds
    codes: dict[str, int] = {}
    identity = stage.identity()
    with open(out / "run.log", "ab", buffering=0) as log:
        for position, one in enumerate(stages):
            document = stage.read(out, one.name)
            if document.get("complete") and document["identity"] == identity:
                codes[one.name] = stage.HELD if document["held"] else stage.FAILED
                print(f"{one.name:12} complete before, skipped", flush=True)
                continue
            share = (finish - time.time()) * one.weight / sum(later.weight for later in stages[position:])
            if share < min(LEAST, seconds / 10):
                codes[one.name] = stage.LATE
                print(f"{one.name:12} not begun: no time left", flush=True)
                continue
            start = time.time()
            log.write(f"--- {one.name}, {share:.0f} s ---\n".encode())
            codes[one.name] = run_stage(one, out, share, log)
            document = stage.read(out, one.name)
            count, pending = len(document.get("items", {})), len(document.get("pending", []))
            print(f"{one.name:12} {meaning(codes[one.name]):24} {count:5} results, {pending:4} to do, {time.time() - start:5.0f} s", flush=True)
            if codes[one.name] == stage.UNSUPPORTED:
                return codes
    for leftover in out.glob(".hce-*.tmp"):  # of a stage that was ended while it wrote
        leftover.unlink(missing_ok=True)
    return codes


def meaning(code: int) -> str:
    words = {stage.HELD: "holds", stage.FAILED: "DOES NOT HOLD", stage.UNSUPPORTED: "no GPU here", stage.LATE: "out of time",
             stage.POISONED: "CUDA ERROR"}
    return words.get(code, f"BROKE with code {code}")


def verdict(codes: Sequence[int]) -> int:
    """One exit code for all."""
    if stage.UNSUPPORTED in codes:
        return stage.UNSUPPORTED
    if any(code not in (stage.HELD, stage.LATE) for code in codes):
        return stage.FAILED
    return stage.LATE if stage.LATE in codes else stage.HELD


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results; what is there is continued")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STAGES], help="stages to run, instead of all")
    given = parser.parse_args(argv)
    reason = stage.no_gpu()
    if reason:
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return stage.UNSUPPORTED
    out = given.out.resolve()
    codes = drive([s for s in STAGES if not given.only or s.name in given.only], out, given.seconds)
    print(report.tables(out))
    return verdict(list(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
