"""An event loop that wakes up now and then while it waits for searches.

The stop button of a notebook, under a cell that awaits, has its kernel add a callback to the event
loop from a signal handler. That wakes no loop that waits for others (ipykernel issue 881): the cell
would end when its search does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

BEAT = 0.2
"""Seconds between two of its wakings."""


class _Pulse:
    """One timer for all that an event loop waits for."""

    def __init__(self) -> None:
        self.waiting = 0
        self.timer: asyncio.TimerHandle | None = None

    def beat(self, events: asyncio.AbstractEventLoop) -> None:
        self.timer = events.call_later(BEAT, self.beat, events)


_PULSES: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse] = WeakKeyDictionary()


@contextmanager
def awake(events: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Wakes the running event loop every `BEAT` seconds for as long as the block lasts."""
    pulse = _PULSES.setdefault(events, _Pulse())
    pulse.waiting += 1
    if pulse.waiting == 1:
        pulse.beat(events)
    try:
        yield
    finally:
        pulse.waiting -= 1
        if not pulse.waiting and pulse.timer is not None:
            pulse.timer.cancel()
            pulse.timer = None  # it holds the event loop, which would be kept for ever
