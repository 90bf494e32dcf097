"""Functions that can be suspended in the middle, with their part of Pyro's handler stack."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from greenlet import GreenletExit, getcurrent, greenlet
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger

# Seconds that a program without model calls may compute, and may stand still, before others go on.
_SLICE, _ASLEEP = 0.02, 0.5

_marks = threading.local()

PAUSE = object()
"""The event of a particle that has run for long and lets others go on; its reply is None."""


class Slice:
    """How long what runs now may run before others go on.

    It is the processor's time that counts: on a busy machine a program stands still for longer than
    its slice, and would tear the batches of its search apart. One that sleeps is given `_ASLEEP`.
    The clock of the processor is a call to the system, dear where there are thousands of short
    turns: it is read first where a turn has taken longer than a slice, and counts from there.
    Only one thread at a time has a turn (`ppl.runtime.turns`), so there is one slice.
    """

    ends = float("inf")  # when to look, by `perf_counter`
    _started = 0.0
    _busy: float | None = None  # by `thread_time`, as far as it was read

    @classmethod
    def begin(cls) -> float:
        """From now on; returns the moment."""
        cls._started, cls._busy = perf_counter(), None
        cls.ends = cls._started + _SLICE
        return cls._started

    @classmethod
    def spent(cls) -> bool:
        """Whether it is over; called once `ends` has passed, which is put off if not."""
        now, busy = perf_counter(), thread_time()
        if cls._busy is None:
            cls._busy = busy
        if busy - cls._busy > _SLICE or now - cls._started > _ASLEEP:
            return True
        cls.ends = now + _SLICE / 4
        return False


_PATIENCE = 100  # sites at which a function that is being ended may wait again, in its `finally`s


class Coroutine:
    """A function in a greenlet that takes its part of Pyro's state along: its handlers, and the
    dimensions of the plates it stands in."""

    def __init__(self, function: Callable[[], Any], messenger: Messenger) -> None:
        self._greenlet = greenlet(lambda _: function())
        self._stack: list[Messenger] = [messenger]
        self._plates: list[str | None] = []

    def resume(self, value: Any) -> Any:
        """Runs on with `value` as the reply, to the next `park` or the end; returns what is said
        there. Outside, Pyro's stack is as it was, whatever happens."""
        return self._switched(self._greenlet.switch, value)

    def close(self) -> None:
        """Unwinds the function where it waits: its `finally` blocks run, and what they raise is
        raised here.

        Raises:
            RuntimeError: it does not end, but asks for more and more.
        """
        for _ in range(_PATIENCE):
            if not self._greenlet or self._greenlet.dead:
                return
            with contextlib.suppress(GreenletExit):
                self._switched(self._greenlet.throw, GreenletExit)
        raise RuntimeError("the program does not end: it catches its own end and goes on")

    def _switched(self, switch: Callable[[Any], Any], value: Any) -> Any:
        plates = runtime._DIM_ALLOCATOR
        outside, dims = runtime._PYRO_STACK[:], plates._stack
        try:
            runtime._PYRO_STACK[:], plates._stack = self._stack, self._plates
            self._greenlet.parent = getcurrent()
            return switch(value)
        finally:
            try:
                self._stack, self._plates = runtime._PYRO_STACK[:], plates._stack
            finally:  # an interrupt may come at any line
                runtime._PYRO_STACK[:], plates._stack = outside, dims


def this_thread() -> object:
    """Marks the thread to which greenlets that are made here belong. No later one has the same, as
    it may have the same number (`get_ident`)."""
    if not hasattr(_marks, "own"):
        _marks.own = object()
    return _marks.own


def park(event: Any) -> Any:
    """Hands `event` to whoever resumed this greenlet and waits for the reply."""
    parent = getcurrent().parent
    assert parent is not None
    return parent.switch(event)
