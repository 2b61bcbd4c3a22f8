"""What this machine does at best, measured: multiply-accumulates and bytes per second, on one thread and on all.

    peaks = measure_peaks(threads=1)
    peaks.macs["f32"]               multiply-accumulates/s of the instruction set's float32 step
    peaks.read["l2"]                bytes/s of reading arrays that fit into half of the second-level cache

A layer's time can be held against these figures: no kernel of that instruction set multiplies or loads faster. They are
medians of ``repeats`` runs of about ``seconds`` after a warm-up (csrc/cpu/peaks.h has the loops). Two processes on one
core halve them: measure on an idle machine.

Kinds of multiply-accumulates: ``f32``, ``u8`` (u8 x s8, summed in int32) and ``u4``, the step for codes of at most 4 bits, which
sums in int16 on AVX2 and equals ``u8`` elsewhere. Places of the arrays: half of each cache (``l1``, ``l2``, ``l3``; a shared
l3 is divided among threads), and ``memory``, four times the largest cache. ``triad`` reads two arrays and writes a third; its
bytes are two reads and one write, without the read that a write may cause in the memory system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from . import _native
from .errors import InputError, UnsupportedError
from .machine import cache_bytes
from .threads import available_memory, available_threads

KINDS = ("f32", "u8", "u4")
PLACES = ("l1", "l2", "l3", "memory")
# Where the system does not say: sizes that every x86-64 server processor of the last ten years reaches.
_ASSUMED_CACHES = {1: 32 * 2**10, 2: 256 * 2**10, 3: 8 * 2**20}


@dataclass(frozen=True)
class Peaks:
    """macs: per kind, multiply-accumulates/s.  instructions: what each kind was measured with.  read, triad: bytes/s per
    place.  array_bytes: bytes that a thread touches per place, all its arrays together."""

    isa: str
    threads: int
    macs: Mapping[str, float]
    instructions: Mapping[str, str]
    read: Mapping[str, float]
    triad: Mapping[str, float]
    array_bytes: Mapping[str, int]

    def place_of(self, size: int) -> str:
        """The smallest place that holds ``size`` bytes per thread."""
        return next((p for p in PLACES[:-1] if size <= 2 * self.array_bytes[p]), PLACES[-1])

    def or_better(self, other: Peaks) -> Peaks:
        """The higher of each figure: of two measurements on one machine the lower one was disturbed."""
        def best(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
            return {key: max(value, theirs[key]) for key, value in ours.items()}

        return replace(self, macs=best(self.macs, other.macs), read=best(self.read, other.read), triad=best(self.triad, other.triad))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _array_bytes(threads: int, caches: Mapping[int, int]) -> dict[str, int]:
    sizes = {level: caches.get(level, assumed) for level, assumed in _ASSUMED_CACHES.items()}
    largest = max(sizes.values())
    return {
        "l1": sizes[1] // 2, "l2": sizes[2] // 2, "l3": sizes[3] // 2 // threads,
        "memory": min(4 * largest, available_memory() // 8) // threads,
    }


def measure_peaks(isa: str | None = None, threads: int | None = None, *, seconds: float = 0.02, repeats: int = 7) -> Peaks:
    """The peaks of an instruction set on ``threads`` threads at once (default: all that this process may use).

    isa: as of :func:`_native.choose_isa`.  Takes about 15 * (repeats + 3) * seconds. Safe to call from several Python threads, which
    then compete for the processor. Raises UnsupportedError for an instruction set, threads or memory that this machine has not.
    """
    name = _native.choose_isa(isa)
    threads = available_threads() if threads is None else threads
    if not 1 <= threads <= 1024 or not 0 < seconds <= 10 or not 1 <= repeats <= 1000:
        raise InputError("peaks", expected="1 to 1024 threads, runs of up to 10 s, 1 to 1000 repeats",
                         got=f"{threads} threads, {seconds} s, {repeats} repeats", fix="correct them")
    native, timing = _native.extension(), {"threads": threads, "seconds": seconds, "repeats": repeats}
    sizes = _array_bytes(threads, cache_bytes())
    block = native.PEAK_BLOCK

    def bandwidth(pattern: str, arrays: int) -> dict[str, float]:
        """Of every place; its bytes are divided among the arrays of the pattern."""
        whole = {place: max(block, size // arrays // block * block) for place, size in sizes.items()}
        return {place: median(native.measure_bandwidth(name, pattern, each, **timing)) for place, each in whole.items()}

    try:
        macs = {kind: median(native.measure_macs(name, kind, **timing)) for kind in KINDS}
        read, triad = bandwidth("read", 1), bandwidth("triad", 3)
    except (MemoryError, RuntimeError) as error:
        raise UnsupportedError("peaks", expected=f"{threads} threads with arrays of {sizes['memory']} bytes each",
                               got=str(error) or "no memory left", fix="use fewer threads") from None
    instructions = {kind: native.peak_instructions(name, kind) for kind in KINDS}
    return Peaks(name, threads, macs, instructions, read, triad, sizes)
