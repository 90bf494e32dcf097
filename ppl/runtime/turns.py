"""Whose turn it is: one thread at a time runs programs and steps models.

Pyro's handler stack and torch's generator belong to the process, so programs of different threads
take turns. The one whose turn it is hands over when others have something to do and it has not;
nobody waits for another's search to end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from ppl.errors import ProgramError
from ppl.runtime.keyed import generators_kept

# Seconds after which those who wait look again whose turn it is: an interrupt may have come between
# the handing over and the waking.
_GLANCE = 0.5
# How often it is looked whether those who are dismissed have gone.
_LOOKS = 100


class Seat:
    """A place at the table: what one thread has to do for the searches that it runs.

    Attributes:
        queue: particles and questions that can go on: (group, index, reply).
        news: groups that have failed or are complete, and that nobody has looked at yet.
        inbox: functions to call before anything else; other threads may append.
        background: True for the loop's own thread, which no failure may end.
        arriving: True until the first turn.
        interrupted: what is raised as soon as the turn comes.
        thread: who sits here.
        turn: wakes it.
    """

    def __init__(self, background: bool = False) -> None:
        self.queue: list[tuple[Any, int, Any]] = []
        self.news: dict[Any, None] = {}
        self.inbox: deque[Callable[[], None]] = deque()
        self.background = background
        self.interrupted: BaseException | None = None
        self.arriving = False
        self.thread: int | None = None
        self.turn = threading.Event()

    @property
    def eager(self) -> bool:
        """True if the seat needs a turn to go on."""
        return bool(self.queue or self.news or self.inbox or self.arriving or self.interrupted)


class Turns:
    """A baton that is handed from thread to thread.

    `_holder` alone says who has it; all else only wakes those who wait. So an interrupt, which may
    come between any two steps of this class, loses no turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: Seat | None = None
        self._seats: list[Seat] = []  # all at the table; who had a turn last is last
        self._knock: Future[None] | None = None
        self._kept = ExitStack()  # gives back what particles of this turn seed
        self._dismissing: int | None = None  # the thread that lets no other go on

    def take(self, seat: Seat) -> None:
        """Waits for the first turn. An interrupt while waiting is raised when the turn comes.

        Raises:
            ProgramError: the turn cannot come, as the program that has it waits for this thread.
        """
        me = threading.get_ident()
        with self._lock:
            seat.thread, seat.arriving = me, True
            if self._dismissing not in (None, me):
                seat.interrupted = SystemExit()
            self._seats = [*(other for other in self._seats if other is not seat), seat]
            # A thread that comes again has left: an interrupt kept it from saying so.
            if self._holder is None or self._holder.thread == me:
                self._holder = seat
        self._wait(seat, new=True)

    def taken(self, seat: Seat) -> bool:
        """True if another thread is at the table with this seat."""
        return seat.thread != threading.get_ident() and seat in self._seats

    def others(self, seat: Seat) -> Seat | None:
        """A waiting seat that needs a turn, None if there is none."""
        return next((s for s in self._seats if s.eager and s is not seat), None)

    def hand(self, seat: Seat, other: Seat) -> None:
        """Gives the turn to `other` and waits until it comes back."""
        self._kept.close()
        with self._lock:
            self._seats = [*(s for s in self._seats if s is not seat), seat]
            self._holder = other
        other.turn.set()
        self._wait(seat)

    def regain(self, seat: Seat) -> None:
        """Waits until `seat` has the turn, if an interrupt has driven it away from waiting."""
        if self._holder is not seat:
            seat.arriving = True
            with contextlib.suppress(BaseException):  # there is one to be raised already
                self._wait(seat)

    @property
    def alone(self) -> bool:
        """True if nobody waits for a turn."""
        return len(self._seats) < 2

    def leave(self, seat: Seat) -> None:
        """Gives the turn away for good; gives up waiting for it."""
        try:
            if self._holder is seat:
                self._kept.close()
        finally:
            with self._lock:
                rest, following = [s for s in self._seats if s is not seat], self._holder
                if following is seat:
                    following = next((s for s in rest if s.eager), rest[0] if rest else None)
                self._seats, self._holder = rest, following
            if following is not None:
                following.turn.set()

    def dismiss(self, patience: float) -> None:
        """Ends the searches of all other threads, as Ctrl-C would, and waits so many seconds.

        For the interpreter's end, which kills threads in the middle of native code, and that the
        whole process.
        """
        seat, me = Seat(), threading.get_ident()
        with self._lock:
            self._dismissing = me
            for other in self._seats:
                other.interrupted = SystemExit()
        for _ in range(_LOOKS):  # a machine that stands still loses one of them
            with self._lock:
                others = [s for s in self._seats if s.thread != me]
                if not others:
                    break
                seat.thread, seat.arriving = me, True  # so that it is handed the turn, and
                self._seats = [*others, seat]
                if self._holder is None or self._holder.thread == me:  # hands it on
                    self._holder = others[0]
            others[0].turn.set()
            self.knock()
            seat.turn.wait(patience / _LOOKS)
            seat.turn.clear()
        self.leave(seat)

    def sleep(self, seat: Seat, wait: Callable[[Future[None]], None]) -> None:
        """Calls `wait` with a future that is done as soon as somebody knocks."""
        self._knock = Future()
        if not seat.inbox and self.others(seat) is None:
            wait(self._knock)
        self._knock = None

    def knock(self) -> None:
        """Wakes a holder that waits for something outside."""
        knock = self._knock
        if knock is not None:
            with contextlib.suppress(InvalidStateError):  # several may knock at once
                knock.set_result(None)

    def _wait(self, seat: Seat, *, new: bool = False) -> None:
        while self._holder is not seat:
            try:
                if seat.arriving or seat.interrupted is not None:
                    self.knock()
                woken, holder = seat.turn.wait(_GLANCE), self._holder
                seat.turn.clear()
                stuck = new and not woken and _joins(holder, threading.current_thread())
                stuck = stuck and self._holder is holder  # it may join who has left the table
            except BaseException as interrupt:  # what must be undone needs a turn, too
                seat.interrupted, stuck = interrupt, False
            if stuck:
                raise ProgramError(
                    "a program waits (Thread.join) for a thread that runs a search, and keeps the "
                    "turn that this search waits for: run the search in the program itself"
                )
        seat.arriving = False
        self._kept.enter_context(generators_kept())
        interrupted, seat.interrupted = seat.interrupted, None
        if interrupted is not None:
            raise interrupted


