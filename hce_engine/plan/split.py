"""Even parts: how output channels are cut into blocks, on every device."""

from __future__ import annotations


def split_evenly(count: int, largest: int) -> list[int]:
    """``count`` as a sum of as few as possible parts of at most ``largest``, as even as possible: 9 -> 5 + 4."""
    parts = -(-count // largest)
    return [(i + 1) * count // parts - i * count // parts for i in range(parts)]
