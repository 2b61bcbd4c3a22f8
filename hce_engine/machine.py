"""What this machine is, in words that go beside a measurement."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """What the operating system calls the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cache_bytes(folder: Path = CACHES) -> dict[int, int]:
    """{level: bytes} of the data caches that the first processor sees; empty where the system does not say."""
    units = {"K": 2**10, "M": 2**20}
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind in ("Data", "Unified"):
                sizes[int(level)] = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
        except (OSError, ValueError, IndexError):
            continue
    return sizes
