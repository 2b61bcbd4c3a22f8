"""The caches of this machine, as the operating system describes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
def machine_caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> Caches:
    """Of the first processor. A machine without a third level counts its second one as both."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (int((index / "level").read_text()), (index / "type").read_text().strip(), (index / "size").read_text())
        except (OSError, ValueError):
            continue
        found = re.fullmatch(r"(\d+)([KM]?)\s*", size)
        if found and kind != "Instruction":
            sizes[level] = int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]]
    if 2 not in sizes:
        return Caches(*TYPICAL, "assumed: the system does not say")
    return Caches(sizes[2], sizes.get(3, sizes[2]), str(folder))
