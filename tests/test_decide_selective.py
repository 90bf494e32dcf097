"""Abstaining and answer sets: closed forms, and what calibration promises, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from ppl.decide import (
    Abstained,
    AnswerSet,
    Candidates,
    ConformalSets,
    answer_or_abstain,
    answering_threshold,
    risk_coverage,
    selective_score,
)
from ppl.errors import ArgumentError

# -- answer or abstain -----------------------------------------------------------------------------


def test_thresholds_of_three_games():
    """2502.13962: an exam, Jeopardy, high stakes."""
    found = [answering_threshold(r) for r in (0, -1, -20)]
    assert found == pytest.approx([0, 0.5, 0.95238], abs=1e-5)
    with pytest.raises(ArgumentError, match=r"wrong=0\.5"):
        answering_threshold(0.5)


def test_an_answer_needs_its_share_of_all_weight():
    answers = ["a", "a", "b", None]
    assert answer_or_abstain(answers) == "a"  # one half is enough
    assert answer_or_abstain([*answers, None]) == Abstained(0.4, "a")  # no answer counts against
    assert answer_or_abstain(answers, wrong=0.0) == "a"
    assert answer_or_abstain(answers, wrong=-20.0) == Abstained(0.5, "a")
    assert answer_or_abstain(answers, 0.3, wrong=-20.0) == "a"
    assert answer_or_abstain(["a", "A", "b"], 0.6, key=str.lower) == "a"
    sure = Candidates(["a", "b"], confidences=[0.9, 0.1])
    assert answer_or_abstain(sure, 0.8, weights="confidence") == "a"
    assert not Abstained(0.4, "a")
    assert answer_or_abstain([None], 0.0) == Abstained(0.0)


def test_calibrated_utility_peaks_at_the_threshold():
    """On a calibrated predictor the utility at t* is E max(0, p + r(1 - p))."""
    rng = np.random.default_rng(0)
    p = rng.beta(2, 1.2, 40_000)
    right = rng.random(p.size) < p
    for wrong in (0.0, -1.0, -4.0):
        best = answering_threshold(wrong)
        grid = np.linspace(0, 1, 41)
        found = [selective_score(p, right, float(t), wrong=wrong).utility for t in grid]
        peak = selective_score(p, right, best, wrong=wrong).utility
        expected = float(np.mean(np.maximum(0, p + wrong * (1 - p))))
        assert peak == pytest.approx(expected, abs=0.015)
        assert abs(grid[int(np.argmax(found))] - best) <= 0.076
        assert max(found) <= peak + 0.003


def test_accuracy_comes_with_its_response_rate():
    score = selective_score([0.9, 0.8, 0.3], [1, 0, 1], 0.5, wrong=-2.0)
    assert score == pytest.approx((0.5, 2 / 3, 0.5, (1 - 2 + 0) / 3))
    nobody = selective_score([0.9], [1], 1.5)
    assert (nobody.response_rate, nobody.utility) == (0.0, 0.0)
    assert np.isnan(nobody.accuracy)
    assert selective_score([0.5], [0.25], 0.5).utility == pytest.approx(0.25 - 0.75)


def test_risk_and_coverage():
    found = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert found.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert found.coverage == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.best_area == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    # Equal confidences count by the mean over their orders.
    tied = risk_coverage([5, 5, 1], [1, 0, 0])
    assert tied.thresholds.tolist() == [5, 1]
    orders = [(0, 1 / 2, 2 / 3), (1, 1 / 2, 2 / 3)]
    assert tied.area == pytest.approx(np.mean(orders))
    # Nothing but the order counts.
    again = risk_coverage(np.log([0.9, 0.8, 0.7, 0.6]), [1, 0, 1, 0])
    assert again.area == found.area


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: risk_coverage([], []), "confidences"),
        (lambda: risk_coverage([0.5], [1, 0]), "correct"),
        (lambda: risk_coverage([0.5], [2]), "correct"),
        (lambda: answer_or_abstain(["a"], 1.5), "threshold"),
        (lambda: ConformalSets.fit([["a"]], ["a"], 1.5), "alpha"),
        (lambda: ConformalSets.fit([["a"]], [], 0.1), "gold"),
        (lambda: ConformalSets.fit([], [], 0.1), "candidates"),
        (lambda: ConformalSets.fit([["a"]], [None], 0.1), "gold"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, named):
    with pytest.raises((ArgumentError, ValueError), match=named):
        call()


# -- conformal sets --------------------------------------------------------------------------------

LETTERS = np.array(list("abcdefgh"))


def question(rng) -> tuple[list[str], str]:
    """Ten votes on a question whose answers are more or less likely, and the right one."""
    law = rng.dirichlet(np.full(8, 0.4))
    right = int(rng.choice(8, p=law))
    votes = rng.choice(8, p=0.8 * law + 0.2 / 8, size=10)  # somewhat off
    return LETTERS[votes].tolist(), str(LETTERS[right])


@pytest.mark.parametrize("alpha", [0.3, 0.4])
def test_sets_hold_the_right_answer_as_often_as_they_promise(alpha):
    """Over calibrations and new questions at once, to which the promise is made."""
    rng = np.random.default_rng(1)
    hits, sizes, bound = [], [], 19
    for _ in range(200):
        known = [question(rng) for _ in range(bound)]
        sets = ConformalSets.fit([v for v, _ in known], [g for _, g in known], alpha)
        for _ in range(3):
            votes, gold = question(rng)
            found = sets(votes)
            hits.append(gold in found.answers or found.everything)
            sizes.append(len(found))
    error = np.sqrt(alpha * (1 - alpha) / 200)  # questions of one calibration are not independent
    assert np.mean(hits) >= 1 - alpha - 3 * error
    assert np.mean(hits) <= 0.97  # and it is no empty promise
    assert np.mean(sizes) < 4


def test_the_threshold_is_the_rank_that_is_exact_for_one_more_question():
    shares = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]  # of the right answer, of ten votes
    votes = [["r"] * round(10 * s) + ["w"] * round(10 - 10 * s) for s in shares]
    for alpha, rank in ((0.5, 5), (0.2, 8), (0.1, 9)):
        sets = ConformalSets.fit(votes, ["r"] * 9, alpha)
        assert sets.threshold == pytest.approx(1 - shares[rank - 1])
        assert sets.questions == 9
        assert not sets(votes[0]).everything
    assert ConformalSets.fit(votes, ["r"] * 9, 0.09)(votes[0]).everything  # too few questions
    sets = ConformalSets.fit(votes, ["r"] * 9, 0.5)
    assert sets(["x"] * 5 + ["y"] * 5) == AnswerSet(("x", "y"))
    assert sets(["x"] * 6 + ["y"] * 4) == AnswerSet(("x",))
    assert sets(["x"] * 4 + ["y"] * 3 + ["z"] * 3) == AnswerSet(())


def test_an_answer_never_sampled_is_as_far_as_can_be():
    votes = [["a", "b"]] * 4
    sets = ConformalSets.fit(votes, ["c", "A", "b", "b"], 0.2, key=str.lower)
    assert sets.threshold == 1.0
    assert sets(votes[0]).everything
    # Three of five, rank 3: "a" and "b" have one half each.
    assert ConformalSets.fit(votes, ["c", "A", "b", "b"], 0.4, key=str.lower).threshold == 0.5
