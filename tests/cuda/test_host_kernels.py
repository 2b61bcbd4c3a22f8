"""The kernel bodies of csrc/cuda on threads of the operating system, without a GPU: results, bounds and races.

The same sources are compiled by g++ with HostContext (csrc/cuda/context.h) and run once under the address sanitizer, which
finds an index that leaves a buffer or the shared memory, and once under the thread sanitizer, which finds a missing barrier.
What is compared with what stands at the top of host_kernels.cpp. Not optimised, because that would take the compiler a minute.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .sanitized import run_sanitized

SOURCE = Path(__file__).with_name("host_kernels.cpp")
GROUPS = ("conv", "conv_tiles", "linear", "depthwise", "pool", "elementwise", "images", "warp", "arguments", "grids",
          "nhwc_conv", "nhwc_depthwise", "nhwc_moves", "nhwc_images", "nhwc_arguments")
SANITIZERS = ("address", "thread")
Run = Callable[[str, str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(sanitizer, group): the program is compiled when it is first asked for."""
    folder = tmp_path_factory.mktemp("host_kernels")
    return lambda sanitizer, group: run_sanitized(SOURCE, sanitizer, folder, group)


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
