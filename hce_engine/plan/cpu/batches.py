"""How a batch is cut into tiles.

Tiles of the largest size do most images per second. What is left over runs in smaller tiles, whose lanes hold blocks of maps
(lanes.py), and the end of a batch is shared out so that no thread waits for another's last tile.
"""

from __future__ import annotations

from functools import lru_cache

SIZES = (1, 2, 4, 8, 16)  # images in a tile
# What a tile costs beyond its images, in images: halos between lanes, blocks that reach beyond the map, registers less full.
TILE_COST = 0.5
FULL_ROUNDS = 4  # with so many full tiles per thread, the wait at the end does not matter


@lru_cache(maxsize=1024)
def _sizes(images: int, largest: int) -> tuple[int, ...]:
    """The cheapest tiles for ``images``, largest first; the last one may have empty places."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, images + 1):
        options = ((size + TILE_COST + best[max(0, n - size)][0], (size, *best[max(0, n - size)][1])) for size in SIZES if size <= largest)
        best.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return tuple(sorted(best[images][1], reverse=True))


@lru_cache(maxsize=1024)
def tiles(count: int, threads: int, largest: int) -> tuple[tuple[int, int, int], ...]:
    """(images per tile, first image, images) runs of equal tiles that cover ``count`` images, in the order to start them."""
    full = count // largest
    if full < FULL_ROUNDS * threads:
        full -= full % threads
    runs = [(largest, 0, full * largest)] if full else []
    first, left = full * largest, count - full * largest
    for thread in range(threads, 0, -1):
        share = -(-left // thread)
        for size in _sizes(share, largest):
            images = min(size, share)
            runs.append((size, first, images))
            first, share, left = first + images, share - images, left - images
    return tuple(sorted(runs, key=lambda run: -run[0]))
