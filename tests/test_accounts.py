"""What is spent is counted once, at the page of the model that did it, and adds up to the truth."""

from __future__ import annotations

import pickle
import time

import pyro
import pytest
import torch
from accuracy_vs_budget import solve
from loops import counting, generative, judged_walk, walk, written
from programs import TOY, contents, toy

import ppl
from ppl.language.cost import Account, Cost, ModelCost
from ppl.runtime import coroutine, particle
from ppl.searchers import SMC, BestOfN, Search, run_all
from ppl.verifiers import PRM, Channel, Ensemble, FunctionVerifier, GenRM

COUNTS = ("lm_tokens", "prompt_tokens", "reused_tokens", "scored_tokens", "verifier_tokens")
CALLS = ("verifier_reused_tokens", "lm_calls", "verifier_calls")
QUESTIONS = ["Calculate ( 3 + 5 ) * 2 - 7.", "Calculate 4 - 9 + 6.", "Calculate 2 * -3 - 8."]


def test_pages_of_one_account_share_its_budget_and_add_up():
    account = Account(ppl.Budget(tokens=10, calls=3))
    small, large = counting(), written()
    account.of(small).add(lm_tokens=4, lm_calls=1)
    account.of(large).add(lm_tokens=3, prompt_tokens=5, lm_calls=1)
    judge = account.of(large).for_verifier()
    judge.add(lm_tokens=7, prompt_tokens=2, reused_tokens=9, lm_calls=1, scored_tokens=4)
    assert account.tokens_left == account.of(small).tokens_left == 3
    assert account.calls_left == 1
    assert judge.tokens_left == judge.calls_left == float("inf")
    assert account.of(small) is account.of(small).of(small)
    cost = account.cost
    assert cost.models["counting"] == ModelCost(lm_tokens=4, lm_calls=1)
    assert cost.models["writer"] == ModelCost(
        lm_tokens=3, prompt_tokens=5, verifier_tokens=9, verifier_reused_tokens=9, lm_calls=1
    )
    assert (cost.lm_tokens, cost.verifier_tokens, cost.calls) == (7, 9, 2)
    again = pickle.loads(pickle.dumps(account))
    assert again.cost.models == cost.models
    assert again.tokens_left == 3
    hash(cost)


def test_a_time_limit_goes_on_where_it_was():
    """What went by in another process counts, too."""
    account = Account(ppl.Budget(seconds=100.0), elapsed=60.0)
    assert 60.0 <= pickle.loads(pickle.dumps(account)).elapsed < 99.0
    assert not pickle.loads(pickle.dumps(account)).out_of_time
    assert pickle.loads(pickle.dumps(Account(ppl.Budget(seconds=100.0), None, 100.0))).out_of_time


def test_costs_add_up_model_by_model():
    a = Cost(lm_tokens=2, seconds=0.5, models={"x": ModelCost(lm_tokens=2, parameters=5)})
    b = Cost(lm_tokens=3, seconds=1.0, models={"x": ModelCost(lm_tokens=1), "y": ModelCost()})
    total = Cost.total([a, b, a])
    assert total == a + b + a
    assert (total.lm_tokens, total.seconds) == (7, 2.0)
    assert total.models["x"] == ModelCost(lm_tokens=5, parameters=5)
    assert Cost.total([]) == Cost()


def test_the_totals_are_the_sum_over_models(tiny):
    lm, prm = tiny
    cost = SMC(6).run(solve, QUESTIONS[0], lm, prm, seed=0).cost
    assert {*cost.models} == {lm.name, prm.name}
    for name in (*COUNTS, *CALLS):
        assert getattr(cost, name) == sum(getattr(m, name) for m in cost.models.values())
    assert cost.models[prm.name].lm_tokens == 0
    assert cost.models[prm.name].verifier_calls == cost.verifier_calls > 0


def test_flops_are_two_per_parameter_and_token_that_the_engine_computed(tiny):
    """One particle: no two rows share a token, so the engine computes what is billed."""
    lm, prm = tiny
    parameters = 1_869_888  # of the card in ppl/tiny
    assert (lm.parameters, prm.parameters) == (parameters, 1_870_274)
    lm.engine.pool.clear()
    prm.engine.pool.clear()
    before = lm.engine.tokens_computed, prm.engine.tokens_computed
    cost = BestOfN(1).run(solve, QUESTIONS[0], lm, prm, seed=0).cost
    by_lm = lm.engine.tokens_computed - before[0]
    by_prm = prm.engine.tokens_computed - before[1]
    assert cost.models[lm.name].computed_tokens == by_lm > 0
    assert cost.models[prm.name].computed_tokens == by_prm > 0
    assert cost.flops == 2 * (by_lm * parameters + by_prm * prm.parameters)
    again = BestOfN(1).run(solve, QUESTIONS[0], lm, prm, seed=0).cost  # all of it is reused
    assert again.models[prm.name].flops == 0
    assert again.models[lm.name].reused_tokens > cost.models[lm.name].reused_tokens


