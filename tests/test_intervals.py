"""Intervals and paired tests against what statistics packages say, and against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ppl.errors import ArgumentError
from ppl.study.intervals import mcnemar, paired, wilson


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(pair):
    ci = binomtest(*pair).proportion_ci(method="wilson")
    assert wilson(*pair) == pytest.approx((ci.low, ci.high), abs=1e-12)


def test_wilson_takes_sums_of_chances():
    low, high = wilson(3.5, 10)
    assert wilson(3, 10)[0] < low < 0.35 < high < wilson(4, 10)[1]
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ArgumentError, match=r"right=3\.5"):
        wilson(3.5, 3)


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1.0), (5, 0, 1 / 16), (1, 5, 14 / 64)])
def test_mcnemar_by_hand(wins, losses, p):
    assert mcnemar(wins, losses) == pytest.approx(p)


outcomes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(outcomes)
def test_sign_flips_are_all_gone_through(pairs):
    a, b = np.array(pairs).T / 4
    found = paired(a, b)
    gaps = a - b
    seen = abs(gaps.sum())
    sums = [abs(np.dot(s, gaps)) for s in itertools.product((-1, 1), repeat=len(gaps))]
    expected = np.mean([s >= seen - 1e-9 for s in sums])
    assert found.p == pytest.approx(expected)  # McNemar's p is the same number
    back = paired(b, a)
    assert back.difference == -found.difference
    assert (back.wins, back.losses, back.p) == (found.losses, found.wins, found.p)
    assert found.low <= found.difference + 1e-12
    assert found.difference <= found.high + 1e-12


def test_bootstrap_is_seeded_and_of_questions():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 200).astype(float)
    b = np.where(rng.random(200) < 0.8, a, 1 - a)
    found = paired(a, b, seed=3)
    assert found == paired(a, b, seed=3)
    assert paired(a, 0.9 * b, seed=3).low != paired(a, 0.9 * b, seed=4).low
    assert found.test == "McNemar"
    spread = (a - b).std() / np.sqrt(200)
    assert (found.high - found.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.08)
    same = paired(a, a)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_many_chances_are_tested_by_random_flips():
    """Against the normal law of the sum."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(0.02, 0.1, 300)
    found = paired(0.5 + gaps / 2, 0.5 - gaps / 2)
    assert found.test == "sign flips"
    z = abs(gaps.sum()) / np.sqrt((gaps**2).sum())
    from scipy.stats import norm

    assert found.p == pytest.approx(2 * norm.sf(z), rel=0.5)
    assert paired(np.ones(40) * 0.9, np.ones(40) * 0.2).p == pytest.approx(1 / 20_001)


def test_outcomes_are_of_the_same_questions():
    with pytest.raises(ArgumentError, match="b: outcomes"):
        paired([1, 0], [1])


@pytest.mark.parametrize("count", range(1, 60))
def test_a_share_lies_in_its_interval(count):
    for right in range(count + 1):
        low, high = wilson(right, count)
        assert 0 <= low <= right / count <= high <= 1
