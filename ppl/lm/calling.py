"""Whose function a copy of a model is running: said in one process, and seen in another.

What a request brings along (`allowed=`, a pattern in `until=`) may never return, and may hold the
interpreter's lock, so that its process could no longer tell anybody. So what is said of it stands
in memory that both processes have.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

_FORM = struct.Struct("qq")


class Calling:
    """The call that runs now.

    Args:
        file: number of an open file of `SIZE` bytes that another process has too; -1: nobody else
            looks.
    """

    SIZE = _FORM.size

    def __init__(self, file: int = -1) -> None:
        self._memory = mmap.mmap(file, _FORM.size)
        self._calls = 0

    def run(self, ticket: int, function: Callable[..., R], *args: Any) -> R:
        """What a function returns that the request with this ticket has brought along."""
        self._calls += 1
        _FORM.pack_into(self._memory, 0, ticket, self._calls)
        try:
            return function(*args)
        finally:
            _FORM.pack_into(self._memory, 0, 0, self._calls)

    @property
    def now(self) -> tuple[int, int]:
        """The ticket of who called, 0 for nobody, and the number of the call."""
        found: tuple[Any, Any] = _FORM.unpack_from(self._memory, 0)
        return found
