"""Pools and rules: laws that every rule keeps, and what a subset costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import made_runs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.language.cost import ModelCost
from ppl.study import runs as reader
from ppl.study.lines import spent, spent_on
from ppl.study.selection import RULES, Pool, Rule
from ppl.study.sharing import Beginnings

BY_NAME = {rule.name: rule for rule in RULES}
ROW = reader._row(made_runs.result("made/0", "BestOfN(6)", 6), "here")


def candidate(answer, gold="1", **fields) -> reader.Candidate:
    return reader._candidate(made_runs.candidate(answer, gold, **fields), "here")


def pool(*candidates: reader.Candidate) -> Pool:
    return Pool.of(ROW, candidates)


def estimates(made: Pool, k: int) -> dict[str, float]:
    return {rule.name: made.estimate(rule, k).chance for rule in RULES if made.usable(rule)}


scores = st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=3)
made = st.builds(
    lambda answer, scores, log_prob: candidate(answer, scores=scores, log_prob=log_prob),
    st.sampled_from([None, "1", "2", "3", "1.0"]),
    scores,
    st.sampled_from([-1.0, -2.0, -3.5]),
)
several = st.lists(made, min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(several, st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_the_names_of_answers_are_nothing(found, random):
    order = found[:]
    random.shuffle(order)
    names = {None: None, "1": "71", "1.0": "71.0", "2": "13", "3": "8"}
    named = [replace(c, answer=names[c.answer]) for c in found]
    for k in range(1, len(found) + 1):
        expected = estimates(pool(*found), k)
        assert estimates(pool(*order), k) == pytest.approx(expected)
        assert estimates(pool(*named), k) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(several)
def test_of_one_candidate_all_rules_make_the_same(found):
    # Spellings of one class are judged alike here.
    found = [replace(c, right=c.answer in ("1", "1.0")) for c in found]
    share = np.mean([c.right for c in found])
    assert estimates(pool(*found), 1) == pytest.approx(dict.fromkeys(BY_NAME, share))


@settings(max_examples=40, deadline=None)
@given(several)
def test_no_rule_beats_the_oracle_which_rises(found):
    made = pool(*[replace(c, right=c.answer in ("1", "1.0")) for c in found])
    before = 0.0
    for k in range(1, made.n + 1):
        found_now = estimates(made, k)
        assert max(found_now.values()) <= found_now["oracle"] + 1e-12
        assert found_now["oracle"] >= before - 1e-12
        before = found_now["oracle"]


@settings(max_examples=30, deadline=None)
@given(several)
def test_an_oracle_for_a_verifier_makes_the_oracle(found):
    told = [
        replace(c, right=c.answer in ("1", "1.0"), log_likelihood=0.0, log_weight=0.0)
        for c in found
    ]
    told = [c if c.right else replace(c, log_likelihood=-50.0, log_weight=-50.0) for c in told]
    made = pool(*told)
    for k in range(1, made.n + 1):
        found_now = estimates(made, k)
        assert found_now["best"] == pytest.approx(found_now["oracle"])
        assert found_now["weighted vote"] == pytest.approx(found_now["oracle"])


@settings(max_examples=30, deadline=None)
@given(several, st.floats(-600, 600))
def test_weights_have_no_scale_and_equal_ones_are_a_vote(found, shift):
    moved = [replace(c, log_weight=c.log_weight + shift) for c in found]
    flat = [replace(c, log_weight=shift, scores=(0.5,)) for c in found]
    for k in range(1, len(found) + 1):
        expected = estimates(pool(*found), k)
        assert estimates(pool(*moved), k)["weighted vote"] == expected["weighted vote"]
        now = estimates(pool(*flat), k)
        assert now["weighted vote"] == pytest.approx(expected["vote"])
        assert now["weighted vote (last)"] == pytest.approx(expected["vote"])
        assert now["best (last)"] == pytest.approx(expected["random"])


def test_aggregates_of_steps():
    made = pool(candidate("1", scores=[0.9, 0.1, 0.9]), candidate("2", scores=[0.5, 0.6, 0.8]))
    found = {name: np.exp(made.values[name][0]) for name in ("last", "min", "prod")}
    assert found == pytest.approx({"last": 0.9, "min": 0.1, "prod": 0.081})
    now = estimates(made, 2)
    assert (now["best (last)"], now["best (min)"], now["best (prod)"]) == (1.0, 0.0, 0.0)


def test_dead_and_unanswered_candidates_are_never_chosen():
    dead = candidate("1", scores=[0.0])
    assert dead.log_weight == -math.inf
    made = pool(dead, candidate(None), candidate("2", scores=[0.1]))
    assert made.pruned
    assert made.estimate(BY_NAME["oracle"], 3).chance == 0.0
    assert set(estimates(made, 3).values()) == {0.0}
    nobody = pool(candidate(None), candidate(None))
    assert set(estimates(nobody, 2).values()) == {0.0}
    assert Pool.of(ROW, ()).n == ROW.n  # a search that failed


def test_a_value_that_some_candidate_lacks_is_not_guessed():
    made = pool(candidate("1", scores=[0.5]), candidate("2"))
    assert made.usable(BY_NAME["best"])
    assert not made.usable(BY_NAME["best (last)"])
    raw = pool(candidate("1", scores=[0.5]), candidate("2", scores=[0.5])).values
    assert "prod" in raw
    odd = replace(candidate("1", scores=[0.5]), scores=(0.5, 1.7))  # no probability
    assert "prod" not in pool(odd).values
    assert not pool(replace(candidate("1"), log_prob=math.nan)).usable(BY_NAME["log-prob"])


def test_majority_of_the_bests_takes_its_m():
    found = [candidate("2", scores=[0.99]), *[candidate("1", scores=[s]) for s in (0.9, 0.8, 0.7)]]
    rule = BY_NAME["majority of the bests"]
    chances = [pool(*found).estimate(replace(rule, draws=m), 4).chance for m in (1, 50)]
    assert chances == [1.0, 0.0]
    assert Rule("x", "vote").verified is False
    assert rule.verified


# -- what it costs -------------------------------------------------------------------------------

TEXTS = [("a", "b"), ("a", "b"), ("a", "c", "d"), ("e",)]


def test_equal_beginnings_are_counted_by_the_subsets_that_hold_them():
    found = [candidate("1", steps=list(steps), tokens=2 * len(steps)) for steps in TEXTS]
    whole = Beginnings.of(found, 4)
    assert (whole.total, whole.joints) == (10.0, 2)  # a, ab, ac, acd, e; a and ac go on
    for k in (1, 2, 3, 4):
        tokens, joints = [], []
        for chosen in itertools.combinations(TEXTS, k):
            beginnings = {steps[:i] for steps in chosen for i in range(1, len(steps) + 1)}
            tokens.append(2 * len(beginnings))
            joints.append(sum(b in (("a",), ("a", "c")) for b in beginnings))
        kept = whole.kept(k)
        assert kept == pytest.approx((np.mean(tokens) / 10, np.mean(joints) / 2))


def test_all_candidates_cost_what_was_measured():
    pages = {
        "lm": ModelCost(lm_tokens=16, prompt_tokens=12, lm_calls=9, draws=9, parameters=100),
        "prm": ModelCost(verifier_tokens=19, verifier_calls=9, parameters=30),
        "judge": ModelCost(verifier_tokens=50, draws=4, parameters=7),
    }
    flops = sum(page.flops or 0 for page in pages.values())
    names = ("lm_tokens", "prompt_tokens", "verifier_tokens", "draws", "parameters")
    models = {name: {n: getattr(page, n) for n in names} for name, page in pages.items()}
    cost = {"lm_tokens": 16, "prompt_tokens": 12, "verifier_tokens": 69, "flops": flops}
    row = replace(ROW, cost={**cost, "models": models}, n=4)
    found = [candidate("1", steps=list(steps), tokens=2 * len(steps)) for steps in TEXTS]
    shared = Beginnings.of(found, 4)
    assert spent_on(row, 4, shared, verified=True) == pytest.approx(spent(row))
    costs = [spent_on(row, k, shared, verified=True) for k in (1, 2, 3, 4)]
    assert all(a < b for x, y in itertools.pairwise(costs) for a, b in zip(x, y, strict=True))
    assert costs[0].lm_tokens == 4.0
    assert costs[0].prompt_tokens > 10.0  # the question, 12 less the two tokens put in again
    alone = spent_on(row, 1, shared, verified=False)
    assert alone.verifier_tokens == 0
    assert 0 < alone.flops < costs[0].flops


def test_unknown_sizes_stay_unknown():
    found = [candidate("1", tokens=3)] * 2
    known = spent_on(ROW, 1, Beginnings.of(found, 2), verified=True)
    assert math.isnan(known.flops)
    assert known.lm_tokens == spent(ROW).lm_tokens / 2
