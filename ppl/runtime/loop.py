"""One open loop: runs searches side by side, whoever started them, and lets them share batches.

A search is a greenlet that waits, again and again, until a group of particles has arrived
(`Job.wait`). The loop lets particles go on, hands their requests to the models (`Batches`), and
wakes the searches whose groups are complete.

Greenlets belong to a thread. So every thread that waits for searches of its own runs their
programs itself, in turns with the others (`ppl.runtime.turns`), and whoever has a turn steps
the models for all. A plain `run` stays in the caller's thread, where Ctrl-C, a debugger and
Pyro's parameters are; searches that are submitted or awaited run in a thread of the loop's own,
which lives as long as there are any.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ppl.language.cost import Account, share_seconds
from ppl.runtime.awake import awake
from ppl.runtime.batch import Batches, BudgetExhausted, Cancelled, Group, Waiting, judged
from ppl.runtime.coroutine import PAUSE, Slice
from ppl.runtime.job import Job
from ppl.runtime.turns import TURNS, Seat, inside, seated
from ppl.runtime.verdict import Scorer

# Seconds after which a loop that waits for servers looks at time limits.
_GLANCE = 0.1
# How often a function that is being ended may wait again, in its `finally`s.
_PATIENCE = 100
# Most seconds that the interpreter's end waits for programs that were submitted.
_FAREWELL = 5.0


class Runnable(Protocol):
    """What a loop runs: a search."""

    @property
    def account(self) -> Account:
        """Who pays."""
        ...

    def rounds(self) -> Any:
        """All its rounds; the result."""


class Loop:
    """Runs searches; see the module. `ppl.runtime.loop.SHARED` is everybody's."""

    def __init__(self) -> None:
        self._batches = Batches(self._judge)
        self._mutex = threading.Lock()
        self._background = Seat(background=True)
        self._jobs: dict[Job, Future[Any]] = {}  # of the background seat
        self._thread: threading.Thread | None = None
        self._together: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Posted]] = (
            WeakKeyDictionary()
        )

    # -- for those who want a search run -------------------------------------------------------

    def submit(self, search: Runnable) -> Future[Any]:
        """Runs a search in the loop's own thread; call it from anywhere.

        Returns:
            A future of the search's result. `cancel()` abandons this search alone, whatever it
            waits for: its requests leave the models' batches, all others go on. Inside of a
            search's program, which keeps its turn until it asks or ends, the search runs at once.
        """
        future: Future[Any] = Future()
        if loop_here() is not SHARED:
            return _at_once(search, future)
        self._post([(search, future)])
        return future

    async def wait_for(self, search: Runnable) -> Any:
        """`submit` for callers in an event loop. Searches that are awaited at the same tick start
        together, so that they share batches from the first; cancelling the awaiting job abandons
        the search."""
        events = asyncio.get_running_loop()
        future: Future[Any] = Future()
        if loop_here() is not SHARED:
            return _at_once(search, future).result()
        posted = self._together.get(events)
        if posted is None:
            posted = self._together[events] = []
            events.call_soon(self._post_together, events)
        posted.append((search, future))
        with awake(events):
            return await asyncio.wrap_future(future)

    def _post_together(self, events: asyncio.AbstractEventLoop) -> None:
        posted = self._together.pop(events)
        try:
            self._post(posted)
        except Exception as error:  # whoever waits is told, not the event loop
            for _, future in posted:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)

    def run(self, functions: Sequence[tuple[Callable[[], Any], Account]]) -> list[Any]:
        """Runs functions that wait for groups, each with who pays, side by side in this thread.

        Returns:
            Their results. If one raises, or this thread is interrupted, the others are abandoned.
        """
        seat = Seat()
        left = len(functions)
        failed: list[BaseException] = []

        def done(job: Job) -> None:
            nonlocal left
            left -= 1
            if job.error is not None:
                failed.append(job.error)

        jobs = [Job(self, function, account, done, seat) for function, account in functions]
        with seated(seat, self) as nested:
            try:
                seat.inbox += [job.resume for job in jobs]
                self._drive(seat, lambda: left == 0 or bool(failed), nested)
                if failed:
                    raise failed[0]
            except BaseException as error:
                TURNS.regain(seat)
                for job in jobs:
                    for second in self._abandon(job):
                        error.add_note(f"a search that was abandoned for it raised {second!r}")
                raise
        return [job.result for job in jobs]

    def run_groups(self, groups: Sequence[Group], over: Callable[[], bool]) -> None:
        """Lets groups of one host go on until `over()`, for callers outside of any search."""
        seat = groups[0].host.seat
        with seated(seat, self) as nested:
            try:
                self._drive(seat, over, nested)
            except BaseException:
                TURNS.regain(seat)
                for group in groups:
                    self.drop(group)
                raise

    def drop(self, group: Group) -> None:
        """Gives a group up: its requests leave the batches, its members end."""
        if getattr(inside, "loop", None) is None:
            with seated(Seat(), self):
                self.drop(group)
            return
        group.fail(Cancelled())
        seat = group.host.seat
        seat.news.pop(group, None)
        seat.queue[:] = [entry for entry in seat.queue if entry[0] is not group]
        self._batches.cancel(group)
        for job in tuple(group.judging):
            self._abandon(job)
        group.close()

    def rest(self) -> None:
        """Ends the models' batches that nobody waits for."""
        self._batches.rest()

    # -- the loop's own thread ------------------------------------------------------------------

    def _post(self, posted: Sequence[_Posted]) -> None:
        seat = self._background
        jobs = [
            (Job(self, search.rounds, search.account, partial(self._end, future), seat), future)
            for search, future in posted
        ]
        with self._mutex:
            self._jobs.update(jobs)
            # In one piece: a thread that is at it already must not begin before all are there.
            seat.inbox.append(begin := partial(self._begin, jobs))
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="ppl loop", daemon=True)
                try:
                    self._thread = thread  # first: it ends at once if an interrupt takes this back
                    thread.start()
                except BaseException:  # no more threads, the interpreter is ending, an interrupt
                    self._thread = None
                    seat.inbox.remove(begin)
                    for job, _ in jobs:
                        del self._jobs[job]
                    raise
        for job, future in jobs:
            future.add_done_callback(partial(self._cancelled, job))
        TURNS.knock()

    def _serve(self) -> None:
        seat = self._background
        with self._mutex:
            if self._thread is not threading.current_thread():
                return
        failed: list[BaseException] = []
        while True:
            came = False
            try:
                with seated(seat, self):
                    came = True
                    try:
                        self._drive(seat, lambda: not self._jobs, False)
                    except BaseException as error:
                        self._fail(error)
            except BaseException as error:
                if came:  # a batch does not end: its searches are over, others are to come
                    failed.append(error)
                else:
                    self._fail(error)
            with self._mutex:
                if not self._jobs:
                    self._thread = None
                    break
        for problem in failed:
            raise problem

    def _fail(self, error: BaseException) -> None:
        """Abandons all that was submitted: nobody may wait for ever for what has failed."""
        for job in list(self._jobs):
            job.error = job.error or error
            self._abandon(job)

    def _begin(self, jobs: Sequence[tuple[Job, Future[Any]]]) -> None:
        for job, future in jobs:
            if not (job.over or future.cancelled()):
                job.resume()

    def _end(self, future: Future[Any], job: Job) -> None:
        with self._mutex:
            del self._jobs[job]
        try:
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.result)
        except InvalidStateError:  # it has been cancelled; tell those who wait for it
            future.set_running_or_notify_cancel()

    def _cancelled(self, job: Job, future: Future[Any]) -> None:
        if future.cancelled() and job in self._jobs:  # else it is over, or that of a parent process
            self._background.inbox.append(partial(self._give_up, job))
            TURNS.knock()

    def _give_up(self, job: Job) -> None:
        for error in self._abandon(job):
            warnings.warn(f"a cancelled search raised {error!r}", RuntimeWarning, stacklevel=2)

    # -- turning ------------------------------------------------------------------------------

    def _drive(self, seat: Seat, over: Callable[[], bool], nested: bool) -> None:
        """Runs programs of this seat and models of all until `over()`."""
        while True:
            while seat.inbox:
                seat.inbox.popleft()()
            self._read(seat)
            if over():
                return
            paused = False
            if seat.queue:
                paused = self._advance(seat)
                if not paused:
                    continue
            other = None if nested else TURNS.others(seat)
            if other is not None:
                if paused:  # programs without models, of several threads, starve none with one
                    self._batches.work()
                TURNS.hand(seat, other)
            elif self._batches.busy:
                flying = self._batches.work()
                if flying and not seat.eager:
                    self._sleep(seat, flying)
            elif not seat.eager:
                raise RuntimeError("the loop has nothing to do, and a search is not over")

    def _sleep(self, seat: Seat, flying: Sequence[Future[Any]]) -> None:
        started = time.perf_counter()
        TURNS.sleep(seat, lambda knock: wait((*flying, knock), _GLANCE, FIRST_COMPLETED) and None)
        self._batches.bill_waiting(time.perf_counter() - started)

    def _advance(self, seat: Seat) -> bool:
        """Lets members go on until each asks or arrives; True if the time slice ended before."""
        queue = seat.queue[:]
        seat.queue.clear()
        asked: list[Waiting] = []
        outer = Slice.ends
        paused = False
        accounts: list[Account | None] = []
        try:
            for position, (group, index, reply) in enumerate(queue):
                if group.failure is not None:
                    continue
                account = group.account
                if account is not None and account.out_of_time:
                    group.fail(BudgetExhausted())
                    continue
                began = Slice.begin()
                try:
                    event = group.take(index, reply)
                except BaseException as error:  # sys.exit() ends a program, not the loop's thread
                    if not isinstance(error, Exception) and not seat.background:
                        raise
                    group.fail(error)
                    continue
                if account is not None:
                    account.book.seconds += time.perf_counter() - began
                accounts.append(account)
                if event is PAUSE:
                    seat.queue += [*queue[position + 1 :], (group, index, None)]
                    paused = True
                    break
                if event is not None:
                    asked.append((group, index, event))
        finally:
            Slice.ends = outer  # of the program that this search runs inside of, if it does
        started = time.perf_counter()
        self._batches.ask(asked)
        share_seconds(time.perf_counter() - started, accounts)
        return paused

    def _read(self, seat: Seat) -> None:
        """Ends the groups that have failed, and wakes those who have waited for a group."""
        while seat.news:
            group = next(iter(seat.news))
            del seat.news[group]
            if group.failure is not None:
                self.drop(group)
            job = group.host
            if isinstance(job, Job) and job.waits is not None and job.waits():
                job.resume()

    def _judge(self, verifier: Scorer, group: Group, waiting: list[Waiting]) -> None:
        group.host.seat.inbox.append(partial(self._begin_judging, verifier, group, waiting))

    def _begin_judging(self, verifier: Scorer, group: Group, waiting: list[Waiting]) -> None:
        if group.failure is not None:
            return
        requests = [request for _, _, request in waiting]

        def done(job: Job) -> None:
            group.judging.discard(job)
            if job.error is not None:
                group.fail(job.error)
            elif job.result is not None:
                for (_, index, _), answer in zip(waiting, job.result, strict=True):
                    group.reply(index, answer)

        seat, payer = group.host.seat, requests[0].ledger
        function = partial(judged, verifier, requests)
        job = Job(self, function, payer, done, seat, group.search)
        group.judging.add(job)
        job.resume()

    def _abandon(self, job: Job) -> list[BaseException]:
        """Ends a job where it is; what went wrong in that."""
        if job.over:
            return []
        errors: list[BaseException] = []
        for _ in range(_PATIENCE):
            try:
                for group in job.groups:
                    self.drop(group)
                if job.unwound():
                    break
            except BaseException as error:  # an interrupt, too: others are still to be ended
                errors.append(error)
        else:
            errors.append(RuntimeError("it does not end: it catches its own end and goes on"))
            for group in job.groups:
                self.drop(group)
        job.end()
        if job.error is not None:
            errors.append(job.error)
        return errors

    def stop(self) -> None:
        """Abandons what was submitted, before the interpreter ends: its threads end anywhere."""
        thread = self._thread
        for future in list(self._jobs.values()):
            future.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_FAREWELL)

    def forget(self) -> None:
        """Makes the loop new, for a forked child: what runs belongs to the parent."""
        self.__init__()  # type: ignore[misc]


_Posted = tuple[Runnable, Future[Any]]

SHARED = Loop()


def loop_here() -> Loop:
    """The shared loop; inside of a search's program a new one, as the program waits for it."""
    return SHARED if getattr(inside, "loop", None) is None else Loop()


def _at_once(search: Runnable, future: Future[Any]) -> Future[Any]:
    try:
        future.set_result(loop_here().run([(search.rounds, search.account)])[0])
    except Exception as error:
        future.set_exception(error)
    return future


def _after_fork() -> None:
    if getattr(inside, "loop", None) is None:
        SHARED.forget()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(TURNS.dismiss, _FAREWELL)  # of daemon threads, after what was submitted
atexit.register(SHARED.stop)


def turn() -> AbstractContextManager[bool]:
    """A turn for code that runs a program outside of any loop: no other program runs meanwhile."""
    return seated(Seat(), loop_here())
