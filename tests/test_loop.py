"""One loop for all searches: batches are shared, and what happens to one happens to it alone."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from programs import TOY, contents, toy
from pyro.poutine import runtime
from test_server import behind

import ppl
from ppl.errors import ProgramError, VerifierError
from ppl.lm.decode import Session
from ppl.runtime.batch import BudgetExhausted
from ppl.runtime.loop import SHARED
from ppl.runtime.turns import TURNS, Seat, Turns
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, run_all
from ppl.verifiers import FunctionVerifier, GenRM

QUESTION = "Calculate ( 3 + 5 ) * 2 - 7."


class Counting(ppl.TableLM):
    """Counts the steps of its batches and the rows in them; may do something before each step."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.steps, self.rows, self.most = 0, 0, 0
        self.sessions: list[CountingSession] = []
        self.before = lambda: None

    def session(self):
        self.sessions.append(CountingSession(self))
        return self.sessions[-1]


class CountingSession(Session):
    closed = False

    def step(self):
        self.model.before()
        answers = super().step()
        self.model.steps += 1
        self.model.most = max(self.model.most, self.joined)
        return answers

    def close(self):
        super().close()
        self.closed = True


PLAIN = {"a": 0.5, "b": 0.3, "$": 0.2}


def counting() -> Counting:
    return Counting(PLAIN, symbols="^ab$", end="$", context_length=10**6, name="counting")


def walk(lm, steps=6, tokens=3):
    text = lm.prompt("^")
    for t in range(steps):
        step = pyro.sample(f"s_{t}", lm(text, max_tokens=tokens, allowed=lm.encode("ab")))
        text = text + step
        pyro.factor(f"f_{t}", torch.tensor(0.3 * step.text.count("a")))
    return text.text


def forever(lm, tokens=60):
    """Goes on for as long as the context allows."""
    text = lm.prompt("^")
    text = text + pyro.sample("s", lm(text, max_tokens=tokens, allowed=lm.encode("a")))
    return text.text


def nothing_is_left(*models):
    for _ in range(1000):  # the loop's own thread is about to leave
        if TURNS._holder is not None:
            time.sleep(0.001)
    assert not runtime._PYRO_STACK
    assert TURNS._holder is None
    assert not SHARED._batches.busy
    for lm in models:
        assert all(session.closed or not session.running for session in lm.sessions)


# -- together ----------------------------------------------------------------------------------


