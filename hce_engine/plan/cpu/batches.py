"""How a batch is cut into tiles.

Tiles of the largest size do most images per second. What is left over runs in smaller tiles, whose lanes hold blocks of maps
(lanes.py), and the end of a batch is shared out so that no thread waits for another's last tile.
"""

from __future__ import annotations

from functools import lru_cache

SIZES = (1, 2, 4, 8, 16)  # images in a tile
FULL_ROUNDS = 4  # with so many full tiles per thread, the wait at the end does not matter
Times = tuple[tuple[int, float], ...]  # (images in a tile, time of a tile), by size


@lru_cache(maxsize=1024)
def _sizes(images: int, times: Times) -> tuple[int, ...]:
    """The tiles that take ``images`` in the least time, largest first; the last one may have empty places."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, images + 1):
        rest = {size: best[max(0, n - size)] for size, _ in times}
        options = ((time + rest[size][0], (size, *rest[size][1])) for size, time in times)
        best.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return tuple(sorted(best[images][1], reverse=True))


@lru_cache(maxsize=1024)
def tiles(count: int, threads: int, times: Times) -> tuple[tuple[int, int, int], ...]:
    """(images per tile, first image, images) runs of equal tiles that cover ``count`` images."""
    largest = times[-1][0]
    full = count // largest
    if full < FULL_ROUNDS * threads:
        full -= full % threads
    runs = [(largest, 0, full * largest)] if full else []
    first, left = full * largest, count - full * largest
    for thread in range(threads, 0, -1):
        share = -(-left // thread)
        for size in _sizes(share, times):
            images = min(size, share)
            runs.append((size, first, images))
            first, share, left = first + images, share - images, left - images
    return tuple(runs)
