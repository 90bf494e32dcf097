"""How much work something is, by counts and by growth, and waiting for what is to come.

Seconds are no test: what one machine does in one, another does in ten, and any may stand still.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

TIMES = 8
LINEAR = 24.0
"""Growth of what grows by `TIMES`, below which it is linear: it lies midway, as a factor, between
8 and 64, which it is for quadratic work."""
_GRAIN = 0.01  # seconds: some clocks of threads tick no finer


def calls(function: Callable[[], Any]) -> int:
    """How many functions are called, Python's and C's, until this one returns."""
    count = 0

    def called(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def growth(function: Callable[[int], Any], size: int, tries: int = 4) -> float:
    """By what factor work grows from `size` to `TIMES` the size: `LINEAR` at most if it is linear.

    It is measured on the clock of this thread alone, without collections of garbage, which take the
    longer the more a process holds; and the least of several tries counts.
    """
    small = large = float("inf")
    for _ in range(tries):
        small = min(small, _seconds(function, size))
        large = min(large, _seconds(function, TIMES * size))
        if large < LINEAR * max(small, _GRAIN):
            break
    return large / max(small, _GRAIN)


def until(condition: Callable[[], Any], seconds: float = 300.0) -> bool:
    """Waits until a condition holds; whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def _seconds(function: Callable[[int], Any], size: int) -> float:
    collects = gc.isenabled()
    gc.disable()
    try:
        begun = time.thread_time()
        function(size)
        return time.thread_time() - begun
    finally:
        if collects:
            gc.enable()
