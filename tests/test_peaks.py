"""The peaks probe: every instruction set of this machine, what it must not do, and what it must refuse."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import threading
from pathlib import Path

import pytest

from hce_engine import _native
from hce_engine.errors import InputError, UnsupportedError
from hce_engine.machine import cache_bytes
from hce_engine.peaks import KINDS, PLACES, Peaks, measure_peaks

QUICK = {"seconds": 0.001, "repeats": 3}


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_has_peaks(isa: str, threads: int) -> None:
    peaks = measure_peaks(isa, threads, **QUICK)
    assert (peaks.isa, peaks.threads) == (isa, threads)
    assert set(peaks.macs) == set(peaks.instructions) == set(KINDS)
    assert set(peaks.read) == set(peaks.triad) == set(peaks.array_bytes) == set(PLACES)
    for rate in (*peaks.macs.values(), *peaks.read.values(), *peaks.triad.values()):
        assert 0 < rate < 1e15  # no more: on a busy machine a run waits for its turn
    json.dumps(peaks.as_dict(), allow_nan=False)


def test_vectors_do_many_times_what_portable_code_does() -> None:
    """By a factor of 18 (AVX2) and 70 where it was measured, so that a busy machine cannot hide it. Closer ratios are left to
    the instructions, below: times on a busy machine prove nothing."""
    isa = _native.supported_isas()[0]
    if isa == "portable":
        pytest.skip("this processor has portable kernels only")
    native = _native.extension()
    best, portable = (max(native.measure_macs(name, "u8", threads=1, seconds=0.005, repeats=20)) for name in (isa, "portable"))
    assert best > 2 * portable


@pytest.mark.parametrize(("function", "instruction"), [
    (r"peaks512::[^\n]*Vfmadd", "vfmadd231ps %zmm"), (r"peaks512::[^\n]*Vpdpbusd", "vpdpbusd %zmm"), (r"avx2::[^\n]*Vfmadd", "vfmadd231ps %ymm"),
    (r"avx2::[^\n]*Dot8", "vpaddd %ymm"), (r"avx2::[^\n]*Dot4", "vpaddw %ymm"),
])
def test_loops_consist_of_what_they_claim(function: str, instruction: str) -> None:
    """Twelve steps per iteration on accumulators of their own: equal ones would have been merged into one."""
    if "avx2" not in _native.supported_isas():
        pytest.skip("the loops in assembly are x86-64")
    path = importlib.util.find_spec("hce_engine._C").origin  # type: ignore[union-attr]
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", "-C", path], capture_output=True, text=True, check=True).stdout
    bodies = re.findall(rf"<hce::{function}[^\n]*>:\n(.*?)\n\n", text, re.S)
    assert bodies
    for body in bodies:
        accumulators = re.findall(rf"{instruction}\d+,%[yz]mm\d+,(%[yz]mm\d+)", body)
        assert len(accumulators) == len(set(accumulators)) == 12


def test_two_threads_may_measure_at_once() -> None:
    found: list[Peaks] = []
    workers = [threading.Thread(target=lambda: found.append(measure_peaks(threads=1, **QUICK))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 2


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="instruction set"):
        measure_peaks("neon")
    for wrong in ({"threads": 0}, {"seconds": 0.0}, {"repeats": 0}, {"seconds": float("nan")}):
        with pytest.raises(InputError, match="peaks"):
            measure_peaks(**wrong)  # type: ignore[arg-type]
    native = _native.extension()
    with pytest.raises(ValueError, match="f32, u8 or u4"):
        native.measure_macs("portable", "f64", threads=1, seconds=0.001, repeats=1)
    with pytest.raises(ValueError, match="whole blocks"):
        native.measure_bandwidth("portable", "read", 100, threads=1, seconds=0.001, repeats=1)


def test_places_of_sizes() -> None:
    sizes = {"l1": 16_000, "l2": 500_000, "l3": 8_000_000, "memory": 64_000_000}
    rates = dict.fromkeys(PLACES, 1.0)
    peaks = Peaks("avx2", 1, dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, ""), rates, rates, sizes)
    assert [peaks.place_of(size) for size in (1, 32_000, 32_001, 1_000_001, 16_000_001)] == ["l1", "l1", "l2", "l3", "memory"]


def test_of_two_measurements_the_better_counts() -> None:
    sizes = dict.fromkeys(PLACES, 1)
    one, two = (Peaks("avx2", 1, dict.fromkeys(KINDS, rate) | {"u8": 5.0}, dict.fromkeys(KINDS, ""), dict.fromkeys(PLACES, rate),
                      dict.fromkeys(PLACES, 7.0 - rate), sizes) for rate in (1.0, 2.0))
    best = one.or_better(two)
    assert best.macs == {"f32": 2.0, "u8": 5.0, "u4": 2.0}
    assert set(best.read.values()) == {2.0} and set(best.triad.values()) == {6.0}


def test_cache_sizes_come_from_the_system(tmp_path: Path) -> None:
    for number, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "1M"), (3, "Unified", "?")]):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert cache_bytes(tmp_path) == {1: 48 * 2**10, 2: 2**20}
    assert cache_bytes(tmp_path / "nowhere") == {}
