"""A search, or a judgement that asks models, as the loop runs it: in a greenlet that may wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from ppl.language.cost import Account
from ppl.runtime.batch import Group, Host
from ppl.runtime.coroutine import park
from ppl.runtime.turns import Seat


class Job(Host):
    """A function that runs beside others, in a greenlet, and may wait for groups.

    Attributes:
        account: who pays for its time, or None.
        over: True once it has returned, raised or been abandoned.
        result, error: what it returned, or raised.
    """

    def __init__(
        self,
        loop: Any,
        function: Callable[[], Any],
        account: Account | None,
        done: Callable[[Job], None],
        seat: Seat,
        search: object = None,
    ) -> None:
        super().__init__(loop, seat, search)
        self.account, self._function, self._done = account, function, done
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.groups: Sequence[Group] = ()
        self.waits: Callable[[], bool] | None = None
        self._greenlet: _Greenlet | None = None

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:
            self.error = error

    def wait(self, groups: Sequence[Group], over: Callable[[], bool]) -> None:
        """Called from inside: lets others go on until `over()`, which news of a group may make
        true."""
        self.groups, self.waits = groups, over
        park(None)
        self.groups, self.waits = (), None

    def resume(self) -> None:
        """Lets the function go on until it waits or ends."""
        if self._greenlet is None:  # made here: a greenlet belongs to the thread that made it
            self._greenlet = _Greenlet(self._run)
            self._greenlet.job = self
        with nullcontext() if self.account is None else self.account.running():
            self._greenlet.parent = getcurrent()
            try:
                self._greenlet.switch()
            except BaseException as error:
                if not self.seat.background:
                    raise
                self.error = error
        if self._greenlet.dead:
            self.end()

    def unwound(self) -> bool:
        """Unwinds the function where it waits (its `finally` blocks run); False if it then waits
        for something else."""
        if self._greenlet is None or self._greenlet.dead:
            return True
        self._greenlet.parent = getcurrent()
        self._greenlet.throw(GreenletExit)
        return bool(self._greenlet.dead)

    def end(self) -> None:
        """Says that it is over, once."""
        if not self.over:
            self.over, self.waits = True, None  # nothing wakes it any more
            self._done(self)


class _Greenlet(greenlet):
    job: Job


def current_job() -> Job | None:
    """The job that is running in this thread, None outside of searches."""
    here = getcurrent()
    return here.job if isinstance(here, _Greenlet) else None
