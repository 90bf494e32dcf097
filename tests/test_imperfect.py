"""Imperfect verifiers: types found in counts, false positives counted, curves, the ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.errors import ArgumentError
from ppl.verifiers import FalsePositives, ImperfectVerifier, false_positive_rate, fit_types

PUBLISHED = ImperfectVerifier((0.87, 0.13), 1.0, 0.75, prior=(0.58, 0.42))


def resampled(made, attempts, problems, seed):
    """The process itself: counts of right, wrong, none, and what was accepted at each attempt."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(made.prior), problems, p=made.prior)
    outcome = np.full(problems, 2)
    for _ in range(attempts):
        right = rng.random(problems) < np.array(made.success)[kind]
        chance = np.where(right, made.completeness, 1 - made.soundness)
        taken = (outcome == 2) & (rng.random(problems) < chance)
        outcome[taken] = np.where(right[taken], 0, 1)
    return outcome


def test_the_belief_is_counted_once():
    """The published notebook multiplies the posterior's value by the posterior of being there, not
    by the prior: .5541 for .5246. A simulation tells which is the value."""
    made, right, wrong = PUBLISHED, 1.0, -0.7
    p, r = np.array(made.prior), np.array(made.success)
    reject = (1 - r) * 0.75
    gains = r * right + (1 - r) * 0.25 * wrong
    twice = 0.0
    for k in range(3):
        belief = p * reject**k / (p @ reject**k)
        twice += (belief @ gains) * (belief @ reject**k)
    assert twice == pytest.approx(0.5541, abs=5e-5)
    utilities = np.array([right, wrong, 0.0])[resampled(made, 3, 40_000, 0)]
    error = utilities.std() / math.sqrt(len(utilities))
    assert abs(utilities.mean() - made.value(3, right=right, wrong=wrong)) < 3 * error
    assert abs(utilities.mean() - twice) > 5 * error


@pytest.mark.parametrize(
    ("made", "attempts"),
    [
        (ImperfectVerifier((0.3,), 1.0, 0.75), 5),
        (ImperfectVerifier((0.5, 0.1), 0.8, 0.7, prior=(0.3, 0.7)), 4),
        (ImperfectVerifier((0.4,), 1.0, 1.0), 6),
    ],
)
def test_curves_are_the_process(made, attempts):
    curve = made.curve(attempts, right=1.0, wrong=-2.0, price=0.01, abstain=-0.1)
    assert curve.attempts.tolist() == list(range(attempts + 1))
    assert curve.right + curve.wrong + curve.none == pytest.approx(np.ones(attempts + 1))
    outcome = resampled(made, attempts, 40_000, 1)
    for number, exact in enumerate((curve.right[-1], curve.wrong[-1], curve.none[-1])):
        share = float(np.mean(outcome == number))
        assert abs(share - exact) < 3 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-12
    for k in range(attempts + 1):
        assert (curve.right[k], curve.wrong[k], curve.none[k]) == pytest.approx(made.outcome(k))
        value = made.value(k, right=1.0, wrong=-2.0, price=0.01, abstain=-0.1)
        assert curve.value[k] == pytest.approx(value)
    # Utility of the three outcomes, and the price of every draw.
    drawn = sum(curve.none[:attempts])
    said = curve.right[-1] - 2 * curve.wrong[-1] - 0.1 * curve.none[-1] - 0.01 * drawn
    assert curve.value[-1] == pytest.approx(said)
    assert curve.best == made.best_budget(
        right=1.0, wrong=-2.0, price=0.01, abstain=-0.1, most=attempts
    )


def test_a_perfect_verifier_gives_pass_at_k():
    curve = ImperfectVerifier((0.3,), 1.0, 1.0).curve(8, right=1.0, wrong=-5.0)
    assert curve.right == pytest.approx(1 - 0.7 ** np.arange(9))
    assert curve.wrong == pytest.approx(np.zeros(9))
    assert ImperfectVerifier((0.3,), 1.0, 1.0).ceiling == 1.0


def test_no_budget_leads_beyond_the_ceiling():
    one = ImperfectVerifier((0.3,), 1.0, 0.75)
    assert one.ceiling == pytest.approx(0.3 / (0.3 + 0.7 * 0.25))
    assert one.precision(1) == pytest.approx(one.ceiling)
    weak, strong = ImperfectVerifier((0.2,), 0.9, 0.8), ImperfectVerifier((0.6,), 0.9, 0.8)
    assert weak.outcome(10_000)[0] == pytest.approx(weak.ceiling)
    # A weak model does not reach one attempt of a strong one, however often it tries.
    assert weak.ceiling < strong.precision(1)
    assert PUBLISHED.precision(5000) == pytest.approx(PUBLISHED.ceiling)
    assert PUBLISHED.precision(1) > PUBLISHED.ceiling  # late acceptances are worse
    never = ImperfectVerifier((0.0, 0.5), 1.0, 1.0, prior=(0.5, 0.5))
    assert never.ceiling == 1.0
    assert math.isnan(ImperfectVerifier((0.0,), 1.0, 1.0).ceiling)


