"""Stopping rules: what each says of some counts, and what a search does that has one."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache, partial

import numpy as np
import pyro
import pytest
from programs import TOY, toy
from scipy.special import betaln
from scipy.stats import beta, binom

import ppl
from ppl import Budget
from ppl.decide import Consensus, EarlyStop, Seen, SequentialTest, Settled, StoppingRule
from ppl.decide.stopping import leaders, leads, leads_all
from ppl.searchers import MCTS, SMC, BestOfN, ParticleGibbs, Search
from ppl.searchers.parse import parse, spell
from ppl.study import Study

RULES = [
    Settled("beta", 0.9),
    Settled("dirichlet", 0.9),
    Settled("exact"),
    Settled("confidence", 0.6),
    Settled("beta", 0.9, weights="posterior"),
    EarlyStop(tau=0.7),
    SequentialTest(),
    SequentialTest("simple", alpha=0.1, beta=0.1, p1=0.7),
    Consensus(2, 0.5),
    Consensus(3, drop=1),
]


def seen(*counts: int, left: float = math.inf) -> Seen:
    return Seen(tuple(c for c, n in enumerate(counts) for _ in range(n)), left=left)


# -- adaptive consistency ------------------------------------------------------------------------


def test_the_beta_rule_at_published_counts():
    for n in range(1, 30):
        assert leads(n, 0) == pytest.approx(1 - 2.0 ** -(n + 1), rel=1e-14)
    for counts, p in {(4, 1): 0.8906, (6, 1): 0.9648, (7, 2): 0.9453}.items():
        assert leads(*counts) == pytest.approx(p, abs=5e-5)
        assert Settled().stops(seen(*counts)) == (p >= 0.95)
    stops = [n for n in range(1, 9) if Settled("beta", 0.95).stops(seen(n))]
    assert stops == [4, 5, 6, 7, 8]


def test_the_beta_rule_in_closed_form_and_without_underflow():
    for a in range(12):
        for b in range(12):
            assert leads(a, b) == pytest.approx(binom.cdf(a, a + b + 1, 0.5), rel=1e-12)
    assert leads(400, 600) == pytest.approx(beta.sf(0.5, 401, 601), rel=1e-8)
    assert 0 < leads(400, 1600) < 1e-100


def test_the_dirichlet_rule_is_the_beta_rule_of_two_and_asks_more_of_three():
    assert leads_all(np.array([5.0, 2.0])) == leads(5, 2)
    assert leads_all(np.array([3.0])) == leads(3, 0)  # not 1: an unseen answer is there
    draws = np.random.default_rng(0).dirichlet([8, 4, 3, 1], 400_000)
    exact = leads_all(np.array([2.0, 7.0, 0.0, 3.0]))
    won = np.mean(draws.argmax(axis=1) == 0)
    assert exact == pytest.approx(won, abs=4 * math.sqrt(won * (1 - won) / 400_000))
    assert exact < leads(7, 3)
    assert leads_all(np.ones(5)) == pytest.approx(0.2, abs=1e-6)
    assert leads_all(np.array([900.0, 100.0, 800.0])) == pytest.approx(leads(900, 800), abs=1e-6)


@pytest.mark.parametrize(("p", "accuracy", "samples"), [(0.6, 0.878, 24.2), (0.8, 0.9985, 8.6)])
def test_adaptive_consistency_of_two_answers_to_forty(p, accuracy, samples):
    """Exactly, over all sequences; the published numbers are of 4,000 runs."""
    right, drawn, square = sequences(p, 40, Settled("beta", 0.95))
    assert right == pytest.approx(accuracy, abs=3 * math.sqrt(right * (1 - right) / 4000) + 5e-5)
    error = math.sqrt((square - drawn**2) / 4000)
    assert drawn == pytest.approx(samples, abs=3 * error + 0.05)


def sequences(p: float, most: int, rule: Settled) -> tuple[float, float, float]:
    """P(the vote is right), E[samples] and E[samples^2], by recursion over counts."""
    alive, right, drawn, square = {(0, 0): 1.0}, 0.0, 0.0, 0.0
    for n in range(1, most + 1):
        after: Counter[tuple[int, int]] = Counter()
        for (a, b), mass in alive.items():
            after[a + 1, b] += mass * p
            after[a, b + 1] += mass * (1 - p)
        alive = {}
        for (a, b), mass in after.items():
            if n == most or rule.stops(seen(a, b, left=most - n)):
                right += mass * (1.0 if a > b else 0.5 if a == b else 0.0)
                drawn, square = drawn + n * mass, square + n * n * mass
            else:
                alive[a, b] = mass
    return right, drawn, square


def test_the_exact_rule_never_changes_a_vote_and_stops_as_soon_as_none_can():
    @cache
    def stops(counts: tuple[int, ...], left: int) -> bool:
        return Settled("exact").stops(seen(*counts, left=left))

    rng = np.random.default_rng(1)
    early = 0
    for _ in range(100_000):
        n, classes = int(rng.integers(1, 13)), int(rng.integers(1, 5))
        answers = (rng.random(n) ** 2 * classes).astype(int).tolist()
        counts = [0] * classes
        for drawn, answer in enumerate(answers, start=1):
            counts[answer] += 1
            first, second, *_ = sorted([*counts, 0, 0], reverse=True)
            settled = stops(tuple(sorted(counts)), n - drawn)
            # The others could catch up, if only to a tie.
            assert settled == (second + (n - drawn) < first)
            if settled:
                whole = Counter(answers)
                assert [c for c in whole if whole[c] == max(whole.values())] == [
                    counts.index(max(counts))
                ]
                early += drawn < n
                break
    assert early > 50_000


def test_the_exact_rule_asks_for_no_more_than_may_settle_it():
    exact = Settled("exact")
    for a, b, left in [(32, 0, 32), (16, 0, 48), (20, 12, 32), (3, 3, 5), (4, 1, 3), (1, 0, 63)]:
        size = exact.batch(seen(a, b, left=left))
        assert size <= a + b
        assert exact.stops(seen(a + size, b, left=left - size)) == (
            size == (left - (a - b)) // 2 + 1
        )
        if size > 1:
            assert not exact.stops(seen(a + size - 1, b, left=left - size + 1))
    assert Settled("beta").batch(seen(3, 1, left=9)) == 4
    assert [exact.batch(seen(n)) for n in (0, 1, 2, 4)] == [1, 1, 2, 4]


def test_an_answer_is_a_class_of_equal_ones_and_none_is_nobody():
    two = Seen.of([None, ppl.Answer("1/2"), ppl.Answer("0.5"), ppl.Answer("3")], left=1)
    assert two.classes == (-1, 0, 0, 1)
    assert two.votes.tolist() == [2, 1]
    assert not Settled("exact").stops(two)
    assert Settled("exact").stops(Seen.of([None, "x", "x", None], left=1))
    assert not any(
        rule.stops(Seen.of([None] * 9, confidences=[0.9] * 9)) for rule in RULES if not rule.probes
    )
    assert leaders(np.zeros(0)) == (0.0, 0.0)


# -- confidence ----------------------------------------------------------------------------------


def test_confidence_is_weighed_from_the_second_answer_on():
    rule = Settled("confidence", 0.75)
    assert not rule.stops(Seen.of(["a"], confidences=[1.0]))
    assert rule.stops(Seen.of(["a", "a"], confidences=[0.1, 0.1]))
    assert rule.stops(Seen.of(["a", "b"], confidences=[0.3, 0.1]))
    assert not rule.stops(Seen.of(["a", "b", "b"], confidences=[0.3, 0.1, 0.1]))
    flat = Seen.of(["a", "a", "a", "b"])
    assert rule.chance(flat) == 0.75  # equally confident: the share of the leader


def test_an_early_stop_takes_the_first_that_is_sure_else_the_surest():
    rule = EarlyStop(tau=0.8)
    sure = Seen.of(["a", "b", "c", "d"], confidences=[0.3, 0.8, 0.9, 0.1])
    assert [rule.stops(sure.first(n)) for n in range(5)] == [False, False, True, True, True]
    assert (rule.first(sure), rule.choice(sure)) == (2, 1)
    unsure = Seen.of(["a", "b", "c"], confidences=[0.3, 0.7, 0.1])
    assert not rule.stops(unsure)
    assert rule.choice(unsure) == 1  # not the last
    assert rule.choice(Seen.of([None], confidences=[0.9])) is None
    with pytest.raises(ppl.PPLError, match="no confidences"):
        rule.stops(Seen.of(["a"]))


def test_a_calibrated_confidence_keeps_its_word():
    """Confidence uniform on [0, 1], right with that chance: accepted ones are right at (1 + tau)/2
    on average, which is tau or more."""
    rng, rule = np.random.default_rng(2), EarlyStop(tau=0.7)
    right, accepted = 0, 0
    for _ in range(4000):
        sure = rng.random(16)
        truth = rng.random(16) < sure
        given = Seen(tuple(range(16)), confidences=tuple(sure))
        if rule.stops(given):
            accepted += 1
            right += truth[rule.choice(given)]
    assert accepted > 3900
    assert right / accepted == pytest.approx(0.85, abs=4 * math.sqrt(0.85 * 0.15 / accepted))


# -- the sequential test and the consensus -------------------------------------------------------


@pytest.mark.parametrize("form", ["simple", "mixture"])
def test_consol_as_published_stops_at_a_lead_of_three(form):
    rule = SequentialTest(form)
    for behind in (0, 1, 5, 20):
        assert [rule.stops(seen(behind + lead, behind)) for lead in range(5)] == [
            False,
            False,
            False,
            True,
            True,
        ]


def test_walds_bounds_hold_where_the_hypotheses_are_stated_beforehand():
    rule = SequentialTest("simple", alpha=0.05, beta=0.1, p1=0.7)
    upper, lower = math.log(0.9 / 0.05), math.log(0.1 / 0.95)
    for a, b in [(8, 0), (9, 0), (9, 3), (2, 2), (5, 4), (6, 6)]:
        ratio = a * math.log(0.7 / 0.5) + b * math.log(0.3 / 0.5)
        assert rule.log_ratio(a, b) == pytest.approx(ratio)
        assert rule.stops(seen(max(a, b), min(a, b))) == (ratio >= upper or ratio <= lower)
    assert [rule.stops(seen(n)) for n in (8, 9)] == [False, True]
    assert rule.stops(seen(13, 13))  # for H0: they are alike


def test_the_mixture_is_the_mean_over_its_alternatives():
    rule = SequentialTest("mixture", prior=3.0)
    p = np.linspace(0.5, 1.0, 200_001)
    density = beta.pdf(p, 3, 3) / beta.sf(0.5, 3, 3)
    likelihood = np.trapezoid(density * p**7 * (1 - p) ** 2, p)
    assert rule.log_ratio(7, 2) == pytest.approx(math.log(likelihood / 0.5**9), abs=1e-6)


@pytest.mark.parametrize("prior", [0.5, 3.0, 1e6])
@pytest.mark.parametrize(("first", "second"), [(0, 2_000), (1, 5_000), (10, 10**7), (0, 10**9)])
def test_the_mixture_in_its_far_tail(prior, first, second):
    # P(share > 1/2) is no float there: by the series that ends in 1 / (1 - r), in whole logs.
    a, b = first + prior, second + prior
    k = np.arange(400_000)
    log_terms = np.cumsum(np.log((a + b + k) / (b + 1 + k) / 2))
    series = np.log1p(np.exp(log_terms).sum())
    ratio = series + (1 - 2 * prior) * math.log(2) - math.log(b) - betaln(prior, prior)
    found = SequentialTest("mixture", prior=prior).log_ratio(first, second)
    assert found == pytest.approx(ratio, abs=2e-6 * max(1.0, 1e-3 * second))


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        ((-1, 2), "first=-1: a number of zero or more"),
        ((1, math.inf), "second=inf: a number of zero or more"),
        ((math.nan, 1), "first=nan"),
        ((1e308, 1e308), "scale the weights down"),
    ],
)
def test_counts_that_are_none_are_refused_by_name(votes, said):
    for form in ("simple", "mixture"):
        with pytest.raises(ValueError, match=said):
            SequentialTest(form).log_ratio(*votes)


# -- searches ------------------------------------------------------------------------------------


def agreed() -> str:
    """Always the same answer, of one or two symbols."""
    text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=2))
    ppl.condition(bool(text.text) or True)
    return "same"


def test_unanimous_answers_stop_at_exactly_four():
    for budget, stop in ((None, Settled("beta", 0.95)), (Budget(settled=0.95), None)):
        posterior = BestOfN(64, stop=stop).run(agreed, seed=0, budget=budget)
        assert len(posterior.samples) == 4
        assert all(sample.finished for sample in posterior.samples)
        assert (posterior.stopped, posterior.log_evidence) == ("settled", None)
        assert posterior.history[-1]["in_flight"] == 0
        assert "settled early" in str(posterior)


def test_what_was_in_flight_is_told_and_votes():
    """The batches end at 1, 2, 4, 8: five unanimous ones come with three more."""
    posterior = BestOfN(64, stop=Settled("beta", 0.98)).run(agreed, seed=0)
    assert len(posterior.samples) == 8
    assert posterior.history[-1]["samples"] == 8
    assert posterior.history[-1]["in_flight"] == 3


def test_only_samples_of_the_last_batch_can_have_been_in_flight():
    """A rule may have been true for a moment within an earlier batch, when nobody asked it."""
    rule, earlier = Settled("beta", 0.8), 0
    for seed in range(60):
        posterior = BestOfN(64, stop=rule).run(toy, "last", seed=seed)
        if posterior.stopped != "settled":
            continue
        drawn = len(posterior.samples)
        before = drawn // 2 if drawn > 1 else 0  # batches of 1, 1, 2, 4, ...
        whole = Seen.of([sample.value for sample in posterior.samples])
        enough = next(n for n in range(before + 1, drawn + 1) if rule.stops(whole.first(n)))
        assert posterior.history[-1]["in_flight"] == drawn - enough
        earlier += rule.first(whole) <= before
    assert earlier > 1  # or the test says nothing


def test_the_samples_are_the_first_of_the_search_without_a_rule():
    for seed in range(20):
        stopped = BestOfN(16, stop=Settled("exact")).run(toy, "last", seed=seed)
        votes = Counter(sample.value for sample in stopped.samples)
        assert all(note["in_flight"] == 0 for note in stopped.history)
        whole = BestOfN(16, stop=Settled("beta", 0.999999)).run(toy, "last", seed=seed)
        shared = zip(stopped.samples, whole.samples, strict=False)
        assert len(stopped.samples) > 8 or all(a.value == b.value for a, b in shared)
        if stopped.stopped == "settled":
            ((_, first), *others) = votes.most_common(2)
            assert first - (others[0][1] if others else 0) > 16 - len(stopped.samples)
        else:
            assert len(stopped.samples) == 16
        assert stopped.log_evidence is None


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_settings(rule, tmp_path):
    searcher = BestOfN(16, stop=rule)
    assert parse(spell(searcher)) == parse(repr(searcher)) == searcher
    search = searcher.begin(partial(toy, "prod"), seed=5)
    while not search.over:
        search.step()
        search.save(tmp_path / "s")
        search = Search.load(tmp_path / "s")
    whole = searcher.run(partial(toy, "prod"), seed=5)
    found = search.posterior()
    assert [s.value for s in found.samples] == [s.value for s in whole.samples]
    assert (found.stopped, found.log_evidence) == (whole.stopped, None)


def test_a_budget_keeps_its_rule(tmp_path):
    for settled in (0.9, Settled("dirichlet", 0.9), Consensus(2)):
        search = MCTS(40).begin(partial(toy, "prod"), seed=1, budget=Budget(settled=settled))
        search.step()
        search.save(tmp_path / "s")
        assert Search.load(tmp_path / "s").tree.budget == search.tree.budget
    posterior = MCTS(40).run(toy, "prod", seed=1, budget=Budget(settled=0.8))
    posterior.save(tmp_path / "p")
    assert ppl.Posterior.load(tmp_path / "p").stopped == posterior.stopped == "settled"


def test_any_searcher_whose_answers_come_one_after_another_may_settle():
    for searcher in (MCTS(64), ParticleGibbs(3, 40)):
        whole = searcher.run(toy, "prod", seed=1)
        early = searcher.run(toy, "prod", seed=1, budget=Budget(settled=0.8))
        assert early.stopped == "settled"
        assert early.cost.lm_tokens < whole.cost.lm_tokens / 2
        assert early.log_evidence is None
        assert early.best is not None


def test_particles_that_are_open_have_votes_to_come():
    """Those that end first are the short ones; a vote over them alone would be theirs."""
    budget = Budget(settled=0.6)
    posterior = SMC(16).run(toy, "last", seed=1, budget=budget)
    assert all(sample.finished for sample in posterior.samples)
    assert (posterior.stopped, posterior.log_evidence) == ("done", None)


def test_weights_count_as_their_effective_number():
    search = BestOfN(6).begin(toy, "prod", seed=0)
    search.run()
    nodes = search.state.nodes
    flat = Seen.of_nodes(nodes, [0.0] * 6)
    assert flat.weighted == pytest.approx(flat.votes)
    one = Seen.of_nodes(nodes, [0.0, *[-50.0] * 5])
    assert (one.weighted[0], one.weighted.sum()) == pytest.approx((1.0, 1.0))
    assert not Seen.of_nodes(nodes, [-math.inf] * 6).weighted.any()
    assert one.confidences == tuple(node.value for node in nodes)
    # (3 + 1)^2 / (9 + 1) = 1.6 samples, whatever the scale; a sample without an answer is one, too.
    for scale in (1e-300, 1.0, 1e300):
        two = Seen.of(["a", "b"], weights=[3 * scale, scale])
        assert two.weighted == pytest.approx([1.2, 0.4])
        assert Seen.of(["a", None], weights=[3 * scale, scale]).weighted == pytest.approx([1.2])


def test_how_many_would_have_been_enough_is_what_the_rule_says_of_so_many():
    """The weight of those who came later is nothing to it."""
    rule = Settled("beta", 0.95, weights="posterior")
    nodes = BestOfN(8).begin(agreed, seed=0)
    nodes.run()
    logs = [*[0.0] * 5, 9.0, 9.0, 9.0]
    whole = Seen.of_nodes(nodes.state.nodes, logs)
    assert not rule.stops(whole)  # about three samples
    for n in range(1, 9):
        alone = Seen.of_nodes(nodes.state.nodes[:n], logs[:n])
        assert whole.first(n).weighted == pytest.approx(alone.weighted)
    assert rule.first(whole) == 4


def test_studies_name_rules_and_settled_budgets():
    study = Study(
        tasks=["lines/chain"],
        models=["tiny-lines"],
        searchers=["BestOfN(8, stop=Settled('exact'))"],
        budgets=[{"settled": 0.9}, {"settled": "Settled('exact')"}, {"tokens": 90}],
    )
    assert [b.settled for b in study.budgets] == [0.9, Settled("exact"), None]
    limits = [group.limits for group in study.groups]
    assert json.loads(json.dumps(limits)) == limits
    assert parse(limits[1]["settled"]) == Settled("exact")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Settled("beta", 1.0), "level=1.0.*exact"),
        (lambda: Settled("gamma"), "rule='gamma'"),
        (lambda: Settled("exact", weights="posterior"), "weights='posterior'.*flat"),
        (lambda: Settled("beta", confidence=len), "confidence: the rule 'beta'"),
        (lambda: EarlyStop(tau=1.2), "tau=1.2"),
        (lambda: SequentialTest(beta=2.0), "beta=2.0"),
        (lambda: SequentialTest(alpha=0.1), "alpha=0.1.*1 or more"),
        (lambda: SequentialTest("simple", p1=0.5), "p1=0.5"),
        (lambda: SequentialTest(prior=1e300), r"prior=1e\+300: between 1e-09 and 1e\+09"),
        (lambda: SequentialTest(prior=1e-300), "prior=1e-300: between"),
        (lambda: SequentialTest(prior=0.0), "prior=0.0"),
        (lambda: Consensus(0), "rounds=0"),
        (lambda: Consensus(share=-1), "share=-1"),
        (lambda: Seen((0, -2)), "classes"),
        (lambda: Seen.of(["a"], confidences=[]), "confidences: 0 for 1"),
        (lambda: Seen.of(["a"], confidences=[1.5]), r"confidences=\(1.5,\): from 0 to 1"),
        (lambda: Seen.of(["a", "b"], weights=[1, -1]), "weights=.*zero or more"),
        (lambda: Seen.of(["a"], weights=[math.inf]), "weights=.*finite"),
        (lambda: Seen((), left=-1.0), "left=-1.0"),
        (lambda: BestOfN(4, stop=0.9), "stop=0.9"),
        (lambda: Budget(settled=1.0), "settled=1.0"),
        (lambda: Budget(settled=True), "settled=True"),
        (lambda: Budget(settled="beta"), "settled='beta'"),
    ],
)
def test_bad_settings_are_named(make, told):
    with pytest.raises((ValueError, TypeError), match=told):
        make()


def test_an_object_that_only_looks_like_a_rule_is_refused():
    class Never:
        def stops(self, seen):
            return False

    with pytest.raises(TypeError, match=r"or a rule of ppl\.decide"):
        BestOfN(3).run(toy, "prod", budget=Budget(settled=Never()))
    assert not isinstance(Never(), StoppingRule)
