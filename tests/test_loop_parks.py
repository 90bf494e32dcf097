"""A search that waits for a quorum, and whoever else needs a model."""

from __future__ import annotations

import math
import pickle
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pyro
import pytest
from loops import (
    Counting,
    forever,
    generative,
    judged_walk,
    nothing_is_left,
    written,
)
from programs import TOY, contents, toy
from work import until

import ppl
from ppl.errors import ProgramError, VerifierError
from ppl.runtime.batch import BudgetExhausted
from ppl.runtime.loop import SHARED
from ppl.searchers import SMC, BestOfN, run_all
from ppl.verifiers import FunctionVerifier

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
    posterior = BestOfN(2).run(judged_walk, lm, judge, budget=ppl.Budget(seconds=0.3))
    assert posterior.stopped == "budget"
    assert lm.steps <= 35  # as many as there can be in 0.3 s, and some in which it comes to an end
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
    wait([future], timeout=300)
    assert going.result(300).samples
    assert until(lambda: all(s.closed or not s.running for s in lm.sessions))
    steps = lm.steps
    SMC(2).run(toy, "prod", seed=0)
    assert lm.steps == steps
    nothing_is_left(lm, other)


def test_futures_are_plain():
    future = SHARED.submit(BestOfN(2).begin(toy, "prod", seed=0))
    assert isinstance(future, Future)
    assert math.isfinite(future.result(300).ess)
