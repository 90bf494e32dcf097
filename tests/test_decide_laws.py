"""What every decision rule keeps: the ten invariants, on random candidates."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.decide import (
    RPC,
    Abstained,
    Borda,
    Candidates,
    DeepConf,
    MajorityOfTheBests,
    Pessimistic,
    answer_or_abstain,
    best,
    minimum_bayes_risk,
    shares,
    vote,
)
from ppl.decide.scaling.subsets import vote_on_sets
from ppl.errors import ArgumentError

SUMS = ["posterior", "flat", "score", "confidence", "probability"]
ORDERED = [MajorityOfTheBests(m) for m in (None, 1, 3)] + [Borda(1.5, "log_scores")]
RULES = [
    *SUMS,
    *ORDERED,
    RPC(prune=False),
    RPC(),
    RPC("token_mean"),
    RPC("joint", prune=False),
    Borda(0.0),
    DeepConf(0.5),
    DeepConf(1.0),
    Pessimistic(0.2),
    lambda c: 2 * c["log_scores"],
]
DOUBLED = [*SUMS, MajorityOfTheBests(3), Pessimistic(0.2), RPC(prune=False), RPC(), DeepConf(1.0)]

SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
# Of one text all is the same, whenever it is drawn.
TEXT = st.tuples(
    st.sampled_from([None, "a", "b", "c"]),
    SCORES,
    st.sampled_from([-0.5, -1.0, -2.0, -3.5, -7.0, -8.25]),  # log p
    SCORES,  # confidence
    st.sampled_from([0.5, 1.0, 2.5]),  # certainty
    st.sampled_from([1, 3, 10]),  # tokens
)
DRAWN = st.lists(TEXT, min_size=1, max_size=6).flatmap(
    lambda texts: st.lists(st.sampled_from(texts), min_size=1, max_size=8)
)


def log(values) -> list[float]:
    return [math.log(v) if v else -math.inf for v in values]


def made(drawn, **changed) -> Candidates:
    answers, scores, log_probs, confidences, certainties, tokens = zip(*drawn, strict=True)
    columns = {
        "log_scores": log(scores),
        "log_probs": log_probs,
        "log_joints": np.array(log_probs) - 0.5,
        "confidences": confidences,
        "certainties": certainties,
        "tokens": tokens,
        "texts": drawn,
        "log_weights": np.array(log_probs) / 3,
    }
    return Candidates(changed.pop("values", answers), **{**columns, **changed})


def of(candidates, rule) -> dict[object, float]:
    return dict(shares(candidates, rule))


def same(found: dict, expected: dict) -> bool:
    return found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.randoms(use_true_random=False))
def test_1_the_order_of_samples_is_nothing_but_for_ties(drawn, random):
    shuffled = drawn[:]
    random.shuffle(shuffled)
    for rule in RULES:
        first, again = of(made(drawn), rule), of(made(shuffled), rule)
        assert same(again, first)
        if first:
            top = max(first.values())
            assert first[vote(made(shuffled), rule)] == pytest.approx(top)


@settings(max_examples=40, deadline=None)
@given(DRAWN)
def test_2_renaming_answers_renames_the_result(drawn):
    names = {None: None, "a": "z", "b": "y", "c": "x"}
    renamed = [names[each[0]] for each in drawn]
    for rule in RULES:
        found = vote(made(drawn, values=renamed), rule)
        assert found == names[vote(made(drawn), rule)]
    assert best(made(drawn, values=renamed)) == names[best(made(drawn))]


@settings(max_examples=40, deadline=None)
@given(DRAWN, SCORES)
def test_3_no_answer_is_no_class_and_keeps_its_weight(drawn, score):
    nothing = (None, score, -0.25, 1.0, 9.0, 2)
    for rule in RULES:
        before, after = of(made(drawn), rule), of(made([*drawn, nothing]), rule)
        assert vote(made([nothing, *drawn]), rule) == vote(made(drawn), rule)
        assert all(after[answer] <= share + 1e-12 for answer, share in before.items())
        assert None not in after
    flat = of(made([*drawn, nothing]), "flat")
    there = sum(each[0] is not None for each in drawn)
    assert sum(flat.values()) == pytest.approx(there / (len(drawn) + 1))
    assert best(made([nothing, *drawn])) == best(made(drawn))


def test_3_no_answer_may_outweigh_all_others_by_far():
    candidates = Candidates(["a", None, "b", "b"], log_weights=[-900, 0, -900, -900])
    assert vote(candidates) == "b"
    assert shares(candidates) == [("b", 0.0), ("a", 0.0)]


def test_3_without_any_answer_there_is_none():
    nothing = made([(None, 0.5, -1.0, 0.5, 1.0, 1)] * 3)
    for rule in RULES:
        assert vote(nothing, rule) is None
        assert shares(nothing, rule) == []
        assert answer_or_abstain(nothing, weights=rule) == Abstained(0.0)
    assert best(nothing) is None
    assert minimum_bayes_risk(nothing, lambda a, b: 1.0) is None
    assert vote([]) is None
    dead = Candidates(["a", "b"], log_weights=[-math.inf, -math.inf])
    assert vote(dead, "flat") is None


@settings(max_examples=30, deadline=None)
@given(TEXT)
def test_4_of_one_sample_all_rules_make_the_same(text):
    for rule in RULES:
        assert vote(made([text]), rule) == text[0]
        assert vote(made([text]), rule, combine="max") == text[0]
    assert best(made([text])) == text[0]


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.sampled_from([0.0, 0.3, 1.0]))
def test_4_with_equal_scores_the_weighted_vote_is_the_vote(drawn, score):
    level = made(drawn, log_scores=log([score] * len(drawn)))
    expected = of(level, "flat")
    for rule in ("score", *ORDERED):
        found = of(level, rule)
        assert vote(level, rule) == vote(level, "flat")
        assert max(found, key=found.get, default=None) == vote(level, "flat")
        assert [found[a] / sum(found.values()) for a in found] == pytest.approx(
            [expected[a] / sum(expected.values()) for a in found]
        )


@settings(max_examples=40, deadline=None)
@given(DRAWN)
def test_5_with_an_oracle_for_a_verifier_both_are_right_if_any_sample_is(drawn):
    told = made(drawn, log_scores=log([float(each[0] == "a") for each in drawn]))
    possible = any(each[0] == "a" for each in drawn)
    for right in (best(told), vote(told, "score"), vote(told, "score", combine="max")):
        assert (right == "a") == possible


@settings(max_examples=40, deadline=None)
@given(DRAWN)
def test_6_rules_by_rank_know_no_scale(drawn):
    scores = np.array([each[1] for each in drawn])
    curved = made(drawn, log_scores=log((scores**3 / 2).tolist()))
    assert best(curved) == best(made(drawn))
    for rule in ORDERED:
        assert same(of(curved, rule), of(made(drawn), rule))


def test_6_the_weighted_vote_does():
    scores = np.array([0.9, 0.5, 0.5])
    found = [vote(["a", "b", "b"], weights) for weights in (scores, scores**3)]
    assert found == ["b", "a"]


@settings(max_examples=40, deadline=None)
@given(DRAWN)
def test_7_doubling_the_samples_changes_nothing(drawn):
    for rule in DOUBLED:
        assert same(of(made(drawn + drawn), rule), of(made(drawn), rule))
    assert best(made(drawn + drawn)) == best(made(drawn))


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.floats(-2000, 500))
def test_8_weights_have_no_scale(drawn, shift):
    for name, rule in (
        ("log_weights", "posterior"),
        ("log_probs", "probability"),
        ("log_probs", RPC(prune=False)),
        ("log_joints", RPC("joint")),
    ):
        moved = made(drawn, **{name: made(drawn).columns[name] + shift})
        assert of(moved, rule) == pytest.approx(of(made(drawn), rule), rel=1e-6)
    scores = np.array([each[1] for each in drawn])
    assert same(of(made(drawn), 1e-300 * scores), of(made(drawn), scores))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["sum", "max", "mean"]),
)
def test_9_of_tied_classes_the_first_seen_wins(drawn, combine):
    """Against fractions; powers of two are exact in both, and far below what exp can hold."""
    parts = defaultdict(list)
    for answer, power in drawn:
        if answer is not None:
            parts[answer].append(Fraction(2) ** power)
    totals = {
        a: max(w) if combine == "max" else sum(w) / (len(w) if combine == "mean" else 1)
        for a, w in parts.items()
    }
    logs = np.array([power for _, power in drawn]) * math.log(2) - 900
    answers = [answer for answer, _ in drawn]
    found = vote(Candidates(answers, log_weights=logs), combine=combine)
    assert found == max(totals, key=totals.get, default=None)


def test_9_a_tie_is_scored_by_its_expectation():
    # 0.2 + 0.2 + 0.2 is not 0.6 in floats, and a tie all the same.
    weights = [0.6, 0.2, 0.2, 0.2]
    assert vote(["a", "b", "b", "b"], weights) == "a"
    assert vote(["b", "b", "b", "a"], weights[::-1]) == "b"
    classes = np.array([[0, 1, 1, 1]])
    assert vote_on_sets(classes, np.log([weights]), np.array([True, False])) == 0.5
    # Seven times 0.3 is a little less than 2.1 once these are logarithms, and a tie all the same.
    weights = [0.3] * 7 + [2.1]
    assert vote(["a"] * 7 + ["b"], weights) == "a"
    classes = np.array([[0] * 7 + [1]])
    assert vote_on_sets(classes, np.log([weights]), np.array([True, False])) == 0.5


def test_10_raw_rewards_are_no_votes():
    with pytest.raises(ArgumentError, match=r"weights.*negative votes"):
        vote(["a", "b"], [-1.0, 2.0])
    rewarded = Candidates(["a", "b"], rewards=[-7.0, -2.0])
    with pytest.raises(ArgumentError, match="log_scores: this rule needs"):
        vote(rewarded, "score")
    assert best(rewarded, "rewards") == "b"
    with pytest.raises(ArgumentError, match=r"log_scores.*rewards="):
        Candidates(["a", "b"], log_scores=[-1.0, 3.0])


@settings(max_examples=60, deadline=None)
@given(DRAWN, st.sampled_from(["posterior", "flat", "score", "confidence"]))
def test_the_utility_of_being_equal_makes_the_vote(drawn, weights):
    candidates = made(drawn)
    found = minimum_bayes_risk(candidates, lambda a, b: float(a == b), weights)
    assert found == vote(candidates, weights)
    shifted = minimum_bayes_risk(candidates, lambda a, b: 100.0 * (a == b) - 40.0, weights)
    assert shifted == found
