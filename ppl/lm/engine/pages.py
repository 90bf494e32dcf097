"""Weights in large pages of memory.

In pages of 4 KiB a processor that reads all weights in every step looks up where each page lies; in
pages of 2 MiB hardly ever, and reads up to twice as fast (`docs/performance.md`). Linux moves
memory that is there already into such pages when it is asked to; nothing else changes, its address
included.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
# Less than this stays in the processor's caches, and its pages are known.
_LEAST = 16 << 20
# From linux/mman.h: as large pages are free, and at once (since Linux 6.1).
_SOME_TIME, _NOW = 14, 25


class Range(NamedTuple):
    """Memory: where it begins, and how many bytes."""

    start: int
    nbytes: int


def enlarge(ranges: Iterable[Range]) -> int:
    """Moves memory to large pages, where the system has them and little else is moved with it.

    Returns:
        How many bytes were moved.
    """
    ranges = list(ranges)
    page = _page()
    if page is None or sum(some.nbytes for some in ranges) < _LEAST:
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for at in mostly(ranges, page):
        if advise(at, page, _SOME_TIME) == 0:
            moved += page * (advise(at, page, _NOW) == 0)
    return moved


def mostly(ranges: Iterable[Range], page: int) -> list[int]:
    """Where those pages of so many bytes begin that are mostly in the ranges: others would take
    memory for what is something else, or nothing yet."""
    used: Counter[int] = Counter()
    for start, nbytes in ranges:
        for at in range(start - start % page, start + nbytes, page):
            used[at] += min(at + page, start + nbytes) - max(at, start)
    return [at for at, nbytes in used.items() if 2 * nbytes >= page]


def _page() -> int | None:
    """Bytes of a large page, None if the system has none or is told not to use them."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            if "[never]" not in (_SETTINGS / "enabled").read_text(encoding="utf-8"):
                return int((_SETTINGS / "hpage_pmd_size").read_text(encoding="utf-8"))
    return None
