"""Programs of this folder under a sanitizer, each built once per run of the tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def _build(source: Path, sanitizer: str, program: Path) -> tuple[int, str]:
    compiler = shutil.which("g++")
    assert compiler is not None
    done = subprocess.run(
        [compiler, "-x", "c++", "-std=c++17", "-O0", "-g1", "-DHCE_HOST", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
         f"-fsanitize={sanitizer}", "-pthread", str(source), "-o", str(program)],
        capture_output=True, text=True, check=False,
    )
    return done.returncode, done.stderr


def run_sanitized(source: Path, sanitizer: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``source`` under ``address`` or ``thread``, built in ``folder``; skips where there is no compiler or no library for it."""
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found")
    program = folder / sanitizer
    code, errors = _build(source, sanitizer, program)
    if code and re.search(rf"cannot find.*lib{sanitizer[0]}san", errors):
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
    assert code == 0, errors
    # Without address space layout randomisation, which some kernels set wider than the thread sanitizer can bear.
    plain = ["setarch", "-R"] if shutil.which("setarch") else []
    command = [str(program), *arguments]
    done = subprocess.run([*plain, *command], capture_output=True, text=True, check=False, timeout=300)
    if plain and "failed to set personality" in done.stderr:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done
