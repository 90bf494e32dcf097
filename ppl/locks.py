"""Locks that a forked child finds free, whoever held them in the parent.

Only the thread that forks goes on in a child. What another one held there would be held for ever.
"""

from __future__ import annotations

import os
from threading import RLock
from typing import Any
from weakref import WeakSet

_made: WeakSet[Any] = WeakSet()


def lock() -> Any:
    """A lock for short work, which may be begun again inside itself: garbage may be collected at
    any line, and what ends then, or a signal's handler, may come by the same way."""
    made = RLock()
    _made.add(made)
    return made


def _after_fork() -> None:
    for each in list(_made):
        if not each._is_owned():
            each._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
