"""Rules on subsets of stored samples against all subsets, gone through one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.decide.columns import Columns
from ppl.decide.ranks import MajorityOfTheBests
from ppl.decide.scaling.estimators import (
    answer_classes,
    best_of_k,
    majority_at_k,
    pass_at_k,
    random_of_k,
    vote_at_k,
)
from ppl.decide.scaling.subsets import DRAWN, MOST_ENUMERATED, subsets, vote_on_sets
from ppl.errors import ArgumentError


def weighted_vote(chosen, classes, log_weights, right):
    return vote_on_sets(classes[chosen], log_weights[chosen], right)


def bests_vote(chosen, classes, scores, right, *, draws):
    there = classes >= 0
    known = {"log_scores": lambda: scores, "log_weights": lambda: np.zeros(len(scores))}
    weights = MajorityOfTheBests(draws)(Columns(there, known).take(chosen))
    return vote_on_sets(classes[chosen], weights, right)


Score = Callable[[tuple[int, ...]], Fraction]


def over_all(n: int, k: int, score: Score) -> float:
    """The mean of a score over all subsets, in fractions."""
    found = [score(each) for each in itertools.combinations(range(n), k)]
    return float(sum(found) / len(found))


def winners(weights: dict[int, Fraction], right: Sequence[bool]) -> Fraction:
    """The share of right classes among the heaviest."""
    if not weights:
        return Fraction(0)
    tied = [c for c, w in weights.items() if w == max(weights.values())]
    return Fraction(sum(bool(right[c]) for c in tied), len(tied))


def summed(
    members: tuple[int, ...], classes: Sequence[int], weights: Sequence[Fraction]
) -> dict[int, Fraction]:
    totals: dict[int, Fraction] = {}
    for i in members:
        if classes[i] >= 0:
            totals[classes[i]] = totals.get(classes[i], Fraction(0)) + weights[i]
    return totals


pools = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 3), min_size=n, max_size=n),  # classes
        st.lists(st.integers(0, 3), min_size=n, max_size=n),  # scores, with ties
        st.lists(st.booleans(), min_size=4, max_size=4),  # right, of classes
        st.integers(1, n),
    )
)


@settings(max_examples=60, deadline=None)
@given(pools)
def test_every_estimate_is_the_mean_over_all_subsets(pool):
    classes, scores, right, k = pool
    n = len(classes)
    there = [i for i in range(n) if classes[i] >= 0]
    correct = [classes[i] >= 0 and right[classes[i]] for i in range(n)]

    def oracle(s):
        return Fraction(any(correct[i] for i in s))

    def blind(s):
        own = [correct[i] for i in s if classes[i] >= 0]
        return Fraction(sum(own), len(own)) if own else Fraction(0)

    def best(s):
        own = [i for i in s if classes[i] >= 0]
        top = [correct[i] for i in own if scores[i] == max(scores[j] for j in own)]
        return Fraction(sum(top), len(top)) if top else Fraction(0)

    def vote(s):
        return winners(summed(s, classes, [Fraction(1)] * n), right)

    c = sum(correct)
    assert pass_at_k(n, c, k) == pytest.approx(over_all(n, k, oracle))
    assert random_of_k(n, len(there), c, k) == pytest.approx(over_all(n, k, blind))
    chance = best_of_k([scores[i] for i in there], [correct[i] for i in there], k, n=n)
    assert chance == pytest.approx(over_all(n, k, best))
    counts = np.bincount([classes[i] for i in there], minlength=4)
    assert vote_at_k(counts, np.array(right), k, n) == pytest.approx(over_all(n, k, vote))


@settings(max_examples=60, deadline=None)
@given(pools, st.integers(1, 3))
def test_votes_with_weights_are_means_over_their_subsets(pool, draws):
    classes, scores, right, k = pool
    n = len(classes)
    chosen = subsets(n, k)
    assert chosen.exact
    assert chosen.members.tolist() == [list(s) for s in itertools.combinations(range(n), k)]
    powers = [Fraction(2) ** s for s in scores]  # exact in floats as in fractions

    def weighted(s):
        return winners(summed(s, classes, powers), right)

    def bests(s):
        own = [i for i in s if classes[i] >= 0]
        totals: dict[int, Fraction] = {}
        for drawn in itertools.product(own, repeat=draws):
            top = [i for i in drawn if scores[i] == max(scores[j] for j in drawn)]
            for i in top:
                share = Fraction(1, len(top))
                totals[classes[i]] = totals.get(classes[i], Fraction(0)) + share
        return winners(totals, right)

    arrays = np.array(classes), np.array(scores, dtype=float), np.array(right)
    logs = arrays[1] * math.log(2) - 900  # far below what exp can hold
    found = weighted_vote(chosen.members, arrays[0], logs, arrays[2])
    assert found == pytest.approx(over_all(n, k, weighted))
    found = bests_vote(chosen.members, *arrays, draws=draws)
    assert found == pytest.approx(over_all(n, k, bests))


def test_known_values():
    """Worked by hand, or by others."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(10_000, 3, 1000) == pytest.approx(0.27102430, abs=1e-8)
    scores, correct = (0.9, 0.8, 0.5, 0.3, 0.1), (0, 1, 1, 0, 1)
    found = [best_of_k(scores, correct, k) for k in (1, 2, 3, 5)]
    assert found == pytest.approx([0.6, 0.5, 0.4, 0.0])


