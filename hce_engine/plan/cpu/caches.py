"""The caches of this machine, as the operating system describes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...machine import CACHES, cache_bytes

TYPICAL = (1 << 20, 32 << 20)  # where the system says nothing: second and third level of a current server


@dataclass(frozen=True)
class Caches:
    """Bytes of the second level, of one core, and of the third, of all cores. source: who says so."""

    l2: int
    l3: int
    source: str

    def __str__(self) -> str:
        return f"L2 {self.l2 >> 10} KiB, L3 {self.l3 >> 10} KiB ({self.source})"


@cache
def machine_caches(folder: Path = CACHES) -> Caches:
    """Of the first processor. A machine without a third level counts its second one as both."""
    sizes = cache_bytes(folder)
    if 2 not in sizes:
        return Caches(*TYPICAL, "assumed: the system does not say")
    return Caches(sizes[2], sizes.get(3, sizes[2]), str(folder))
