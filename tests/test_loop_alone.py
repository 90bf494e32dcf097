"""What happens to one search of a loop happens to it alone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from loops import (
    PLAIN,
    QUESTION,
    Counting,
    counting,
    forever,
    nothing_is_left,
    under_way,
    walk,
)
from programs import TOY, contents, toy
from scripts import run_script
from work import until

import ppl
from ppl.errors import ProgramError, VerifierError
from ppl.runtime.loop import SHARED
from ppl.runtime.turns import Seat, Turns
from ppl.searchers import SMC, BeamSearch, BestOfN, run_all
from ppl.verifiers import FunctionVerifier

# -- alone -------------------------------------------------------------------------------------


@pytest.fixture
def interrupts():
    """Ctrl-C raises, also in processes that share the tests, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_program_that_joins_a_thread_that_searches_is_told(pooled):
    caught = []

    def search():
        with pytest.raises(ProgramError, match=r"keeps the turn.*in the program itself") as error:
            SMC(2).run(toy, "prod", seed=0)
        caught.append(error)

    def program():
        if pooled:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(search)
        else:
            thread = threading.Thread(target=search, daemon=True)
            thread.start()
            thread.join(300)
        return len(caught)

    assert BestOfN(1).run(program, seed=0).best == 1
    nothing_is_left()


# Whatever is made leaves garbage whose end takes the lock of the interpreter that is held by
# `sys._current_frames`, and all of it is collected at once: as a frame of its answer is made.
LITTER = """
import gc, signal, threading, time
from ppl.runtime.turns import Seat, _joins

class Litter:
    def __init__(self):
        self.me, self.local = self, threading.local()
        self.local.used = True

holder, ended = Seat(), threading.Event()
def wait(depth):
    wait(depth - 1) if depth else ended.wait()
thread = threading.Thread(target=wait, args=(5,), daemon=True)
thread.start()
holder.thread = thread.ident
signal.alarm(300)  # an end that is seen: this is no wait that an interrupt could end
gc.set_threshold(1)
found = set()
for k in range(1000):
    Litter()
    shift = [[] for _ in range(k % 7)]  # so that each of the next allocations is once the one
    found.add(_joins(holder, threading.current_thread()))
ended.set()
thread.join()
print(found, gc.isenabled())
"""


def test_looking_what_another_thread_does_collects_no_garbage():
    assert run_script(LITTER) == "{False} True"


def test_a_program_that_joins_one_thread_is_not_told_of_another():
    ready, over = threading.Event(), threading.Event()

    def elsewhere():
        ready.wait(300)
        found.append(SMC(2).run(toy, "prod", seed=0))
        over.set()

    def program():
        slow = threading.Thread(target=time.sleep, args=(2,))
        slow.start()
        ready.set()
        slow.join()
        return over.is_set()

    found = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert BestOfN(1).run(program, seed=0).best is False  # the other one waited all the while
    thread.join()
    assert contents(found[0]) == contents(SMC(2).run(toy, "prod", seed=0))
    nothing_is_left()


def test_an_awaited_search_that_is_cancelled_ends_alone():
    lm, other = counting(), counting()

    async def main():
        going = asyncio.create_task(SMC(4).arun(walk, other, 60, seed=1))
        doomed = asyncio.create_task(BestOfN(4).arun(forever_slow, lm, seed=0))
        while lm.steps < 5:
            await asyncio.sleep(0.001)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        at = lm.steps
        after = await SMC(2).arun(toy, "prod", seed=0)
        assert lm.steps < at + 100  # of the 100,000 that it would have taken
        return await going, after

    def forever_slow(lm):
        return forever(lm, 10**5)

    going, after = asyncio.run(main())
    assert contents(going) == contents(SMC(4).run(walk, counting(), 60, seed=1))
    assert contents(after) == contents(SMC(2).run(toy, "prod", seed=0))
    steps = lm.steps
    BestOfN(2).run(toy, "prod", seed=0)
    assert lm.steps == steps
    nothing_is_left(lm, other)


def test_a_cancelled_future_tells_those_who_wait():
    lm = counting()
    ended = threading.Event()

    def program():
        try:
            return forever(lm, 10**5)
        finally:
            ended.set()

    future = SHARED.submit(BestOfN(2).begin(program, seed=0))
    while not lm.steps:
        time.sleep(0.001)
    assert future.cancel()
    at = lm.steps
    done, _ = wait([future], timeout=300)
    assert done == {future}
    with pytest.raises(CancelledError):
        future.result()
    assert ended.wait(300)  # `finally` blocks of the programs have run
    assert lm.steps < at + 100  # and not because they came to their ends
    assert contents(SMC(3).run(toy, "prod", seed=2))
    nothing_is_left(lm)


