"""Green contexts against a libcuda that checks its arguments, compiled with the prototypes of a cuda.h (fake_libcuda.c)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import triton

from hce_engine.backends.cuda.green_contexts import DevResource, Driver, GreenContexts
from hce_engine.errors import UnsupportedError

HEADERS = Path(triton.__file__).parent / "backends" / "nvidia" / "include"  # Triton's wheels bring cuda.h
SOURCE = Path(__file__).with_name("fake_libcuda.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("gcc")
    if compiler is None or not (HEADERS / "cuda.h").exists():
        pytest.skip("needs gcc and a cuda.h")
    made = tmp_path_factory.mktemp("libcuda") / "libcuda.so"
    size = ctypes.sizeof(DevResource)
    offset = DevResource.sm_count.offset
    check = f'_Static_assert(sizeof(CUdevResource) == {size} && __builtin_offsetof(CUdevResource, sm) == {offset}, "layout");'
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{HEADERS}", "-x", "c", "-", "-o", str(made)], check=True, text=True,
                   input=f"{SOURCE.read_text()}\n{check}\n")
    return str(made)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MULTIPROCESSORS", "REFUSES", "LACKS"):
        monkeypatch.delenv(f"FAKE_{name}", raising=False)


@pytest.mark.parametrize(("share", "sizes"), [(0.5, (72, 60)), (0.25, (40, 92)), (0.75, (104, 28)), (0.001, (8, 124))])
def test_two_sides_share_no_multiprocessor(library: str, share: float, sizes: tuple[int, int]) -> None:
    groups = GreenContexts(1, share, Driver(library))
    assert groups.sizes == sizes
    streams = [groups.new_stream(side) for side in (0, 0, 1)]
    assert len(set(streams)) == 3
    assert [(stream % 1000 - 0x800000000 % 1000) % 1000 for stream in streams] == [sizes[0], sizes[0], sizes[1]]


@pytest.mark.parametrize(("name", "reason"), [
    ("REFUSES=cuDevSmResourceSplitByCount", r"cuDevSmResourceSplitByCount: CUDA_ERROR_OF_ANOTHER_KIND \(915\)"),
    ("REFUSES=cuGreenCtxCreate", r"cuGreenCtxCreate: CUDA_ERROR_NOT_SUPPORTED \(801\)"),
    ("LACKS=cuGreenCtxStreamCreate", r"one without cuGreenCtxStreamCreate \(cuGetProcAddress: 500\)"),
    ("MULTIPROCESSORS=8", "no cut of 8 multiprocessors with 4 on one side"),
])
def test_what_a_driver_does_not_do_is_said(library: str, name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_" + name.split("=")[0], name.split("=")[1])
    alive = ctypes.CDLL(library).contexts_alive
    before = alive()
    with pytest.raises(UnsupportedError, match=f"expected a driver of CUDA 12.5 or later that makes them, got {reason}"):
        GreenContexts(1, 0.5, Driver(library))
    assert alive() == before


def test_without_a_driver_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"missing\.so without cuGetProcAddress_v2"):
        Driver(str(tmp_path / "missing.so"))
    with pytest.raises(UnsupportedError, match="without cuGetProcAddress_v2"):
        Driver("libc.so.6")
