"""What happens once in many runs, brought about each time: the process must neither hang nor die.

Garbage is collected at any line and in any thread, a machine stands still between any two, threads
do not start, and a process forks while its threads hold locks.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import gc
import os
import queue
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from loops import CountingSession, counting, nothing_is_left, walk
from packages import sources
from programs import contents, toy
from scripts import run_script
from work import until

from ppl.language.cached import cached_property
from ppl.language.errand import events
from ppl.lm.decode import Session
from ppl.runtime import turns
from ppl.runtime.coroutine import this_thread
from ppl.runtime.loop import SHARED
from ppl.runtime.turns import TURNS, Seat, Turns
from ppl.runtime.worker import Process, _forward
from ppl.searchers import SMC, BestOfN

# -- who joins whom ----------------------------------------------------------------------------


def test_who_joins_a_thread_after_its_turn_is_no_program(monkeypatch):
    """It leaves the table, and joins, while the other one looks what it does."""
    table, first, second = Turns(), Seat(), Seat()
    looked, left, took = threading.Event(), threading.Event(), []

    def late(holder, waiting):
        looked.set()
        return left.wait(300)  # by now it does join

    def waits():
        table.take(second)
        took.append(True)
        table.leave(second)

    monkeypatch.setattr(turns, "_joins", late)
    thread = threading.Thread(target=waits, daemon=True)
    table.take(first)
    thread.start()
    assert looked.wait(300)
    table.leave(first)
    left.set()
    thread.join(300)
    assert took


@pytest.mark.parametrize("block", [True, False])
def test_who_only_asks_whether_a_thread_lives_does_not_wait_for_it(block, monkeypatch):
    """Both pass through one function of Python's own."""
    me, holder = threading.current_thread(), Seat()
    holder.thread = 1
    frame = SimpleNamespace(f_code=turns._JOINING[-1], f_locals={"self": me, "block": block})
    monkeypatch.setattr(sys, "_current_frames", lambda: {1: frame})
    assert turns._joins(holder, me) is block


# -- in the child of a fork --------------------------------------------------------------------

FORK = """
import asyncio, gc, os, signal, threading, time
import ppl.lazy
from contextlib import ExitStack
from ppl.lm.drafts import Drafts
from ppl.lm.guessing import Drafting
from ppl.lm.server.endpoint import Endpoint
from ppl.runtime import turns
from ppl.runtime.coroutine import this_thread

settings = dict(api_key=None, concurrency=1, retries=0, backoff=0.0, timeout=1.0)
endpoint = Endpoint("http://127.0.0.1:9/v1", **settings)
drafting = Drafting(Drafts(), 97)
held, forked = threading.Event(), threading.Event()

def holds():
    with ExitStack() as all:
        for lock in (endpoint._lock, drafting._lock, ppl.lazy._FIRST):
            all.enter_context(lock)
        with turns._looking:  # who forks waits for it
            gc.disable()
            held.set()
            time.sleep(0.5)
            gc.enable()
        forked.wait(300)

thread = threading.Thread(target=holds, daemon=True)
thread.start()
held.wait(300)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a lock that nobody releases
    async def seven(): return 7
    fine = gc.isenabled() and endpoint.wait(seven()) == 7 and ppl.Text is not None
    with drafting._lock, turns._looking:
        os._exit(0 if fine else 1)
forked.set()
thread.join()
with turns._looking:
    print(os.waitpid(child, 0)[1], gc.isenabled())
"""


def test_a_forked_child_finds_every_lock_free():
    assert run_script(FORK, warnings="ignore") == "0 True"


CANCELLED = """
import os, signal
from loops import under_way
from programs import toy
from ppl.runtime.loop import SHARED
from ppl.searchers import SMC

going = under_way()
child = os.fork()
if child == 0:
    signal.alarm(300)
    going.cancel()  # a copy, which nobody here works for
    os._exit(0 if SHARED.submit(SMC(3).begin(toy, "prod", seed=4)).result(200).samples else 1)
print(os.waitpid(child, 0)[1], len(going.result(300).samples))
"""


def test_what_is_cancelled_of_a_parent_hurts_no_search_of_the_child():
    assert run_script(CANCELLED, warnings="ignore") == "0 2"


# -- locks that others would hold ----------------------------------------------------------------


def test_a_property_is_computed_while_another_object_computes_its_own():
    begun, other_done = threading.Event(), threading.Event()

    class Thing:
        def __init__(self, slow):
            self.slow = slow

        @cached_property
        def value(self):
            if self.slow:
                begun.set()
                return other_done.wait(300)
            return [1]

    slow, quick = Thing(True), Thing(False)
    thread = threading.Thread(target=lambda: slow.value, daemon=True)
    thread.start()
    assert begun.wait(300)
    found: Future[object] = Future()
    threading.Thread(target=lambda: found.set_result(quick.value), daemon=True).start()
    assert found.result(300) is quick.value
    other_done.set()
    thread.join(300)
    assert slow.value is True
    assert isinstance(Thing.value, functools.cached_property)


def test_no_property_has_the_lock_that_all_objects_of_a_class_share():
    at = {
        name
        for name, path in sources().items()
        for statement in ast.walk(ast.parse(path.read_text()))
        if isinstance(statement, ast.ImportFrom) and statement.module == "functools"
        for alias in statement.names
        if alias.name == "cached_property"
    }
    assert at == {"ppl.language.cached"}


# -- the loop's own thread -----------------------------------------------------------------------


