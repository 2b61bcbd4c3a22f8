"""The C++ extension with the compiler's sanitizers built in, under tests of this folder: one run each of pytest inside pytest.

Address and undefined behaviour: every kernel on random graphs and odd shapes. Threads: one engine used by many threads at a
time. The extension is built into build/ beside the ordinary one (setup.py, HCE_SANITIZE) and found there before it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "halt_on_error=1:exitcode=77"
# Python never frees much of what it allocates, so leaks are not looked for.
ENVIRONMENT = {"ASAN_OPTIONS": f"{OPTIONS}:detect_leaks=0", "UBSAN_OPTIONS": f"{OPTIONS}:print_stacktrace=1",
               "TSAN_OPTIONS": OPTIONS, "OMP_NUM_THREADS": "1"}
KERNELS = ["tests/backends/test_cpu_codes.py", "tests/backends/test_cpu_float.py", "tests/backends/test_cpu_random_graphs.py",
           "tests/backends/test_cpu_contract.py"]
# What these look at does not exist in such a build, or cannot run in it: machine code, forks, limits of memory.
LEFT_OUT = "not machine_code and not fused_multiply_add and not fork and not refused_threads and not beyond_memory"


def _build(sanitizers: str) -> Path:
    """Folder with the package and its instrumented extension."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("sanitizers are tested with g++ on Linux")
    folder = ROOT / "build" / f"sanitized-{sanitizers.replace(',', '-')}"
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", str(folder)], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "HCE_SANITIZE": sanitizers, "HCE_CUDA": "0"},
    )
    if done.returncode and re.search(r"cannot find.*lib[at]san", done.stderr):
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizers}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    checks = {"address,undefined": b"__asan_report", "thread": b"__tsan_func_entry"}[sanitizers]
    (extension,) = (folder / "hce_engine").glob("_C.*.so")
    assert checks in extension.read_bytes(), f"{extension} was built without -fsanitize={sanitizers}"
    return folder


def _run(sanitizers: str, library: str, *arguments: str) -> str:
    folder = _build(sanitizers)
    # The C++ library too: the sanitizer looks for what it wraps, such as the throwing of exceptions, when the process starts.
    runtime = " ".join(
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (library, "libstdc++.so")
    )
    # Without address space layout randomisation, which some kernels set wider than the thread sanitizer can bear.
    plain = ["setarch", "-R"] if shutil.which("setarch") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={folder} .", *arguments]
    done = subprocess.run([*plain, *command], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, **ENVIRONMENT, "LD_PRELOAD": runtime})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_kernels_under_the_address_and_undefined_behaviour_sanitizers() -> None:
    assert re.search(r"[1-9]\d* passed", _run("address,undefined", "libasan.so", "-k", LEFT_OUT, *KERNELS))


@pytest.mark.slow
def test_threads_under_the_thread_sanitizer() -> None:
    chosen = "many_python_threads or batch_threads_or_company or share_a_tile"
    assert re.search(r"[1-9]\d* passed", _run("thread", "libtsan.so", "-k", chosen, *KERNELS))