def test_slots_come_back_after_a_cancellation(tiny):
    lm, prm = tiny
    BestOfN(2).run(solve, QUESTION, lm, prm, seed=0)

    def busy():
        return sum(slot.busy for engine in (lm.engine, prm.engine) for slot in engine.slots.all)

    async def main():
        doomed = asyncio.create_task(SMC(200).arun(solve, QUESTION, lm, prm, seed=1))
        while not busy():
            await asyncio.sleep(0.001)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        return await SMC(2).arun(solve, QUESTION, lm, prm, seed=0)

    assert busy() == 0
    found = asyncio.run(main())
    assert busy() == 0
    assert contents(found) == contents(SMC(2).run(solve, QUESTION, lm, prm, seed=0))


class Interrupting(Counting):
    """Presses Ctrl-C in its own step number `at`."""

    at = 0

    def session(self):
        self.before = self.press
        return super().session()

    def press(self):
        if self.steps == self.at:
            self.at = -1
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interrupts")
def test_control_c_ends_the_callers_searches_and_no_others():
    lm = Interrupting(PLAIN, symbols="^ab$", end="$", context_length=10**6, name="interrupting")
    lm.at = 40
    expected = [contents(SMC(4).run(walk, counting(), n, seed=n)) for n in (5, 60, 70)]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    # The other search draws from the same model, and sits in the batch that is interrupted.
    other = SHARED.submit(SMC(4).begin(walk, lm, 70, seed=70))
    with pytest.raises(KeyboardInterrupt) as caught:
        SMC(4).run_many(walk, [(lm, 5), (lm, 60)], seed=[5, 60])
    first, second = caught.value.searches
    assert first.over
    assert contents(first.posterior()) == expected[0]
    assert "1 of 2 searches were over" in caught.value.__notes__[0]
    assert not second.over
    assert list(map(contents, run_all([first, second]))) == expected[:2]
    assert contents(other.result(300)) == expected[2]
    nothing_is_left(lm)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("interrupts")
def test_control_c_reaches_a_thread_that_waits_for_its_turn():
    lm = counting()
    lm.before = lambda: time.sleep(0.02)
    other = SHARED.submit(BestOfN(2).begin(walk, lm, 300, 3, seed=0))  # it takes 18 s
    assert until(lambda: lm.steps)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))

    def waits():
        timer.start()
        BestOfN(2).run(walk, lm, 10**5, seed=0)

    with pytest.raises(KeyboardInterrupt):
        waits()
    assert not other.done()
    lm.before = lambda: None
    assert len(other.result(300).samples) == 2
    nothing_is_left(lm)


def test_an_interrupt_at_the_start_of_the_loops_thread_is_no_other_error(monkeypatch):
    """The thread runs by then, and would take what was posted while that is taken back."""
    nothing_is_left()
    start, begun = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        time.sleep(0.05)
        raise KeyboardInterrupt

    def program():
        begun.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            SHARED.submit(BestOfN(1).begin(program, seed=0))
    assert until(lambda: SHARED._thread is None)
    assert begun == []
    assert SHARED.submit(BestOfN(1).begin(program, seed=0)).result(300).samples
    assert begun == [1]
    nothing_is_left()


def test_a_thread_that_is_driven_away_from_waiting_gets_the_turn_again(monkeypatch):
    """It has searches to abandon, and nothing in its queue that would tell the others so."""
    turns, mine, busy = Turns(), Seat(), Seat()
    interrupted = threading.Event()

    def other():
        turns.take(mine)
        with monkeypatch.context() as patch:
            patch.setattr(turns, "_wait", lambda seat: 1 / 0)  # as if interrupted there
            with pytest.raises(ZeroDivisionError):
                turns.hand(mine, busy)
        interrupted.set()
        turns.regain(mine)
        turns.leave(mine)

    turns.take(busy)
    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    while turns.others(busy) is not mine:
        time.sleep(0.001)
    turns.hand(busy, mine)
    assert interrupted.wait(300)
    assert until(lambda: turns.others(busy) is mine)
    turns.hand(busy, mine)
    thread.join(300)
    assert not thread.is_alive()
    turns.leave(busy)
    assert turns._holder is None


