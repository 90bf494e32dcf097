"""Whose turn it is: one thread at a time runs programs and steps models.

Pyro's handler stack and torch's generator belong to the process, so programs of different threads
take turns. The one whose turn it is hands over when others have something to do and it has not;
nobody waits for another's search to end.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from ppl.runtime.keyed import generators_kept


class Seat:
    """A place at the table: what one thread has to do for the searches that it runs.

    Attributes:
        queue: particles and questions that can go on: (group, index, reply).
        news: groups that have failed or are complete, and that nobody has looked at yet.
        inbox: functions to call before anything else; other threads may append.
        background: True for the loop's own thread, which no failure may end.
    """

    def __init__(self, background: bool = False) -> None:
        self.queue: list[tuple[Any, int, Any]] = []
        self.news: dict[Any, None] = {}
        self.inbox: deque[Callable[[], None]] = deque()
        self.background = background
        self.interrupted: BaseException | None = None
        self.arriving = False
        self.turn = threading.Event()

    @property
    def eager(self) -> bool:
        """True if the seat needs a turn to go on."""
        return bool(self.queue or self.news or self.inbox or self.arriving or self.interrupted)


class Turns:
    """A baton that is handed from thread to thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Seat | None = None
        self._waiting: list[Seat] = []
        self._knock: Future[None] | None = None
        self._kept = ExitStack()  # gives back what particles of this turn seed

    def take(self, seat: Seat) -> None:
        """Waits for the first turn. An interrupt while waiting is raised when the turn comes."""
        with self._lock:
            free = self._holder is None
            if free:
                self._holder = seat
            else:
                seat.arriving = True
                self._waiting.append(seat)
        if free:
            self._kept.enter_context(generators_kept())
        else:
            self.knock()
            self._wait(seat)

    def others(self, seat: Seat) -> Seat | None:
        """A waiting seat that needs a turn, None if there is none."""
        return next((s for s in self._waiting if s.eager and s is not seat), None)

    def hand(self, seat: Seat, other: Seat) -> None:
        """Gives the turn to `other` and waits until it comes back."""
        self._kept.close()
        with self._lock:
            self._waiting.remove(other)
            self._waiting.append(seat)
            self._holder = other
            other.turn.set()
        self._wait(seat)

    @property
    def alone(self) -> bool:
        """True if nobody waits for a turn."""
        return not self._waiting

    def leave(self, seat: Seat) -> None:
        """Gives the turn away for good."""
        self._kept.close()
        with self._lock:
            if self._holder is not seat:  # a forked child, whose table was cleared
                return
            following = next((s for s in self._waiting if s.eager), None)
            if following is None and self._waiting:
                following = self._waiting[0]
            self._holder = following
            if following is not None:
                self._waiting.remove(following)
                following.turn.set()

    def sleep(self, seat: Seat, wait: Callable[[Future[None]], None]) -> None:
        """Calls `wait` with a future that is done as soon as somebody knocks."""
        self._knock = Future()
        if not seat.inbox and self.others(seat) is None:
            wait(self._knock)
        self._knock = None

    def knock(self) -> None:
        """Wakes a holder that waits for something outside."""
        knock = self._knock
        if knock is not None and not knock.done():
            knock.set_result(None)

    def _wait(self, seat: Seat) -> None:
        while True:
            try:
                seat.turn.wait()
                break
            except BaseException as interrupt:  # what must be undone needs a turn, too
                seat.interrupted = interrupt
                self.knock()
        seat.turn.clear()
        seat.arriving = False
        self._kept.enter_context(generators_kept())
        interrupted, seat.interrupted = seat.interrupted, None
        if interrupted is not None:
            raise interrupted


TURNS: Final = Turns()
# Which loop this thread is inside of.
inside = threading.local()


@contextmanager
def seated(seat: Seat, loop: Any) -> Iterator[bool]:
    """Inside, it is this thread's turn. Who leaves last lets the loop close its batches.

    A search that starts inside a program of another one runs within that one's turn; it gets True,
    and cannot hand over.
    """
    outer = getattr(inside, "loop", None)
    if outer is not None:
        inside.loop = loop
        try:
            with generators_kept():
                yield True
        finally:
            inside.loop = outer
            loop.rest()
        return
    try:
        TURNS.take(seat)
        inside.loop = loop
        yield False
    finally:
        inside.loop = None
        if TURNS.alone:
            loop.rest()
        TURNS.leave(seat)


def _after_fork() -> None:
    """In a child, nobody else is at the table, whoever was in the parent."""
    if getattr(inside, "loop", None) is None:
        TURNS.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