def counts(made, problems, draws, seed):
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(made.prior), problems, p=made.prior)
    r = np.array(made.success)[kind]
    return rng.binomial(draws, r * made.completeness + (1 - r) * (1 - made.soundness))


def test_types_are_found_in_counts_and_give_the_published_budgets():
    accepted = counts(PUBLISHED, 3000, 20, 0)
    found = fit_types(accepted, 20, completeness=1.0, soundness=0.75)
    assert len(found.success) == 2  # by BIC
    assert found.success == pytest.approx(PUBLISHED.success, abs=0.02)
    assert found.prior == pytest.approx(PUBLISHED.prior, abs=0.03)
    for wrong, budget in ((-0.7, 3), (-1.0, 2), (-2.0, 1)):
        assert found.best_budget(right=1.0, wrong=wrong) == budget
    # As one type, resampling would never stop paying.
    one = fit_types(accepted, 20, completeness=1.0, soundness=0.75, types=1)
    assert one.success[0] == pytest.approx((accepted.mean() / 20 - 0.25) / 0.75)
    assert one.best_budget(right=1.0, wrong=-0.7, most=20) == 20


def test_counts_of_one_type_are_one_type():
    made = ImperfectVerifier((0.4,), 0.9, 0.8)
    found = fit_types(counts(made, 1000, 30, 1), 30, completeness=0.9, soundness=0.8)
    assert found.success == pytest.approx((0.4,), abs=0.02)
    # Accepted less often than the verifier accepts what is wrong: nothing is ever right.
    low = fit_types([0] * 50, 10, completeness=0.9, soundness=0.8)
    assert low.success == pytest.approx((0.0,))


def test_fits_say_what_they_cannot_tell():
    with pytest.raises(ArgumentError, match="types=3: 4 draws of a problem tell 2 apart"):
        fit_types([0, 4, 2], 4, completeness=1.0, soundness=0.9, types=3)
    with pytest.raises(ArgumentError, match="completeness"):
        fit_types([0, 4], 4, completeness=0.2, soundness=0.7)
    for k, n in (([5], 4), ([1.5], 4), ([-1], 4)):
        with pytest.raises(ArgumentError, match="accepted"):
            fit_types(k, n, completeness=1.0, soundness=0.9)
    with pytest.raises(ArgumentError, match="draws"):
        fit_types([1, 2], [3], completeness=1.0, soundness=0.9)


def test_false_positives_are_counted_with_stronger_checks():
    # Numbers are right if they are divisible by six; the checks look at two alone, and miss 12.
    found = false_positive_rate(
        range(1, 25), lambda n: n % 2 == 0 and n != 12, lambda n: n % 6 == 0
    )
    assert found == FalsePositives(drawn=24, right=4, accepted=11, false=8)
    assert found.rate == pytest.approx(8 / 20)
    assert found.soundness == pytest.approx(12 / 20)
    assert found.completeness == pytest.approx(3 / 4)
    assert found.wrong_share == pytest.approx(8 / 11)
    low, high = found.interval
    assert 0.2 < low < 0.4 < high < 0.65
    nothing = false_positive_rate([6], lambda n: True, lambda n: True)
    assert math.isnan(nothing.rate)
    assert nothing.interval == (0.0, 1.0)
    with pytest.raises(ArgumentError, match="candidates"):
        false_positive_rate([], bool, bool)


@pytest.mark.parametrize("accepted", [[3], [5], [7, 7, 7]])
@pytest.mark.parametrize(("completeness", "soundness"), [(1.0, 0.75), (0.8, 1.0)])
def test_one_count_is_one_type(accepted, completeness, soundness):
    """Of one problem BIC asks nothing for one type more."""
    found = fit_types(accepted, 20, completeness=completeness, soundness=soundness)
    assert found.prior == (1.0,)
    share = accepted[0] / 20
    exact = (share - (1 - soundness)) / (completeness - (1 - soundness))
    assert found.success[0] == pytest.approx(max(exact, 0.0), abs=1e-9)


def test_no_verdict_is_no_verdict():
    """As of a proof that ends its checker: it counts neither as accepted nor as right."""
    verdicts = {1: True, 2: None, 3: False}
    with pytest.raises(ArgumentError, match="checks: no verdict on candidate 1"):
        false_positive_rate([1, 2, 3], verdicts.get, bool)
    with pytest.raises(ArgumentError, match="stronger_checks: no verdict on candidate 1"):
        false_positive_rate([1, 2, 3], bool, verdicts.get)