@pytest.mark.parametrize("where", ["program", "model", "until", "allowed", "verifier", "prompt"])
def test_one_bad_question_loses_nobody_else(where):
    def law(prefix):
        if where == "model" and prefix.startswith("^b"):
            raise OSError("the table is gone")
        return {"a": 0.5, "b": 0.3, "$": 0.2}

    def asked(text):
        if where == "verifier" and text.prompt == "^b":
            raise OSError("no judge")
        return 0.5

    lm = Counting(law, symbols="^ab$", end="$", name="fragile")
    judge = FunctionVerifier(asked, name="asked")
    bad = "^b" if where != "prompt" else "^" + "a" * 2 * lm.context_length

    def until(new):
        if where == "until" and len(new) > 2:
            raise OSError("no rule")
        return False

    def program(question):
        text = lm.prompt(question)
        for t in range(3):
            hurt = question == "^b"
            options = {"until": until} if hurt and where == "until" else {}
            if hurt and where == "allowed":
                options["allowed"] = lambda new: 1 // (2 - len(new)) and None
            step = pyro.sample(f"s_{t}", lm(text, max_tokens=4, **options))
            if hurt and where == "program" and t == 1:
                raise OSError("gone")
            text = text + step
            pyro.sample(f"ok_{t}", judge(text), obs=True)
            if step.finished:
                break
        return text.text

    questions = ["^a", bad, "^aa", "^ab"]
    found = BestOfN(20).run_many(program, questions, seed=[1, 2, 3, 4])
    kind = {"verifier": VerifierError}.get(where, ppl.PPLError)
    assert isinstance(found[1], kind)
    for i in (0, 2, 3):
        alone = BestOfN(20).run(program, questions[i], seed=i + 1)
        assert contents(found[i]) == contents(alone)
    nothing_is_left(lm)


def test_what_a_failed_search_has_asked_is_drawn_no_further():
    """Six particles fail while others of them are drawing: nobody draws for them any more."""
    lm = counting()

    def program(bad):
        text = lm.prompt("^")
        short = bool(pyro.sample("k", dist.Bernoulli(0.5)))
        tokens = 1 if short else 200
        text = text + pyro.sample("s", lm(text, max_tokens=tokens, allowed=lm.encode("ab")))
        if bad and short:
            raise ValueError("boom")
        return text.text

    found = BestOfN(6).run_many(program, [0, 1, 1], seed=[1, 2, 3])
    assert [type(f) for f in found] == [ppl.Posterior, ProgramError, ProgramError]
    mine = sum(len(s.value) - 1 for s in found[0].samples)
    # One token for each of the others, and one more that they were about to be given.
    assert mine < lm.tokens_computed <= mine + 2 * 18
    spent = SMC(3).run(toy, "prod", seed=0).cost
    assert spent.lm_tokens > 0
    nothing_is_left(lm)


def test_a_search_whose_budget_ends_lets_the_others_go_on():
    """Rows of a spent account leave the batch; those beside them are drawn to their end."""
    budget = ppl.Budget(calls=9)
    arguments = [(TOY, 2), (TOY, 5), (TOY, 2)]
    found = BeamSearch(2, 2).run_many(walk, arguments, seed=[1, 2, 3], budget=budget)
    for i, (posterior, stopped) in enumerate(zip(found, ["done", "budget", "done"], strict=True)):
        assert posterior.stopped == stopped
        assert posterior.cost.calls <= 9
        alone = BeamSearch(2, 2).run(walk, *arguments[i], seed=i + 1, budget=budget)
        assert contents(posterior) == contents(alone)


def endless():
    t = 0
    while True:
        pyro.sample(f"x_{t}", dist.Bernoulli(0.5))
        t += 1


def test_a_time_limit_stops_a_program_of_plain_sites_and_it_starves_nobody():
    lm = counting()
    going = SHARED.submit(BestOfN(2).begin(endless))
    try:
        beside = SHARED.submit(SMC(4).begin(walk, lm, 2, seed=1)).result(300)
        assert not going.done()
    finally:
        going.cancel()
    assert contents(beside) == contents(SMC(4).run(walk, counting(), 2, seed=1))
    begun = time.perf_counter()
    late = SHARED.submit(BestOfN(2).begin(endless, budget=ppl.Budget(seconds=0.3)))
    assert late.result(300).stopped == "budget"
    assert time.perf_counter() - begun >= 0.3
    assert BestOfN(2).run(endless, budget=ppl.Budget(seconds=0.1)).stopped == "budget"
    nothing_is_left(lm)


def test_a_program_of_plain_sites_is_cancelled_between_two_of_them():
    future = SHARED.submit(BestOfN(2).begin(endless))
    time.sleep(0.1)
    future.cancel()
    assert wait([future], timeout=300).done
    assert SMC(2).run(toy, "prod", seed=0).samples
    nothing_is_left()


def test_sys_exit_in_a_submitted_program_ends_that_search_only():
    def leave():
        pyro.sample("x", dist.Bernoulli(0.5))
        raise SystemExit(3)

    futures = [SHARED.submit(BestOfN(2).begin(p)) for p in (leave, toy)]
    with pytest.raises(SystemExit):
        futures[0].result(300)
    assert len(futures[1].result(300).samples) == 2
    nothing_is_left()


def test_a_forked_child_starts_anew():
    going = under_way()
    child = os.fork()
    if child == 0:
        signal.alarm(300)  # a deadlock ends it
        os._exit(0 if contents(SMC(3).run(toy, "prod", seed=4)) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert len(going.result(300).samples) == 2