def test_packing_leaves_the_number_of_parameters():
    assert ppl.load("tiny-lines").parameters == 1_325_120
    assert ppl.load("tiny-lines", pack=False).parameters == 1_325_120
    assert PRM.load("tiny-lines").parameters == 2_758_658


def test_flops_of_a_model_of_unknown_size_are_unknown():
    cost = SMC(3).run(toy, "prod", seed=0).cost
    assert TOY.parameters is None
    assert cost.models["toy"].computed_tokens == cost.lm_tokens - cost.lm_calls
    assert cost.models["toy"].flops == 0  # every draw is one token, nothing is drawn after it
    longer = BestOfN(2).run(walk, counting(), 1, seed=0).cost
    assert longer.flops is None


def on_clock(monkeypatch, clock):
    """What the library takes time by, from here on."""
    for module in (time, coroutine, particle):
        monkeypatch.setattr(module, "perf_counter", clock)


def test_costs_of_questions_that_share_batches_add_up_to_the_truth(tiny, monkeypatch):
    lm, prm = tiny
    on_clock(monkeypatch, time.thread_time)  # it stands still while others have the processor
    lm.engine.pool.clear()
    prm.engine.pool.clear()
    before = lm.engine.tokens_computed, prm.engine.tokens_computed
    begun = time.perf_counter()
    found = SMC(8).run_many(solve, [(q, lm, prm) for q in QUESTIONS], seed=[1, 2, 3])
    passed = time.perf_counter() - begun
    cost = Cost.total(p.cost for p in found)
    assert cost.verifier_tokens == prm.engine.tokens_computed - before[1]
    # Rows with equal texts are drawn as one, and are billed one by one.
    assert cost.models[lm.name].computed_tokens >= lm.engine.tokens_computed - before[0]
    assert cost.seconds == pytest.approx(passed, rel=0.1, abs=0.02)
    assert all(0.05 < p.cost.seconds / passed < 0.9 for p in found)