@pytest.fixture
def interrupts():
    """Ctrl-C raises, also in processes that share the tests, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_awaited_searches_make_as_few_batches_as_run_many():
    seeds = range(6)
    lm = counting()
    together = SMC(4).run_many(walk, [lm] * 6, seed=seeds)
    wanted = lm.steps
    lm = counting()

    async def gather():
        return await asyncio.gather(*(SMC(4).arun(walk, lm, seed=s) for s in seeds))

    apart = asyncio.run(gather())
    assert lm.steps == wanted == 18
    assert len(lm.sessions) == 1
    assert list(map(contents, apart)) == list(map(contents, together))
    nothing_is_left(lm)


def test_submitted_searches_of_different_kinds_share_batches_and_give_what_they_give_alone():
    searchers = [SMC(4), BestOfN(3), BeamSearch(2, 2), MCTS(5)]
    alone = [searcher.run(toy, "prod", seed=7) for searcher in searchers]
    futures = [SHARED.submit(searcher.begin(toy, "prod", seed=7)) for searcher in searchers]
    assert [contents(f.result(30)) for f in futures] == list(map(contents, alone))


def test_threads_share_the_batches_of_whoever_is_at_it():
    alone = [contents(SMC(4).run(walk, counting(), seed=s)) for s in range(4)]
    lm = counting()
    barrier = threading.Barrier(4)

    def run(seed):
        barrier.wait()
        return contents(SMC(4).run(walk, lm, 40, seed=seed)), threading.get_ident()

    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(run, range(4)))
        assert lm.most > 4  # rows of several threads in one batch
        assert lm.steps < 4 * 120
        lm = counting()
        barrier.reset()
        again = list(pool.map(lambda s: contents(SMC(4).run(walk, lm, seed=s)), range(4)))
    assert again == alone
    assert len({ident for _, ident in shared}) == 4
    nothing_is_left(lm)


def test_a_plain_run_stays_in_its_thread():
    seen = set()

    def program():
        seen.add(threading.get_ident())
        return walk(TOY)

    other = counting()
    background = SHARED.submit(SMC(4).begin(walk, other, 50, seed=0))
    BestOfN(3).run(program, seed=0)
    assert seen == {threading.get_ident()}
    assert background.result(30).samples


@pytest.mark.parametrize("which", ["run", "run_many", "arun", "begin"])
def test_steps_are_told(which):
    seen = Counter()

    def on_step(search):
        seen[search.tree.seed] += 1

    searcher = SMC(3)
    if which == "run":
        searcher.run(toy, "prod", seed=1, on_step=on_step)
    elif which == "run_many":
        searcher.run_many(toy, ["prod", "last"], seed=[1, 2], on_step=on_step)
    elif which == "arun":
        asyncio.run(searcher.arun(toy, "prod", seed=1, on_step=on_step))
    else:
        searcher.begin(toy, "prod", seed=1).run(on_step)
    assert set(seen) == ({1, 2} if which == "run_many" else {1})
    assert seen[1] > 1


def test_a_program_may_search_itself():
    def program():
        inner = SMC(3).run(toy, "prod", seed=int(pyro.sample("n", dist.Categorical(torch.ones(5)))))
        ppl.twist("t", 0.1)
        return inner.best

    expected = {SMC(3).run(toy, "prod", seed=s).best for s in range(5)}
    found = BestOfN(8).run(program, seed=0)
    assert {s.value for s in found.samples} <= expected
    nothing_is_left()


# -- alone -------------------------------------------------------------------------------------


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
            thread.join(20)
        return len(caught)

    assert BestOfN(1).run(program, seed=0).best == 1
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
        at = time.perf_counter()
        after = await SMC(2).arun(toy, "prod", seed=0)
        assert time.perf_counter() - at < 2
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
    done, _ = wait([future], timeout=10)
    assert done == {future}
    with pytest.raises(CancelledError):
        future.result()
    assert ended.wait(10)  # `finally` blocks of the programs have run
    assert contents(SMC(3).run(toy, "prod", seed=2))
    nothing_is_left(lm)


def test_slots_come_back_after_a_cancellation(tiny):
    lm, prm = tiny
    BestOfN(2).run(solve, QUESTION, lm, prm, seed=0)

    def busy():
        return sum(slot.busy for engine in (lm.engine, prm.engine) for slot in engine.slots.all)

    async def main():
        doomed = asyncio.create_task(SMC(200).arun(solve, QUESTION, lm, prm, seed=1))
        await asyncio.sleep(0.2)
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
    assert contents(other.result(60)) == expected[2]
    nothing_is_left(lm)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("interrupts")
def test_control_c_reaches_a_thread_that_waits_for_its_turn():
    lm = counting()
    lm.before = lambda: time.sleep(0.002)
    other = SHARED.submit(BestOfN(2).begin(walk, lm, 300, 3, seed=0))
    while not lm.steps:
        time.sleep(0.001)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        BestOfN(2).run(walk, lm, 10**5, seed=0)
    assert time.perf_counter() - timer_started(timer) < 1.5
    assert not other.done()
    assert len(other.result(60).samples) == 2
    nothing_is_left(lm)


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
    assert interrupted.wait(5)
    patient = time.monotonic() + 5
    while turns.others(busy) is None and time.monotonic() < patient:
        time.sleep(0.001)
    assert turns.others(busy) is mine
    turns.hand(busy, mine)
    thread.join(5)
    assert not thread.is_alive()
    turns.leave(busy)
    assert turns._holder is None


def timer_started(timer: threading.Timer) -> float:
    timer.join()
    return time.perf_counter() - 0.2


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


def test_a_time_limit_stops_a_program_of_plain_sites_and_starves_nobody():
    lm = counting()
    begun = time.perf_counter()
    futures = [
        SHARED.submit(BestOfN(2).begin(endless, budget=ppl.Budget(seconds=5.0))),
        SHARED.submit(SMC(4).begin(walk, lm, 2, seed=1)),
    ]
    wait(futures, timeout=30, return_when=FIRST_COMPLETED)
    assert futures[1].done()  # the loop went on beside the one that does not end
    stopped = futures[0].result(30)
    assert stopped.stopped == "budget"
    assert 5.0 <= time.perf_counter() - begun < 20
    assert contents(futures[1].result()) == contents(SMC(4).run(walk, counting(), 2, seed=1))
    assert BestOfN(2).run(endless, budget=ppl.Budget(seconds=0.1)).stopped == "budget"
    nothing_is_left(lm)


def test_a_program_of_plain_sites_is_cancelled_between_two_of_them():
    future = SHARED.submit(BestOfN(2).begin(endless))
    time.sleep(0.1)
    future.cancel()
    assert wait([future], timeout=5).done
    assert SMC(2).run(toy, "prod", seed=0).samples
    nothing_is_left()


def test_sys_exit_in_a_submitted_program_ends_that_search_only():
    def leave():
        pyro.sample("x", dist.Bernoulli(0.5))
        raise SystemExit(3)

    futures = [SHARED.submit(BestOfN(2).begin(p)) for p in (leave, toy)]
    with pytest.raises(SystemExit):
        futures[0].result(10)
    assert len(futures[1].result(10).samples) == 2
    nothing_is_left()


def test_a_forked_child_starts_anew():
    lm = counting()
    lm.before = lambda: time.sleep(0.001)
    going = SHARED.submit(BestOfN(2).begin(walk, lm, 100, seed=0))
    while not lm.steps:
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a deadlock ends it
        os._exit(0 if contents(SMC(3).run(toy, "prod", seed=4)) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert len(going.result(30).samples) == 2


# -- polling -----------------------------------------------------------------------------------


def drawn(remote):
    return pyro.sample("s", remote(remote.prompt("^"), max_tokens=1))


def scored(remote):
    said = remote.continuation("a")
    return pyro.sample("s", remote(remote.prompt("^"), max_tokens=1), obs=said)


def proposed(remote):
    """A guide whose draws have to be scored under the model."""
    return pyro.sample("s", remote(remote.prompt("^"), max_tokens=1, temperature=0.0))


@pytest.mark.parametrize(
    ("ask", "guided", "waits"),
    [(drawn, None, 1.0), (scored, None, 1.0), (drawn, proposed, 2.0)],
    ids=["draw", "score", "draw of a guide"],
)
def test_a_slow_server_holds_up_nobody(ask, guided, waits):
    done, begun = {}, time.perf_counter()

    def local():
        text = forever(counting(), 20)
        done["local"] = time.perf_counter() - begun
        return text

    def program(which, remote):
        if which == "local":
            return local()
        text = ask(remote).text
        done["remote"] = time.perf_counter() - begun
        return text

    def guide(which, remote):
        if which == "remote":
            guided(remote)

    with behind() as (served, remote):
        alone = [("remote", remote)]
        quick = BestOfN(1).run_many(program, alone, guide=guided and guide, seed=0)
        served.delay = 1.0
        begun = time.perf_counter()
        arguments = [("local", remote), *alone]
        slow = BestOfN(1).run_many(program, arguments, guide=guided and guide, seed=0)
    assert isinstance(slow[1], ppl.Posterior), slow[1]
    assert done["local"] < 0.5
    assert done["remote"] >= waits
    assert slow[1].samples[0].value == quick[0].samples[0].value
    assert slow[1].samples[0].log_weight == quick[0].samples[0].log_weight
    cost = slow[1].cost
    scores = ask is scored or guided is not None
    assert (cost.lm_calls, cost.models[remote.name].scored_tokens) == (1, int(scores))


def once(lm):
    return pyro.sample("s", lm(lm.prompt("^"), max_tokens=2)).text


def test_cancelling_does_not_wait_for_a_server():
    with behind() as (served, remote):
        served.delay = 1.5
        future = SHARED.submit(BestOfN(2).begin(once, remote))
        while not served.asked:
            time.sleep(0.001)
        begun = time.perf_counter()
        future.cancel()
        assert SMC(2).run(toy, "prod", seed=0).samples
        assert time.perf_counter() - begun < 1.0


# -- quorum ------------------------------------------------------------------------------------


def lengths():
    """One token with probability 1/4, else sixty."""

    def law(prefix):
        if len(prefix) == 1:
            return {"a": 0.75, "$": 0.25}
        return {"a": 1.0} if len(prefix) < 60 else {"$": 1.0}

    lm = Counting(law, symbols="^a$", end="$", context_length=100, name="lengths")

    def program():
        text = lm.prompt("^")
        text = text + pyro.sample("s", lm(text))
        pyro.sample("ok", FunctionVerifier(lambda text: 0.5, name="half")(text), obs=True)
        return len(text.tokens) - 1

    return lm, program


def test_a_quorum_pays_for_the_first_and_collects_the_others():
    _, program = lengths()
    whole = ppl.Tree(program, seed=3)
    everybody = whole.expand([whole.root], 8)
    tokens = {n.identity: len(n.text.tokens) - 1 for n in everybody}
    assert sorted(set(tokens.values())) == [1, 60]

    lm, program = lengths()
    tree = ppl.Tree(program, seed=3)
    first = tree.expand([tree.root], 8, quorum=1)
    short = [i for i, n in tokens.items() if n == 1]
    assert [child.identity for child in first] == short  # they came together
    assert tree.cost.lm_tokens == 8  # one for each, where a barrier pays for all
    assert tree.underway == {i: tree.root for i, n in tokens.items() if n == 60}
    more = tree.collect(quorum=1)
    assert sorted(n.identity for n in (*first, *more)) == sorted(tokens)
    assert not tree.underway
    assert tree.collect() == []
    assert tree.cost.lm_tokens == whole.cost.lm_tokens == sum(tokens.values())
    by_number = {n.identity: (n.choices, n.log_weight) for n in (*first, *more)}
    assert by_number == {n.identity: (n.choices, n.log_weight) for n in everybody}
    assert {n.identity for n in tree.nodes} == {n.identity for n in whole.nodes}
    with pytest.raises(ValueError, match="quorum=9"):
        tree.expand([tree.root], 8, quorum=9)
    nothing_is_left(lm)


def test_a_quorum_of_what_is_underway_waits_for_no_more():
    def law(prefix):
        return {"a": 0.5, "$": 0.5} if len(prefix) in (1, 5) else {"a": 1.0}

    lm = Counting(law, symbols="^a$", end="$", context_length=100, name="three lengths")

    def program():
        text = lm.prompt("^")
        pyro.sample("s", lm(text, max_tokens=50))

    tree = ppl.Tree(program, seed=0)
    lengths = [len(tree.expand([tree.root], 16, quorum=1)[0].step)]
    lengths.append(len(tree.collect(quorum=1)[0].step))
    assert lengths == [0, 4]
    assert tree.underway
    tree.abandon()
    nothing_is_left(lm)


def test_what_is_underway_goes_on_beside_other_work_and_can_be_abandoned():
    lm, program = lengths()
    tree = ppl.Tree(program, seed=3)
    tree.expand([tree.root], 8, quorum=1)
    tree.expand([tree.root], 4)  # sixty more steps, in which the others arrive
    paid = tree.cost.lm_tokens
    assert len(tree.collect()) > 0
    assert tree.cost.lm_tokens == paid
    tree.expand([tree.root], 8, quorum=1)
    left = tree.underway
    assert left
    paid = tree.cost.lm_tokens
    tree.abandon()
    assert not tree.underway
    tree.expand([tree.root])
    assert paid < tree.cost.lm_tokens <= paid + 60
    nothing_is_left(lm)


def test_a_tree_that_was_pickled_draws_what_was_underway_again(monkeypatch):
    monkeypatch.setitem(PROGRAMS, "lengths", lengths()[1])
    tree = ppl.Tree(by_name, seed=3)
    tree.expand([tree.root], 8, quorum=1)
    copy = pickle.loads(pickle.dumps(tree))
    other = [(n.identity, n.choices, n.log_weight) for n in copy.collect()]
    assert other == [(n.identity, n.choices, n.log_weight) for n in tree.collect()]
    in_a_thread = ppl.Tree(by_name, seed=3)
    in_a_thread.expand([in_a_thread.root], 8, quorum=1)
    with ThreadPoolExecutor(1) as pool:  # greenlets stay behind, what they have drawn is drawn anew
        nodes = pool.submit(in_a_thread.collect).result()
    assert other == [(n.identity, n.choices, n.log_weight) for n in nodes]


PROGRAMS = {}


def by_name():
    return PROGRAMS["lengths"]()


def test_a_failure_among_those_underway_is_raised_when_they_are_collected():
    lm, inner = lengths()

    def program():
        if inner() > 1:
            raise ValueError("too long")
        return 1

    tree = ppl.Tree(program, seed=3)
    first = tree.expand([tree.root], 8, quorum=1)
    kept = tree.expand([tree.root], 1, quorum=1)
    assert all(n.finished for n in first)
    with pytest.raises(ProgramError, match="too long"):
        tree.collect()
    assert not tree.underway
    assert {*first, *kept} < {*tree.nodes}
    nothing_is_left(lm)


# -- whoever needs a model parks ----------------------------------------------------------------


def written():
    """A model that writes a rationale of twelve tokens and then a verdict."""

    def law(prefix):
        return {"Y": 0.7, "N": 0.3} if prefix.endswith("?") else {"a": 0.5, "b": 0.5}

    return Counting(law, symbols="^ab?YN$", end="$", context_length=200, name="writer")


def generative(lm):
    return GenRM(
        lm,
        rationales=2,
        ask=lambda lm, text: ppl.Text(text.tokens, text.codec),
        verdict="?",
        verdicts={"Y": 1.0, "N": 0.0},
        max_tokens=12,
    )


def judged_walk(lm, judge):
    text = lm.prompt("^")
    for t in range(3):
        text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=2, allowed=lm.encode("ab")))
        pyro.sample(f"ok_{t}", judge(text), obs=True)
    return text.text


def test_what_judges_write_shares_the_batches_of_everybody():
    lm = written()
    judge = generative(lm)
    alone = [SMC(3).run(judged_walk, lm, judge, seed=s) for s in range(4)]
    one = lm.steps // 4
    lm.steps = 0
    together = SMC(3).run_many(judged_walk, [(lm, judge)] * 4, seed=range(4))
    assert lm.steps == one  # as many as one search, and not four times as many
    assert list(map(contents, together)) == list(map(contents, alone))
    lm.steps = 0
    mixed = run_all(
        [SMC(3).begin(judged_walk, lm, judge, seed=0), BestOfN(3).begin(forever, lm, 42, seed=1)]
    )
    assert lm.steps == one  # who writes for itself and who writes for a judge sit side by side
    assert contents(mixed[0]) == contents(alone[0])
    nothing_is_left(lm)


def test_scores_of_a_tree_are_batched_with_everything_else():
    lm = written()
    judge = generative(lm)
    found = []

    class Ranked(BestOfN):
        def step(self, tree, state):
            state, note = super().step(tree, state)
            found.append(tree.score(state.nodes, judge))
            return state, note

    for _ in range(2):
        Ranked(3).run(forever, lm, 3, seed=0)
    assert lm.steps == 2 * (3 + 12)
    lm.steps = 0
    Ranked(3).run_many(forever, [(lm, 3)] * 2, seed=0)
    assert lm.steps == 3 + 12
    assert found[0] == found[1] == found[2] == found[3]


def test_time_limits_reach_what_judges_write():
    lm = written()
    lm.before = lambda: time.sleep(0.01)
    judge = generative(lm)
    judge.max_tokens = 10**6
    lm.context_length = 10**7
    begun = time.perf_counter()
    posterior = BestOfN(2).run(judged_walk, lm, judge, budget=ppl.Budget(seconds=0.3))
    assert posterior.stopped == "budget"
    assert time.perf_counter() - begun < 2
    tree = ppl.Tree(forever, (lm, 2), seed=0, budget=ppl.Budget(seconds=0.3))
    nodes = tree.expand([tree.root], 2)
    with pytest.raises(BudgetExhausted):
        tree.score(nodes, judge)
    nothing_is_left(lm)


def test_a_ranker_that_raises_is_named_by_tree_score():
    class Boom(ppl.Verifier):
        name = "boom"

        def judge(self, requests):
            raise ConnectionError("server down")

    tree = ppl.Tree(forever, (TOY, 2), seed=0)
    nodes = tree.expand([tree.root], 2)
    with pytest.raises(VerifierError, match=r"boom raised at node 1 .*server down"):
        tree.score(nodes, Boom())


def test_a_cancelled_search_takes_its_judges_along():
    lm = written()
    lm.context_length = 10**7
    judge = generative(lm)
    judge.max_tokens = 10**6
    other = written()
    going = SHARED.submit(SMC(3).begin(judged_walk, other, generative(other), seed=0))
    future = SHARED.submit(BestOfN(2).begin(judged_walk, lm, judge, seed=0))
    while lm.steps < 20:
        time.sleep(0.001)
    future.cancel()
    wait([future], timeout=5)
    assert going.result(30).samples
    time.sleep(0.05)
    steps = lm.steps
    SMC(2).run(toy, "prod", seed=0)
    assert lm.steps == steps
    nothing_is_left(lm, other)


def test_futures_are_plain():
    future = SHARED.submit(BestOfN(2).begin(toy, "prod", seed=0))
    assert isinstance(future, Future)
    assert math.isfinite(future.result(10).ess)
