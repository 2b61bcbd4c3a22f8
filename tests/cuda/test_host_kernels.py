"""The kernel bodies of csrc/cuda on threads of the operating system, without a GPU: results, bounds and races.

The same sources are compiled by g++ with HostContext (csrc/cuda/context.h) and run once under the address sanitizer, which
finds an index that leaves a buffer or the shared memory, and once under the thread sanitizer, which finds a missing barrier.
What is compared with what stands at the top of host_kernels.cpp. Not optimised, because that would take the compiler a minute.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("host_kernels.cpp")
GROUPS = ("conv", "conv_tiles", "linear", "depthwise", "pool", "elementwise", "images", "warp", "arguments")
SANITIZERS = ("address", "thread")
Run = Callable[[str, str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(sanitizer, group): the program is compiled when it is first asked for."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found")
    folder = tmp_path_factory.mktemp("host_kernels")
    compiled: dict[str, subprocess.CompletedProcess[str]] = {}

    def start(sanitizer: str, group: str) -> subprocess.CompletedProcess[str]:
        program = folder / sanitizer
        if sanitizer not in compiled:
            command = [compiler, "-x", "c++", "-std=c++17", "-O0", "-g1", "-DHCE_HOST", "-ffp-contract=off", "-Wall", "-Wextra",
                       "-Werror", f"-fsanitize={sanitizer}", "-pthread", str(SOURCE), "-o", str(program)]
            compiled[sanitizer] = subprocess.run(command, capture_output=True, text=True, check=False)
        done = compiled[sanitizer]
        if done.returncode and re.search(rf"cannot find.*lib{sanitizer[0]}san", done.stderr):
            pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
        assert done.returncode == 0, done.stderr
        # Without address space layout randomisation, which some kernels set wider than the thread sanitizer can bear.
        plain = ["setarch", "-R"] if shutil.which("setarch") else []
        command = [*plain, str(program), group]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if plain and "failed to set personality" in done.stderr:
            done = subprocess.run(command[2:], capture_output=True, text=True, check=False, timeout=300)
        return done

    return start


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("group", GROUPS)
def test_kernels_on_threads(run: Run, sanitizer: str, group: str) -> None:
    done = run(sanitizer, group)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sanitizer" not in done.stderr


@pytest.mark.parametrize(("sanitizer", "mutant", "report"), [
    ("thread", "mutant_barrier", "data race"),
    ("address", "mutant_bounds", "heap-buffer-overflow"),
    ("address", "mutant_copy", "the copy was not there yet"),
])
def test_what_must_be_found_is_found(run: Run, sanitizer: str, mutant: str, report: str) -> None:
    done = run(sanitizer, mutant)
    assert done.returncode != 0
    assert report in done.stdout + done.stderr
