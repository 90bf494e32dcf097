"""Work outside of models: begun, and then looked after by the loop while everything else goes on.

A site asks for an `Errand` as it asks for a model's answer, `visit.ask(Errand(...))`, and waits for
what its future gives. Functions to be awaited run in one event loop, in a thread of the library's
own, side by side; plain functions that may take long run in threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ppl.language.cost import Account

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Errand:
    """Something to be done elsewhere.

    Attributes:
        begin: starts it; its future gives the answer, which is not None. Called once. The future is
            cancelled if nobody waits for it any more.
        label: who asks, for messages ("site 'look_3' of particle 17").
        ledger: the account that pays for the waiting; a time limit of its budget ends the errand.
    """

    begin: Callable[[], Future[Any]]
    label: str = "a call outside a search"
    ledger: Account | None = None


class Elsewhere:
    """An event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._events: asyncio.AbstractEventLoop | None = None

    def submit(self, function: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Awaits `function()` there; from any thread."""

        async def awaited() -> T:
            return await function()  # called there: what it makes belongs to that event loop

        with self._mutex:
            if self._events is None:
                self._events, _ = events("ppl errands")
        return asyncio.run_coroutine_threadsafe(awaited(), self._events)

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        self.__init__()  # type: ignore[misc]


def events(name: str) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """An event loop that runs in a thread of its own until it is stopped, and is closed then.

    It is made there, and handed out once it runs. So a forked child has no copy of one that does
    not run: collected as garbage, that would be closed, and the parent's with it, as both are known
    to the system under one number.
    """
    ready: Future[asyncio.AbstractEventLoop] = Future()

    def run() -> None:
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:
            ready.set_exception(error)
            return
        loop.call_soon(ready.set_result, loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    # A daemon: what does not end must not keep the interpreter.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return ready.result(), thread


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Runs a function in a thread of its own, which nothing waits for at the end."""
    future: Future[T] = Future()

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        except BaseException as error:  # sys.exit() in a tool ends the tool
            failure = RuntimeError(f"{type(error).__name__}: {error}")
        with suppress(InvalidStateError):  # nobody waits any more
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)  # type: ignore[arg-type]

    threading.Thread(target=run, name="ppl errand", daemon=True).start()
    return future


ELSEWHERE: Final = Elsewhere()
os.register_at_fork(after_in_child=ELSEWHERE.forget)
