"""Coverage beyond what was drawn: closed forms, recovered laws, forecasts against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.decide.scaling import (
    BetaBinomial,
    PowerLaw,
    coverage_curve,
    fit_beta_binomial,
    fit_power_law,
    fit_ttspm,
    pass_at_k,
    saturation,
)
from ppl.errors import ArgumentError

KNOWN = BetaBinomial(0.3, 2.0)


def counted(problems: int, n: int, seed: int):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 2.0, problems)
    return p, rng.binomial(n, p)


def test_coverage_of_a_beta_law():
    sizes = (10, 100, 1000, 10_000)
    found = [KNOWN.coverage(k) for k in sizes]
    assert found == pytest.approx([0.44149, 0.70837, 0.85319, 0.92639], abs=5e-6)
    logs = np.log(-np.log(found)) / math.log(10)
    # The exponent is -alpha in the end, and not soon: no line has these slopes.
    assert np.diff(logs) == pytest.approx([-0.375, -0.337, -0.317], abs=5e-4)
    assert KNOWN.coverage(1) == pytest.approx(KNOWN.mean)
    draws = np.random.default_rng(0).beta(0.3, 2.0, 400_000)
    assert np.mean(1 - (1 - draws) ** 10) == pytest.approx(found[0], abs=0.003)


def test_gains_add_up_and_end_where_they_are_small():
    gains = [KNOWN.gain(k) for k in range(50)]
    assert sum(gains) == pytest.approx(KNOWN.coverage(50))
    for eps in (0.2, 0.01, 0.001):
        k = KNOWN.saturation(eps)
        assert KNOWN.gain(k) <= eps
        assert k == 0 or KNOWN.gain(k - 1) > eps


def test_the_curve_is_the_mean_of_problems_not_of_pooled_counts():
    found = coverage_curve(4, [4, 0], [1, 2, 4])
    assert found == pytest.approx([0.5, 0.5, 0.5])
    assert pass_at_k(8, 4, 2) == pytest.approx(1 - 4 * 3 / (8 * 7))  # what pooling would say
    found = coverage_curve([5, 10], [2, 1], [2])
    assert found == pytest.approx([(0.7 + 0.2) / 2])


def test_a_beta_law_is_recovered():
    """Alpha within two standard errors, for five sets of 500 problems; so are their intervals."""
    within, covered = [], []
    for seed in range(12):
        _, c = counted(500, 50, seed)
        fit = fit_beta_binomial(50, c)
        low, high = fit.alpha_interval
        error = (math.log(high) - math.log(low)) / (2 * 1.96)
        within.append(abs(math.log(fit.alpha / 0.3)) / error)
        low, high = fit.interval(10_000)
        covered.append(low <= KNOWN.coverage(10_000) <= high)
        assert 0.02 < error < 0.2
    assert np.mean(np.array(within) < 2) >= 10 / 12
    assert max(within) < 3.5
    assert np.mean(covered) >= 10 / 12


def test_the_likelihood_is_at_its_maximum():
    """Against a grid; numbers of samples may differ from problem to problem."""
    rng = np.random.default_rng(5)
    n = rng.integers(1, 30, 80)
    c = rng.binomial(n, rng.beta(0.7, 1.5, 80))
    fit = fit_beta_binomial(n, c)
    from scipy.stats import betabinom

    def likelihood(alpha, beta):
        return betabinom.logpmf(c, n, alpha, beta).sum()

    top = likelihood(fit.alpha, fit.beta)
    for a in (0.97, 1.0, 1.03):
        for b in (0.97, 1.0, 1.03):
            assert likelihood(fit.alpha * a, fit.beta * b) <= top + 1e-6
    # On the edge of its region it has fallen by half the quantile of chi-squared: the profile
    # likelihood of any function of the law.
    assert [top - likelihood(*law) for law in fit.region] == pytest.approx([1.9207] * 64, abs=1e-3)
    alphas = [alpha for alpha, _ in fit.region]
    assert fit.alpha_interval == pytest.approx((min(alphas), max(alphas)))
    for k in (1, 100):
        found = [BetaBinomial(*law).coverage(k) for law in fit.region]
        assert fit.interval(k) == pytest.approx((min(found), max(found)))

    def profile(alpha):
        return max(likelihood(alpha, beta) for beta in np.geomspace(0.2, 20, 2000))

    for bound in fit.alpha_interval:
        assert top - profile(bound) == pytest.approx(1.9207, abs=0.01)


def test_laws_at_the_end_of_what_counts_can_say():
    always = fit_beta_binomial(5, [0, 0, 5, 5])  # each problem always, or never
    assert always.coverage(100) == pytest.approx(0.5, abs=1e-3)
    assert always.alpha_interval[0] == 0
    assert always.interval(100) == pytest.approx((0.107, 0.937), abs=0.01)
    alike = fit_beta_binomial(10, [5, 5, 5, 5])  # no problem differs
    assert alike.coverage(3) == pytest.approx(1 - 0.5**3, abs=1e-3)
    assert alike.alpha_interval[1] == math.inf
    assert alike.alpha_interval[0] < 5
    once = fit_beta_binomial(100, [0] * 99 + [1])  # both may be
    assert once.interval(1000)[0] < 0.01
    assert once.interval(1000)[1] > 0.3
    assert math.isnan(KNOWN.interval(10)[0])


def test_a_forecast_by_the_likelihood_beats_the_line():
    """From 100 samples of 2,000 problems to what 10,000 solve."""
    p, c = counted(2000, 100, 3)
    truth = float(np.mean(1 - (1 - p) ** 10_000))
    fit, line = fit_beta_binomial(100, c), fit_power_law(100, c)
    assert abs(fit.coverage(10_000) - truth) < 0.01
    assert abs(line.coverage(10_000) - truth) > 2 * abs(fit.coverage(10_000) - truth)
    low, high = fit.interval(10_000)
    assert low < truth < high
    assert high - low < 0.05


def test_the_line_recovers_a_line():
    """exp(a k^b) at the sizes that are fitted, by counts of one chance each."""
    fit = fit_power_law(64, np.r_[np.full(50, 64), np.full(30, 1), np.zeros(20)])
    curve = coverage_curve(64, np.r_[np.full(50, 64), np.full(30, 1), np.zeros(20)], [1, 64])
    x, y = np.log([1, 2, 4, 8, 16, 32, 64]), []
    for k in (1, 2, 4, 8, 16, 32, 64):
        y.append(math.log(-math.log(0.5 + 0.3 * k / 64)))
    b, log_a = np.polyfit(x, y, 1)
    assert (fit.a, fit.b) == pytest.approx((-math.exp(log_a), b))
    assert fit.a_interval[0] < fit.a < fit.a_interval[1] < 0
    assert curve == pytest.approx([0.5 + 0.3 / 64, 0.8])
    assert PowerLaw(-1.0, -0.5).coverage(4) == pytest.approx(math.exp(-0.5))


def test_problems_that_do_not_differ_are_one_point():
    rng = np.random.default_rng(0)
    fit = fit_beta_binomial(100, rng.binomial(100, 0.3, 200))
    assert fit.mean == pytest.approx(0.3, abs=0.01)
    assert fit.coverage(5) == pytest.approx(1 - (1 - fit.mean) ** 5, abs=5e-3)
    low, high = fit.interval(5)
    assert 0 < high - low < 0.05


# -- saturation (2505.20522) -----------------------------------------------------------------------


def test_saturation():
    assert [saturation(p) for p in (0.1, 0.3)] == [22, 10]
    gain = [0.1 * 0.9**k for k in (21, 22)]
    assert gain == pytest.approx([0.01094, 0.00985], abs=5e-6)
    assert saturation(0.005) == 0
    assert saturation(0.01) == 0  # the first adds eps and no more
    assert saturation(0.015, f_max=0.5) == 0
    assert saturation(1.0) == 1
    assert saturation(0.2, f_max=0.5, eps=0.01) == math.ceil(math.log(0.1) / math.log(0.8))
    with pytest.raises(ValueError, match="p="):
        saturation(1.2)


def test_a_curve_with_one_chance_is_recovered():
    n = np.array([1, 2, 4, 8, 16, 32])
    fit = fit_ttspm(n, 0.8 * (1 - 0.85**n))
    assert (fit.p, fit.f_max) == pytest.approx((0.15, 0.8), rel=1e-4)
    assert fit.error < 1e-6
    assert fit.accuracy(3) == pytest.approx(0.8 * (1 - 0.85**3), rel=1e-4)
    assert fit.saturation(0.01) == saturation(0.15, 0.8, 0.01)


def test_a_curve_that_never_rises_tends_to_where_it_is():
    assert fit_ttspm([1, 2], [0.0, 0.0]).accuracy(1000) < 1e-3
    assert fit_ttspm([1, 2, 4, 8], [0.5] * 4).f_max == pytest.approx(0.5, abs=1e-6)


def test_one_chance_for_problems_that_differ_stops_too_early():
    n = 2 ** np.arange(7)
    fit = fit_ttspm(n, [KNOWN.coverage(int(k)) for k in n])
    assert fit.saturation(0.001) < KNOWN.saturation(0.001) / 2
    assert fit.accuracy(10_000) < 0.75 < KNOWN.coverage(10_000)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: fit_beta_binomial(5, [0, 0]), "c: none"),
        (lambda: fit_beta_binomial(5, [5, 5]), "c: all"),
        (lambda: fit_beta_binomial(1, [1, 0]), "n: one sample"),
        (lambda: fit_beta_binomial(5, [6, 0]), "c: whole"),
        (lambda: fit_beta_binomial([5], [1, 0]), "n: of shape"),
        (lambda: fit_beta_binomial(2.5, [1, 0]), "n: whole"),
        (lambda: fit_power_law(5, [0, 0]), "c: fewer"),
        (lambda: coverage_curve(5, [1, 0], [6]), "k=6"),
        (lambda: coverage_curve(5, [1, 0], [2.5]), "k=2.5"),
        (lambda: fit_ttspm([1, 1], [0.5, 0.5]), "n: one axis"),
        (lambda: fit_ttspm([1, 2], [0.5, 1.5]), "accuracy"),
        (lambda: KNOWN.coverage(0), "k=0"),
        (lambda: KNOWN.saturation(0.0), "eps"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, named):
    with pytest.raises((ArgumentError, ValueError), match=named):
        call()
