"""Who may search now, who waits, who is told to come later; and the end of all of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ppl.serve.limits import Limits
from ppl.serve.refusal import RefusedError

# Seconds of the longest time that clients are asked to stay away.
_LONGEST_WAIT = 60


class Gate:
    """Places for searches, first come, first served. It belongs to one event loop.

    Attributes:
        running: requests that search now.
        waiting: requests that wait for a place.
        stopping: True if no more are let in.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.running)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._seconds = 1.0  # of a search, a running mean
        self._abandoned = False
        self.running = self.waiting = 0
        self.stopping = False

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for the task that enters.

        Raises:
            RefusedError: too many wait already (429), or the server stops (503).
        """
        if self.stopping:
            raise _stopping()
        if self._places.locked() and self.waiting >= self._limits.waiting:
            raise RefusedError(
                429,
                f"{self.running} requests are being answered and {self.waiting} wait; try later",
                code="rate_limit_exceeded",
                retry_after=self.patience,
            )
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.waiting += 1
            try:
                await self._places.acquire()
            finally:
                self.waiting -= 1
            self.running += 1
            began = time.monotonic()
            try:
                yield
                self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            finally:
                self.running -= 1
                self._places.release()
        except asyncio.CancelledError:
            if self._abandoned:
                raise _stopping() from None
            raise
        finally:
            self._tasks.discard(task)

    @property
    def patience(self) -> int:
        """Whole seconds until there should be a place in the queue."""
        ahead = (self.waiting + 1) / self._limits.running
        return max(1, min(_LONGEST_WAIT, math.ceil(ahead * self._seconds)))

    def stop(self) -> None:
        """Lets nobody in any more; who is in, or waits, goes on."""
        self.stopping = True

    def abandon(self) -> None:
        """Ends all searches; each request is told that the server stops."""
        self.stopping = self._abandoned = True
        for task in list(self._tasks):
            task.cancel()


def _stopping() -> RefusedError:
    return RefusedError(503, "the server is stopping", code="server_stopping", retry_after=5)
