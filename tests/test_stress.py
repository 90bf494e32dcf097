"""Threads, event loops, cancellations, interrupts: each search gives what it gives alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pyro
import pyro.distributions as dist
import pytest
from loops import counting, nothing_is_left, walk
from programs import TOY, contents, toy
from work import until

import ppl
from ppl.errors import SearchStateError
from ppl.language.cost import Account
from ppl.lm.decode import Session
from ppl.runtime import keyed
from ppl.runtime.batch import Batches
from ppl.runtime.job import Job
from ppl.runtime.loop import SHARED, Loop
from ppl.runtime.turns import TURNS, Turns
from ppl.searchers import SMC, BeamSearch, BestOfN, run_all
from ppl.verifiers import FunctionVerifier

SEARCHERS = [SMC(3), BestOfN(3), BeamSearch(2, 2)]


def plain(seconds, over=None):
    """Plain Pyro sites only, for some time, or until something is over."""
    end, t = time.perf_counter() + seconds, 0
    while time.perf_counter() < end and not (over and over.is_set()):
        pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0))
        t += 1


# -- all at once -------------------------------------------------------------------------------


def test_every_search_gives_what_it_gives_alone_whatever_happens_around_it():
    """Threads that run, threads that submit, event loops that await; a third is cancelled."""
    lm = counting()
    expected = {
        (which, seed): contents(searcher.run(walk, lm, 4, seed=seed))
        for which, searcher in enumerate(SEARCHERS)
        for seed in range(3)
    }
    end = time.perf_counter() + 4  # or until every kind has come to something
    wrong: list[object] = []
    done = [0, 0, 0]

    def check(kind, which, seed, posterior):
        done[kind] += 1
        if contents(posterior) != expected[which, seed]:
            wrong.append((kind, which, seed))

    def cases(kind):
        rng = random.Random(kind)
        while (now := time.perf_counter()) < end or (not all(done) and now < end + 60):
            yield rng.randrange(3), rng.randrange(3), rng.random() < 0.3, rng.random() * 0.02

    def runs(worker):
        for which, seed, nested, _ in cases(worker):
            search = SEARCHERS[which].begin(walk, lm, 4, seed=seed)
            if nested:  # by hand
                while not search.over:
                    search.step()
                check(0, which, seed, search.posterior())
            else:
                check(0, which, seed, search.run())

    def submits(worker):
        for which, seed, cancelled, pause in cases(worker):
            future = SHARED.submit(SEARCHERS[which].begin(walk, lm, 4, seed=seed))
            if cancelled:
                time.sleep(pause)
                if future.cancel():
                    with pytest.raises(CancelledError):
                        future.result(300)
                    continue
            check(1, which, seed, future.result(300))

    def awaits(worker):
        async def one(which, seed, cancelled, pause):
            task = asyncio.create_task(SEARCHERS[which].arun(walk, lm, 4, seed=seed))
            if cancelled:
                await asyncio.sleep(pause)
                task.cancel()
            try:
                check(2, which, seed, await task)
            except asyncio.CancelledError:
                assert cancelled

        async def main():
            batch = []
            for case in cases(worker):
                batch.append(one(*case))
                if len(batch) == 4:
                    await asyncio.gather(*batch)
                    batch.clear()
            await asyncio.gather(*batch)

        asyncio.run(main())

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(f, i) for i, f in enumerate([runs, submits, awaits] * 2)]
        for future in futures:
            future.result(300)
    assert not wrong
    assert all(done)
    nothing_is_left(lm)
    assert not TURNS._seats
    assert not SHARED._jobs


# -- interrupts --------------------------------------------------------------------------------

INTERRUPTED = [
    (Turns.take, 3),
    (Turns.hand, 3),
    (Turns._wait, 3),
    (Turns.knock, 1),
    (Batches._step, 4),
    (Batches._deliver, 3),
    (Batches.work, 3),
    (Batches.ask, 2),
    (Loop._advance, 3),
    (Loop._read, 2),
    (Session.step, 4),
]


@pytest.mark.parametrize(
    ("function", "places"), INTERRUPTED, ids=lambda x: getattr(x, "__name__", x)
)
def test_an_interrupt_at_any_line_hurts_nobody_else(function, places):
    """Ctrl-C in the caller's thread, at lines of a function, while another search goes on."""
    lines = sorted({line for _, _, line in function.__code__.co_lines() if line is not None})[1:]
    mine = contents(SMC(3).run(walk, counting(), 3, seed=1))
    others = contents(SMC(3).run(walk, counting(), 9, seed=2))
    came = 0
    for target in lines[:: max(1, len(lines) // places)]:
        pressed: list[int] = []

        def trace(frame, event, arg, target=target, pressed=pressed):
            if frame.f_code is not function.__code__ or pressed:
                return None
            if event == "line" and frame.f_lineno == target:
                pressed.append(target)
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        lm = counting()
        other = SHARED.submit(SMC(3).begin(walk, lm, 9, seed=2))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            SMC(3).run(walk, lm, 3, seed=1)
        except KeyboardInterrupt:
            came += 1
        finally:
            sys.settrace(before)
        assert contents(other.result(300)) == others
        assert contents(SMC(3).run(walk, lm, 3, seed=1)) == mine
        nothing_is_left(lm)
        assert not TURNS._seats
        assert not keyed._lent
    assert came or function in (Turns.hand, Turns.knock, Turns._wait)  # where nobody had to wait


# -- inside of each other ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["program", "verifier", "on_step"])
@pytest.mark.parametrize("how", ["run", "arun", "submit", "step"])
def test_a_search_may_run_inside_of_another(where, how):
    expected = contents(SMC(3).run(toy, "prod", seed=5))
    found = []

    def inner():
        if how == "run":
            found.append(SMC(3).run(toy, "prod", seed=5))
        elif how == "arun":
            found.append(asyncio.run(SMC(3).arun(toy, "prod", seed=5)))
        elif how == "submit":
            found.append(SHARED.submit(SMC(3).begin(toy, "prod", seed=5)).result(300))
        else:
            search = SMC(3).begin(toy, "prod", seed=5)
            while not search.over:
                search.step()
            found.append(search.posterior())

    def judge(text):
        if where == "verifier":
            inner()
        return 0.5

    asked = FunctionVerifier(judge, name="asked")

    def program():
        text = TOY.prompt("^")
        text = text + pyro.sample("s", TOY(text, max_tokens=2))
        if where == "program":
            inner()
        pyro.sample("ok", asked(text), obs=True)
        return text.text

    def on_step(search):
        if where == "on_step":
            inner()

    posterior = BestOfN(2).run(program, seed=0, on_step=on_step)
    assert len(posterior.samples) == 2
    assert found
    assert all(contents(f) == expected for f in found)
    nothing_is_left()


def test_a_time_limit_holds_behind_a_search_inside_of_the_program():
    def program():
        BestOfN(1).run(toy, "prod", seed=0)
        plain(200)
        return 1

    started = time.perf_counter()
    BestOfN(1).run(program, seed=0, budget=ppl.Budget(seconds=0.3))
    assert time.perf_counter() - started < 60


def test_programs_without_models_starve_none_with_one():
    lm, over = counting(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(BestOfN(1).run, plain, 60.0, over, seed=s) for s in range(2)]
        time.sleep(0.2)
        BestOfN(1).run(walk, lm, 2, seed=0)
        assert not any(future.done() for future in busy)
        over.set()
        for future in busy:
            future.result(300)


# -- misuse ------------------------------------------------------------------------------------


def test_a_search_is_run_once_at_a_time():
    search = SMC(3).begin(walk, counting(), 4, seed=0)
    with pytest.raises(SearchStateError, match="in the middle of a round"):
        run_all([search, search])
    nothing_is_left()


def test_a_tree_of_two_threads_is_refused():
    lm, refused = counting(), threading.Event()
    lm.before = lambda: None if refused.is_set() else time.sleep(0.02)
    tree = ppl.Tree(walk, (lm, 1, 2000), seed=0)  # its first step takes 40 s, if nobody is refused
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(tree.expand, [tree.root], 3)
        assert until(lambda: lm.steps)
        try:
            with pytest.raises(SearchStateError, match="two threads"):
                tree.expand([tree.root], 3)
        finally:
            refused.set()
            going.result(300)
    tree.close()
    nothing_is_left(lm)


def test_what_is_abandoned_may_not_hold_on_for_ever():
    lm = counting()

    class Stubborn(SMC):
        def step(self, tree, state):
            while True:
                with contextlib.suppress(BaseException):
                    tree.expand([tree.root], 2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        future = SHARED.submit(Stubborn(2).begin(walk, lm, 4, seed=0))
        while not lm.steps:
            time.sleep(0.001)
        future.cancel()
        wait([future], 300)
        assert contents(SMC(3).run(toy, "prod", seed=2))
    assert any("catches its own end" in str(w.message) for w in caught)


# -- the process -------------------------------------------------------------------------------


def test_nothing_of_a_search_is_kept():
    def count():
        gc.collect()
        return sum(type(o) in (Job, ppl.Tree) for o in gc.get_objects())

    lm = counting()
    BestOfN(2).run(walk, lm, 2, seed=0)
    before = count()
    for seed in range(40):
        SMC(2).run(walk, lm, 2, seed=seed)
        SHARED.submit(BestOfN(2).begin(walk, lm, 2, seed=seed)).result(300)
    nothing_is_left(lm)
    lm.sessions.clear()
    assert count() <= before + 1  # the background's last


def test_the_end_of_the_interpreter_waits_for_what_was_submitted_to_be_abandoned():
    lm = counting()
    future = SHARED.submit(BestOfN(2).begin(walk, lm, 10**5, seed=0))
    while not lm.steps:
        time.sleep(0.001)
    thread = SHARED._thread
    SHARED.stop()  # registered with atexit
    assert future.cancelled()
    assert thread is not None
    assert not thread.is_alive()
    nothing_is_left(lm)


def test_servers_of_one_search_reserve_from_one_budget():
    account = Account(ppl.Budget(tokens=10))
    first, second = account.of(counting()), account.of(TOY)
    first.reserve(7)
    assert second.tokens_left == 3
    assert second.reserved == 7
    first.reserve(-7)
    first.add(lm_tokens=4)
    assert second.tokens_left == 6