@pytest.mark.parametrize(
    ("law", "sizes", "expected"),
    [
        ((0.6, 0.4), (1, 3, 5), (0.6, 0.648, 0.68256)),
        ((0.4, 0.35, 0.25), (1, 3, 5), (0.4, 0.422, 0.44344)),
        ((0.35, 0.4, 0.25), (1, 3, 5), (0.35, 0.35175, 0.35461)),
    ],
)
def test_majority_is_unbiased_for_the_law_of_k_samples(law, sizes, expected):
    """The mean of the estimate over every pool of six samples is the multinomial law itself."""
    n = 6
    for k, chance in zip(sizes, expected, strict=True):
        mean = 0.0
        for counts in itertools.product(range(n + 1), repeat=len(law)):
            if sum(counts) == n:
                ways = math.factorial(n) / math.prod(map(math.factorial, counts))
                weight = ways * math.prod(p**c for p, c in zip(law, counts, strict=True))
                right = np.arange(len(law)) == 0
                mean += weight * vote_at_k(np.array(counts), right, k, n)
        assert mean == pytest.approx(chance, abs=1e-5)


def test_weighted_vote_and_its_neighbours_differ():
    classes, right = np.array([0, 1, 1, 1]), np.array([True, False])
    everyone = np.arange(4)[None]
    for weights, chance in (((0.9, 0.2, 0.2, 0.2), 1.0), ((0.5, 0.2, 0.2, 0.2), 0.0)):
        assert weighted_vote(everyone, classes, np.log(weights), right) == chance
    # 0.2 + 0.2 + 0.2 is not 0.6 in floats, and a tie all the same.
    assert weighted_vote(everyone, classes, np.log([0.6, 0.2, 0.2, 0.2]), right) == 0.5
    # Without any weight all count alike.
    assert weighted_vote(everyone, classes, np.full(4, -np.inf), right) == 0.0


def test_majority_of_the_bests_goes_from_the_vote_to_the_best():
    """arXiv 2511.18630: one wrong answer scores best, the right one is there four times."""
    scores = np.array([0.99, 0.90, 0.88, 0.86, 0.85, 0.40, 0.30, 0.20])
    classes, right = np.array([0, 1, 1, 1, 1, 2, 3, 4]), np.array([False, True] + [False] * 3)
    everyone = np.arange(8)[None]
    chances = [bests_vote(everyone, classes, scores, right, draws=m) for m in (1, 2, 4, 8, 500)]
    assert chances == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_large_pools_stay_exact():
    """Against the closed form for two classes: the right one wins with more than half."""
    n, m, k = 2000, 900, 501
    found = vote_at_k(np.array([m, n - m]), np.array([True, False]), k, n)
    ways = sum(math.comb(m, s) * math.comb(n - m, k - s) for s in range(k // 2 + 1, k + 1))
    assert found == pytest.approx(float(Fraction(ways, math.comb(n, k))), rel=1e-9)


def test_random_subsets_are_seeded_and_near_the_mean_of_all():
    assert math.comb(40, 10) > MOST_ENUMERATED
    drawn = subsets(40, 10, seed="a")
    assert not drawn.exact
    assert drawn.members.shape == (DRAWN, 10)
    assert all(len(set(row)) == 10 for row in drawn.members.tolist())
    assert (drawn.members == subsets(40, 10, seed="a").members).all()
    assert (drawn.members != subsets(40, 10, seed="b").members).any()
    classes = np.array([0] * 15 + [1] * 25)
    right = np.array([True, False])
    exact = vote_at_k(np.array([15, 25]), right, 10, 40)
    near = weighted_vote(drawn.members, classes, np.zeros(40), right)
    assert near == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(DRAWN))
    assert near != exact


def test_answers_vote_by_their_equality():
    answers = ["0.5", r"\frac{1}{2}", "1/2", "3", "3", None]
    correct = [True, True, True, False, False, False]
    classes, right = answer_classes(answers, correct)
    assert classes.tolist() == [0, 0, 0, 1, 1, -1]
    assert right.tolist() == [True, False]
    assert majority_at_k(answers, correct, 6) == 1.0
    assert majority_at_k([*"ab", None], [1, 0, 0], 2, n=3) == pytest.approx((1 / 2 + 1 + 0) / 3)
    # A class is what most of it was judged to be.
    assert answer_classes(["0.5", "1/2", "1/2"], [True, False, False])[1].tolist() == [False]


def test_programs_as_answers_are_classed_in_time():
    """They cannot be read as terms, and are not compared in pairs."""
    answers = [f"def f(x):\n    return x * {i} + 1\n" for i in range(150)]
    classes, _ = answer_classes(answers + answers, [False] * 300)
    assert classes.tolist() == [*range(150), *range(150)]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: pass_at_k(3, 1, 4), "k=4"),
        (lambda: pass_at_k(3, 4, 1), "c=4"),
        (lambda: pass_at_k(3, 1, 0), "k=0"),
        (lambda: random_of_k(3, 1, 2, 1), "answered=1"),
        (lambda: best_of_k([1.0, math.nan], [1, 0], 1), "scores"),
        (lambda: best_of_k([1.0], [1, 0], 1), "correct"),
        (lambda: best_of_k([1.0, 0.5], [1, 0], 1, n=1), "n=1"),
        (lambda: majority_at_k(["a"], [2], 1), "correct"),
        (lambda: majority_at_k(["a", "b"], [1, 0], 1, n=1), "n=1"),
        (lambda: subsets(3, 4), "k=4"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, named):
    with pytest.raises((ArgumentError, ValueError), match=named):
        call()