def test_a_batch_that_does_not_end_stops_no_later_search(monkeypatch):
    def close(session):
        Session.close(session)
        raise RuntimeError("it does not end")

    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda about: said.append(str(about.exc_value)))
    lm = counting()
    with monkeypatch.context() as patch:
        patch.setattr(CountingSession, "close", close)
        first = SHARED.submit(SMC(3).begin(walk, lm, seed=1)).result(300)
        assert until(lambda: SHARED._thread is None)
    again = SHARED.submit(SMC(3).begin(walk, counting(), seed=1)).result(300)
    assert contents(again) == contents(first)
    assert said == ["it does not end"]
    nothing_is_left()


def test_a_turn_that_does_not_come_is_an_error_of_who_waits_for_it(monkeypatch):
    begun = []

    def take(seat):
        raise MemoryError("no turn")

    def program(number):
        begun.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(TURNS, "take", take)
        with pytest.raises(MemoryError, match="no turn"):
            SHARED.submit(BestOfN(1).begin(program, 1, seed=0)).result(300)
        assert until(lambda: SHARED._thread is None)
    assert SHARED.submit(BestOfN(1).begin(program, 2, seed=0)).result(300).samples
    assert begun == [2]
    nothing_is_left()


def test_who_awaits_is_told_that_there_is_no_thread_for_it(monkeypatch):
    start = threading.Thread.start

    def none_left(thread):
        if thread.name == "ppl loop":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def several():
        searches = [SMC(3).arun(toy, "prod", seed=seed) for seed in range(2)]
        return await asyncio.wait_for(asyncio.gather(*searches, return_exceptions=True), 300)

    assert until(lambda: SHARED._thread is None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        assert [str(error) for error in asyncio.run(several())] == ["can't start new thread"] * 2
    assert all(posterior.samples for posterior in asyncio.run(several()))


# -- event loops and helper processes ------------------------------------------------------------


def test_an_event_loop_that_awaited_searches_is_not_kept():
    async def main():
        await SMC(2).arun(toy, "prod", seed=0)
        return weakref.ref(asyncio.get_running_loop())

    left = asyncio.run(main())

    def gone():
        gc.collect()
        return left() is None

    assert until(gone, 60)


def test_an_event_loop_in_a_thread_runs_when_it_is_handed_out_and_is_closed_at_its_end(monkeypatch):
    loop, thread = events("some")
    assert loop.is_running()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(300)
    assert loop.is_closed()

    def refused():
        raise OSError("too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", refused)
    with pytest.raises(OSError, match="too many"):
        events("none")


def test_a_process_may_be_given_up_in_the_thread_that_reads_from_it(monkeypatch):
    """Where garbage is collected there."""
    cat = Process(["/bin/cat"], "cat")
    reader = cat._reader
    monkeypatch.setattr(cat, "_reader", threading.current_thread())
    cat.stop()
    reader.join(300)
    assert not reader.is_alive()
    assert cat.process.returncode is not None
    assert cat.process.stdin is not None
    assert cat.process.stdin.closed


def test_what_was_given_up_before_its_reader_began_has_come_to_its_end():
    replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with Path(os.devnull).open("rb", buffering=0) as stream:
        pass
    _forward(stream, replies, False)
    assert replies.get_nowait() is None


# -- the interpreter's end -----------------------------------------------------------------------

EXIT = """
import atexit, threading, time
begun, ended = set(), []
atexit.register(lambda: print(sorted(ended)))  # before the library's own, and so called after it
import pyro, torch
import pyro.distributions as dist
from ppl.searchers import BestOfN

def program(number):
    begun.add(number)
    try:
        for t in range(10**9):
            pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
            torch.ones(300, 300) @ torch.ones(300, 300)
    finally:
        ended.append(number)

def search(number):
    try:
        BestOfN(1).run(program, number, seed=0)
    except Exception:  # it is no error of the search's
        ended.append("an error")
    BestOfN(1).run(program, number + 10, seed=0)

for number in range(MANY):
    threading.Thread(target=search, args=(number,), daemon=True).start()
while len(begun) < MANY:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("many", [1, 3])
def test_searches_of_daemon_threads_end_before_the_interpreter(many):
    """Which would end them in the middle of native code, and that the process."""
    assert run_script(f"MANY = {many}" + EXIT) == str(list(range(many)))


def test_who_waits_for_a_turn_is_dismissed_at_once():
    """Also where an interrupt has kept the one that dismisses from leaving the table."""
    table, left_behind, waiting, told = Turns(), Seat(), Seat(), []

    def waits():
        with pytest.raises(SystemExit):
            table.take(waiting)
        told.append(True)
        table.leave(waiting)

    table.take(left_behind)
    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    assert until(lambda: waiting in table._seats)
    table.dismiss(30_000.0)
    thread.join(300)
    assert told == [True]
    assert table._seats == []


# -- threads of one number -----------------------------------------------------------------------


def test_no_later_thread_has_the_mark_of_one_that_ended():
    """The system gives numbers of threads again; greenlets belong to the thread that has gone."""
    marks: list[tuple[object, object]] = []
    for _ in range(200):
        thread = threading.Thread(target=lambda: marks.append((this_thread(), this_thread())))
        thread.start()
        thread.join(300)
    assert len(set(marks)) == 200
    assert all(first is second for first, second in marks)


def test_a_search_goes_on_in_one_thread_after_the_other():
    for seed in range(5):
        search = SMC(3).begin(walk, counting(), 3, seed=seed)
        while not search.over:
            thread = threading.Thread(target=search.step)
            thread.start()
            thread.join(300)
        expected = SMC(3).run(walk, counting(), 3, seed=seed)
        assert contents(search.posterior()) == contents(expected)
