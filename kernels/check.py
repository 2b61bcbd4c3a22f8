"""Proves without a GPU that every kernel is right and compiles well: ``python -m hce_engine.kernels.check``.

Each case of cases.py is run in Triton's interpreter and compared with numerics.py, and compiled for sm_80, sm_90 and
sm_100; the machine code is held against budgets.py. One process of Triton either interprets or compiles, so both
happen in processes of their own, beside each other where there is more than one core. One line per case:

    equal       in the interpreter, bit for bit; ``cuda`` where the interpreter of this version cannot run but a GPU is there
    registers, spills, MMA                              of each target
    instr/32    instructions that a warp executes, times warps, for 32 outputs: those of the whole code, and those of a loop of
                tensor-core instructions as often as it runs (machine_code.py)
    unpack      instructions per packed weight beyond those that the same launch needs with weights of 8 bits; - without

Ends with 0 only if everything holds, with 1 otherwise and with the reason under the case, with 2 for wrong options.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from . import budgets
from .interpreter import interpreter_fault

TARGETS = (80, 90, 100)
QUICK_TARGETS = (90,)
START, END = "case ", "end"  # of a line that a worker prints, and of its answers
Message = dict[str, Any]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m hce_engine.kernels.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose title contains TEXT; may be given again")
    parser.add_argument("--targets", default=None, metavar="80,90,100", help="compute capabilities, default all three")
    parser.add_argument("--quick", action="store_true", help="a few cases for sm_90")
    parser.add_argument("--budgets", type=Path, default=budgets.PATH, metavar="FILE", help="another table of budgets")
    parser.add_argument("--update-budgets", action="store_true", help="write what was measured as the budgets of this version of Triton")
    parser.add_argument("--jobs", type=int, default=min(len(os.sched_getaffinity(0)), 8), metavar="N", help="processes that compile")
    parser.add_argument("--worker", choices=("run", "compile"), help=argparse.SUPPRESS)
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    text = options.targets or ",".join(map(str, QUICK_TARGETS if options.quick else TARGETS))
    try:
        options.targets = [int(target) for target in text.split(",")]
    except ValueError:
        parser.error(f"--targets: expected numbers like 80,90, got {text}")
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"--targets: expected some of {TARGETS}, got {sorted(unknown)}")
    if options.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {options.jobs}")
    return options


class _Worker:
    """One process of this program, which prints a line of JSON per case."""

    def __init__(self, kind: str, share: str, options: argparse.Namespace, messages: queue.Queue[Message]) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        if kind == "run" and not interpreter_fault():
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", __spec__.name, "--worker", kind, "--share", share,
                   *(f"--only={text}" for text in options.only), "--targets", ",".join(map(str, options.targets)), *(["--quick"] if options.quick else [])]
        self.kind = kind
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.errors: list[str] = []
        self.threads = [threading.Thread(target=self._read, args=(messages,)), threading.Thread(target=self._listen)]
        for thread in self.threads:
            thread.start()

    def _read(self, messages: queue.Queue[Message]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Compilers print remarks of their own.
            if line.startswith(START):
                messages.put({"kind": self.kind, **json.loads(line.removeprefix(START))})
        messages.put({"kind": END})

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read().splitlines()

    def end(self) -> str | None:
        """What went wrong with the process itself."""
        for thread in self.threads:
            thread.join()
        code = self.process.wait()
        return f"the process that should {self.kind} them ended with {code}: {' '.join(self.errors[-3:])}" if code else None


def _judge(case: Message, targets: Sequence[int], table: budgets.Table, release: str) -> list[str]:
    """All that does not hold for a case."""
    run, compiled = case.get("run", {}), case.get("compile", {})
    faults = [run["error"]] if "error" in run else []
    if run.get("differing"):
        faults.append(f"{run['differing']} values differ from the reference")
    if "error" in compiled:
        faults.append(compiled["error"])
    else:
        for target in targets:
            measured = compiled["targets"][str(target)]
            found = budgets.structural_faults(target, measured)
            if release in table:
                budget = table[release].get(case["name"], {}).get(str(target))
                found += budgets.budget_faults(measured, budget) if budget else ["no budget; run with --update-budgets"]
            faults += [f"sm_{target}: {fault}" for fault in found]
    return faults


def _line(case: Message, targets: Sequence[int], width: int) -> str:
    run, compiled = case.get("run", {}), case.get("compile", {})
    equal = "no" if run.get("differing", 1) else run["where"]
    measured = [compiled.get("targets", {}).get(str(target), {}) for target in targets]

    def column(key: str, form: str = "d") -> str:
        values = [m.get(key) for m in measured]
        return "/".join("-" if value is None else format(value, form) for value in values)

    mma = "/".join(m.get("mma", "-") for m in measured)
    return (
        f"{case['name']:<{width}}  {equal:<11}  {'/'.join(map(str, targets)):<9}  {column('registers'):<11}  {column('spills'):<6}  "
        f"{mma:<23}  {column('instructions', '.1f'):<20}  {column('unpack', '.2f')}"
    )


def _header(width: int) -> str:
    return (
        f"{'kernel and configuration':<{width}}  {'equal':<11}  {'sm':<9}  {'registers':<11}  {'spills':<6}  {'MMA':<23}  "
        f"{'instr/32':<20}  unpack"
    )


def _collect(options: argparse.Namespace) -> Iterator[Message]:
    """The cases with what both kinds of process say of them, in the order of the table."""
    messages: queue.Queue[Message] = queue.Queue()
    workers = [_Worker("run", "0/1", options, messages)]
    workers += [_Worker("compile", f"{i}/{options.jobs}", options, messages) for i in range(options.jobs)]
    names: list[str] = []
    cases: dict[str, Message] = {}
    running, shown = len(workers), 0
    while running:
        message = messages.get()
        kind = message.pop("kind")
        if kind == END:
            running -= 1
        elif "cases" in message:
            names = message["cases"]
        else:
            cases.setdefault(message["name"], {"name": message["name"]})[kind] = message
        while shown < len(names) and {"run", "compile"} <= set(cases.get(names[shown], ())):
            yield cases[names[shown]]
            shown += 1
    faults = {worker.kind: fault for worker in workers if (fault := worker.end())}
    if "run" in faults and (reason := interpreter_fault()):
        faults["run"] += f" ({reason})"
    if faults and not names:
        raise SystemExit("\n".join(faults.values()))
    for name in names[shown:]:
        missing = {kind: {"error": faults.get(kind, "no answer")} for kind in ("run", "compile")}
        yield {"name": name, **missing, **cases.get(name, {})}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        from .measure import work

        first, _, count = options.share.partition("/")
        for message in work(options.worker, options.only, options.quick, options.targets, int(first), int(count)):
            print(START + json.dumps(message), flush=True)
        return 0
    started, release = time.monotonic(), budgets.minor_version(version("triton"))
    table = budgets.read_budgets(options.budgets)
    width, seen, wrong = 78, [], 0
    print(_header(width))
    for case in _collect(options):
        case["faults"] = _judge(case, options.targets, {} if options.update_budgets else table, release)
        print(_line(case, options.targets, width))
        for fault in case["faults"]:
            print(f"    FAILED {fault}")
        sys.stdout.flush()
        seen.append(case)
        wrong += bool(case["faults"])
    if options.update_budgets:
        known = table.setdefault(release, {})
        for case in seen:
            for target, measured in case.get("compile", {}).get("targets", {}).items():
                known.setdefault(case["name"], {})[target] = budgets.numbers_of(measured)
        if not (options.only or options.quick):
            table[release] = {case["name"]: known[case["name"]] for case in seen if case["name"] in known}
        budgets.write_budgets(table, options.budgets)
    elif release not in table:
        print(f"no budget for triton {release}: registers and instructions are shown, not judged")
    if options.json:
        document = {"schema_version": 1, "command": "kernels.check", "triton": version("triton"), "cases": seen}
        with atomic_write(options.json) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())
    if not seen:
        print(f"no case contains {' or '.join(map(repr, options.only))}")
    print(f"{len(seen)} cases, {wrong} failed, {time.monotonic() - started:.0f} s, triton {version('triton')}")
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