def _joins(holder: Seat | None, waiting: threading.Thread) -> bool:
    """True if the thread that has the turn is joining another one, which waits for it.

    Only the innermost frame is looked at: those below may be of greenlets, which leave them while
    one looks, and what they pointed to is no more. For the same reason, and because a collection
    inside of `_current_frames` may wait for ever (CPython's issue 106883), none is made meanwhile.
    """
    with _looking:
        collects = gc.isenabled()
        try:
            gc.disable()
            frame = None if holder is None else sys._current_frames().get(holder.thread or 0)
            if frame is None or not any(frame.f_code is code for code in _JOINING):
                return False
            found = frame.f_locals  # `is_alive` passes through there, too, and waits for nothing
            return found.get("self") is waiting and bool(found.get("block", True))
        finally:
            if collects:
                gc.enable()


# Who forks has it as well: in a child nobody would collect garbage again.
_looking = threading.RLock()
# Where a thread is while it joins another: before Python 3.13 in the second.
_JOINING: Final = [
    getattr(threading.Thread, name).__code__
    for name in ("join", "_wait_for_tstate_lock")
    if hasattr(threading.Thread, name)
]
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
        try:
            inside.loop = None
            if TURNS.alone:
                loop.rest()
        finally:
            TURNS.leave(seat)


def _after_fork() -> None:
    """In a child, nobody else is at the table, whoever was in the parent."""
    if getattr(inside, "loop", None) is None:
        TURNS.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
os.register_at_fork(
    before=_looking.acquire, after_in_parent=_looking.release, after_in_child=_looking.release
)