class Clock:
    """It goes on when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_seconds_go_to_who_takes_them(monkeypatch):
    """A search that sleeps pays for its sleep, and the search beside it does not."""
    clock, lm = Clock(), counting()
    on_clock(monkeypatch, clock)

    def program(seconds):
        clock.passes(seconds)
        return walk(TOY, 1, 1)

    slow, quick = BestOfN(2).run_many(program, [0.25, 0.0], seed=0)
    assert (slow.cost.seconds, quick.cost.seconds) == (0.5, 0.0)
    lm.before = lambda: clock.passes(1.0)
    search = SMC(4).begin(walk, lm, seed=0)
    while not search.over:
        search.step()
        clock.passes(10.0)  # nobody's
    assert search.tree.cost.seconds == lm.steps > 0


def test_who_asks_pays_for_what_it_takes_to_be_taken_in(monkeypatch):
    clock, lm = Clock(), counting()
    on_clock(monkeypatch, clock)
    begun = lm.session

    def session():
        batch = begun()
        submit = batch.submit

        def slowly(request):
            clock.passes(0.25)
            return submit(request)

        batch.submit = slowly
        return batch

    monkeypatch.setattr(lm, "session", session)
    first, second = BestOfN(2).run_many(walk, [(lm, 1), (lm, 3)], seed=[0, 1])
    assert first.cost.lm_calls != second.cost.lm_calls
    assert first.cost.seconds + second.cost.seconds == 0.25 * (
        first.cost.lm_calls + second.cost.lm_calls
    )


def test_time_limits_are_about_the_wall(monkeypatch):
    """Its own share is a tenth of that, but ten searches at once take the time of ten."""
    clock, lm = Clock(), counting()
    on_clock(monkeypatch, clock)
    lm.before = lambda: clock.passes(0.125)
    budget = ppl.Budget(seconds=25.0)
    found = BestOfN(2).run_many(walk, [(lm, 10**4)] * 10, seed=range(10), budget=budget)
    assert 200 <= lm.steps <= 202
    assert all(p.stopped == "budget" for p in found)
    assert all(p.cost.seconds == pytest.approx(2.5, abs=0.1) for p in found)


def test_resumed_searches_go_on_paying_at_the_same_pages(tmp_path):
    whole = SMC(5).run(toy, "prod", seed=2).cost
    search = SMC(5).begin(toy, "prod", seed=2)
    search.step()
    search.save(tmp_path / "search")
    cost = Search.load(tmp_path / "search").run().cost
    assert cost.models == whole.models


def test_what_a_judge_writes_is_billed_to_the_asker_as_verifier_tokens():
    lm = written()
    judge = generative(lm)
    first, second = SMC(3).run_many(judged_walk, [(lm, judge)] * 2, seed=[0, 1])
    for posterior in (first, second):
        cost = posterior.cost
        assert cost.lm_tokens == 3 * 3 * 2  # particles, steps, tokens
        assert cost.verifier_tokens == 3 * 3 * 2 * 12  # and two rationales of twelve tokens each
        assert (cost.lm_calls, cost.verifier_calls) == (9, 9)
        assert cost.models["writer"].verifier_tokens == cost.verifier_tokens
        assert cost.models[judge.name] == ModelCost(verifier_calls=9)
    tree = ppl.Tree(judged_walk, (lm, judge), seed=0)
    nodes = tree.expand([tree.root], 2)
    before = tree.cost
    tree.score(nodes, judge)
    assert tree.cost.verifier_tokens - before.verifier_tokens == 2 * 2 * 12
    assert tree.cost.verifier_calls - before.verifier_calls == 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: Ensemble([v, FunctionVerifier(lambda t: 0.5, name="half")]),
        lambda v: Channel(v, tpr=0.9, fpr=0.2),
    ],
)
def test_judges_inside_of_other_verifiers_park_as_well(wrap):
    lm = written()
    judge = wrap(generative(lm))
    assert judge.asks_models
    alone = SMC(3).run(judged_walk, lm, judge, seed=1)
    steps, lm.steps = lm.steps, 0
    together = SMC(3).run_many(judged_walk, [(lm, judge)] * 3, seed=[0, 1, 2])
    assert lm.steps == steps
    assert contents(together[1]) == contents(alone)
    assert together[1].cost.verifier_tokens == alone.cost.verifier_tokens == 3 * 3 * 2 * 12


def test_the_model_inside_of_an_ensemble_has_its_own_page(tiny):
    lm, prm = tiny
    prm.engine.pool.clear()
    both = Ensemble([prm, FunctionVerifier(lambda text: 0.5, name="half")])
    cost = BestOfN(2).run(solve, QUESTIONS[1], lm, both, seed=0).cost
    assert cost.models[prm.name].verifier_tokens == cost.verifier_tokens > 0
    assert cost.models[prm.name].flops > 0
    assert cost.models[both.name].verifier_calls == cost.verifier_calls


@pytest.mark.parametrize("limit", [0, 1, 7, 18, 40])
def test_budgets_hold_with_judges_and_several_models(limit):
    lm, other = written(), counting()
    judge = generative(lm)

    def program():
        text = lm.prompt("^")
        for t in range(3):
            text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=2, allowed=lm.encode("ab")))
            extra = pyro.sample(f"e_{t}", other(other.prompt("^"), max_tokens=2))
            pyro.sample(f"ok_{t}", judge(text), obs=True)
            pyro.factor(f"f_{t}", torch.tensor(0.1 * len(extra.tokens)))
        return text.text

    for budget in (ppl.Budget(tokens=limit), ppl.Budget(calls=limit)):
        searches = [BestOfN(3).begin(program, seed=s, budget=budget) for s in (1, 2)]
        for search, posterior in zip(searches, run_all(searches), strict=True):
            cost = posterior.cost
            assert (cost.lm_tokens if budget.calls is None else cost.calls) <= limit
            assert search.tree.account.tokens_left >= 0
            assert search.tree.account.calls_left >= 0
            assert contents(posterior) == contents(
                BestOfN(3).run(program, seed=search.tree.seed, budget=budget)
            )


def test_names_of_what_verifiers_are_billed_under(tiny):
    lm, _ = tiny
    genrm = GenRM(lm, rationales=1, max_tokens=3)
    assert isinstance(PRM.load("tiny").parameters, int)
    text = lm.chat(QUESTIONS[1]) + lm.continuation("1", finished=True)
    account = Account()
    genrm.judge([ppl.JudgeRequest(genrm, text, ledger=account)])
    assert {*account.cost.models} == {lm.name}
    assert account.cost.lm_tokens == account.cost.lm_calls == 0
    assert account.cost.verifier_tokens > 3
