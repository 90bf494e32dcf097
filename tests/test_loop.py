"""One loop for all searches: batches are shared, servers are polled."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from loops import (
    counting,
    forever,
    nothing_is_left,
    walk,
)
from programs import TOY, contents, toy
from test_server import behind
from work import until

import ppl
from ppl.runtime.loop import SHARED
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN

# -- together ----------------------------------------------------------------------------------


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
    assert [contents(f.result(300)) for f in futures] == list(map(contents, alone))


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
    assert background.result(300).samples


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
    ("ask", "guided", "requests"),
    [(drawn, None, 1), (scored, None, 1), (drawn, proposed, 2)],
    ids=["draw", "score", "draw of a guide"],
)
def test_a_slow_server_holds_up_nobody(ask, guided, requests):
    """It answers once the search beside it is over, and again when it is asked again."""
    done = []

    def program(which, remote):
        text = forever(counting(), 20) if which == "local" else ask(remote).text
        done.append(which)
        if which == "local":
            served.gate.set()
        return text

    def guide(which, remote):
        if which == "remote":
            guided(remote)

    with behind() as (served, remote):
        alone = [("remote", remote)]
        quick = BestOfN(1).run_many(program, alone, guide=guided and guide, seed=0)
        done.clear()
        served.asked.clear()
        served.gate.clear()
        arguments = [("local", remote), *alone]
        slow = BestOfN(1).run_many(program, arguments, guide=guided and guide, seed=0)
    assert isinstance(slow[1], ppl.Posterior), slow[1]
    assert done == ["local", "remote"]
    assert not served.late
    assert len(served.asked) == requests
    assert slow[1].samples[0].value == quick[0].samples[0].value
    assert slow[1].samples[0].log_weight == quick[0].samples[0].log_weight
    cost = slow[1].cost
    scores = ask is scored or guided is not None
    assert (cost.lm_calls, cost.models[remote.name].scored_tokens) == (1, int(scores))


def once(lm):
    return pyro.sample("s", lm(lm.prompt("^"), max_tokens=2)).text


def test_cancelling_does_not_wait_for_a_server():
    with behind() as (served, remote):
        served.gate.clear()
        future = SHARED.submit(BestOfN(2).begin(once, remote))
        assert until(lambda: served.asked)
        future.cancel()
        assert SMC(2).run(toy, "prod", seed=0).samples
        assert not served.late
        served.gate.set()
