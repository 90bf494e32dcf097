"""`ppl.calibration`: what is right passes, what is wrong does not, and what shows nothing warns."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl.calibration import draws_of, sbc, tarp
from ppl.errors import ArgumentError, PPLError
from ppl.searchers import SMC, BestOfN

# A normal mean: x ~ N(0, 1), y ~ N(x, 1); the posterior is N(y / 2, 1 / 2).
N, DRAWS = 200, 19


def simulate(rng):
    x = rng.normal()
    return x, x + rng.normal()


def exact(scale=1.0, shift=0.0):
    def sampler(y, draws, seed):
        rng = np.random.default_rng([seed, 5])
        return list(y / 2 + shift + scale * math.sqrt(0.5) * rng.normal(size=draws))

    return sampler


def prior(y, draws, seed):
    return list(np.random.default_rng([seed, 6]).normal(size=draws))


STATISTICS = {
    "value": lambda x, y: x,
    "density": lambda x, y: -(x**2) / 2 - (y - x) ** 2 / 2,
}


def guess(y, rng):
    return y / 2 + rng.normal()


def gap(x, point):
    return abs(x - point)


def run(sampler, n=N, **settings):
    ranks = sbc(sampler, simulate, STATISTICS, n=n, draws=DRAWS, **settings)
    points = tarp(sampler, simulate, reference=guess, distance=gap, n=n, draws=DRAWS, **settings)
    return ranks, points


def test_the_exact_posterior_passes_at_the_stated_level():
    """Over 20 seeds a p-value below .05 is rare, and all curves stay within wide bands."""
    low = 0
    for seed in range(20):
        ranks, points = run(exact(), seed=1000 * seed)
        low += sum(p < 0.05 for p in ranks.p_values.values()) + (points.p_value < 0.05)
        for curve, (a, b) in (
            (ranks.ecdf("density"), ranks.band(0.9999)),
            (points.coverage, points.band(0.9999)),
        ):
            assert (a <= curve).all()
            assert (curve <= b).all()
    assert low <= 9  # of 60, three of which are expected


def test_weights_that_are_too_sharp_fail():
    """Posteriors 30% too narrow; truths then rank at the ends, and balls cover too rarely."""
    ranks, points = run(exact(scale=0.7), n=500)
    assert ranks.p_values["value"] < 0.005
    assert points.p_value < 0.05
    low, high = ranks.band()
    curve = ranks.ecdf("value")
    assert (curve > high).any() or (curve < low).any()


def test_a_shift_fails():
    ranks, points = run(exact(shift=0.4))
    assert ranks.p_values["value"] < 0.005
    assert min(ranks.p_values["density"], points.p_value) < 0.05


def test_the_prior_fails_where_the_data_count_and_passes_where_they_do_not():
    """Reference points that know nothing of the data let it pass; they are warned of."""
    ranks, points = run(prior)
    assert ranks.p_values["density"] < 0.005
    assert points.p_value < 0.05
    with pytest.warns(UserWarning, match="no reference point depends on the data"):
        blind = tarp(
            prior,
            simulate,
            reference=lambda y, rng: rng.normal(),
            distance=gap,
            n=N,
            draws=DRAWS,
        )
    assert blind.p_value > 0.05
    with pytest.warns(UserWarning, match="no statistic depends on the data"):
        value = sbc(prior, simulate, {"value": STATISTICS["value"]}, n=N, draws=DRAWS)
    assert value.p_values["value"] > 0.01


def test_bands_hold_with_their_probability():
    """Of 300 sets of uniform ranks about a tenth leave the band of .9 somewhere."""
    from ppl.calibration import Ranks

    rng = np.random.default_rng(0)
    out = 0
    for _ in range(300):
        ranks = Ranks({"u": rng.integers(DRAWS + 1, size=N)}, DRAWS)
        low, high = ranks.band(0.9)
        curve = ranks.ecdf("u")
        out += bool(((curve < low - 1e-12) | (curve > high + 1e-12)).any())
    assert 0.05 < out / 300 < 0.16


# -- searchers -----------------------------------------------------------------------------------

EMISSION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
MOVES = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)


def hidden(observed):
    path = []
    for t, y in enumerate(observed):
        law = MOVES[path[-1]] if path else torch.tensor([0.6, 0.4], dtype=torch.float64)
        path.append(int(pyro.sample(f"x_{t}", dist.Categorical(law))))
        pyro.sample(f"y_{t}", dist.Categorical(EMISSION[path[-1]]), obs=torch.tensor(y))
    return tuple(path)


def hidden_truth(rng):
    path, seen = [], []
    for _ in range(3):
        law = MOVES[path[-1]].numpy() if path else np.array([0.6, 0.4])
        path.append(int(rng.choice(2, p=law)))
        seen.append(int(rng.choice(3, p=EMISSION[path[-1]].numpy())))
    return tuple(path), (tuple(seen),)


def density(path, data):
    (seen,) = data
    log = math.log((0.6, 0.4)[path[0]])
    log += sum(math.log(MOVES[a, b]) for a, b in pairwise(path))
    return log + sum(math.log(EMISSION[x, y]) for x, y in zip(path, seen, strict=True))


def test_smc_passes_and_its_particles_without_weights_do_not():
    statistics = {"density": density}
    right = sbc(draws_of(SMC(30), hidden), hidden_truth, statistics, n=80, draws=4)
    assert right.p_values["density"] > 1e-3

    def unweighed(data, draws, seed):
        posterior = BestOfN(12).run(hidden, *data, seed=seed)
        rng = np.random.default_rng(seed)
        return [posterior.samples[i].value for i in rng.integers(12, size=draws)]

    wrong = sbc(unweighed, hidden_truth, statistics, n=120, draws=4)
    assert wrong.p_values["density"] < 0.01


def test_what_a_sampler_gives_is_counted():
    with pytest.raises(Exception, match="gave 3 draws where 5 were asked for"):
        sbc(lambda y, draws, seed: [0.0] * 3, simulate, STATISTICS, n=3, draws=5)
    with pytest.raises(ValueError, match="statistics"):
        sbc(prior, simulate, {}, n=3, draws=5)
    with pytest.raises(ValueError, match="n=0"):
        sbc(prior, simulate, STATISTICS, n=0)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e9])
def test_ranks_do_not_depend_on_the_unit(unit):
    """Ties are equal up to rounding: with an absolute tolerance all that is small is one tie, ranks
    are uniform by chance, and the prior passes."""
    statistics = {"gap": lambda x, y: unit * (x - y) ** 2}

    def distance(x, point):
        return unit * abs(x - point)

    ranks = sbc(prior, simulate, statistics, n=N, draws=DRAWS)
    points = tarp(prior, simulate, reference=guess, distance=distance, n=N, draws=DRAWS)
    assert (ranks.p_values["gap"], points.p_value) == pytest.approx((0.0005, 0.0005), abs=1e-3)
    plain = {"gap": lambda x, y: (x - y) ** 2}
    assert (ranks.ranks["gap"] == sbc(prior, simulate, plain, n=N, draws=DRAWS).ranks["gap"]).all()


def test_impossible_values_have_ranks_and_nan_has_none():
    infinite = {"log": lambda x, y: math.log(x * y) if x * y > 0 else -math.inf}
    assert sbc(exact(), simulate, infinite, n=N, draws=DRAWS).p_values["log"] > 0.01
    with pytest.raises(PPLError, match=r"'odd' is NaN"):
        sbc(exact(), simulate, STATISTICS | {"odd": lambda x, y: math.nan}, n=3, draws=2)
    with pytest.raises(PPLError, match="distance is NaN"):
        tarp(exact(), simulate, reference=guess, distance=lambda x, p: math.nan, n=1, draws=2)


def test_functions_that_take_other_arguments_are_named():
    with pytest.raises(ArgumentError, match=r"statistics\['x'\]: a function of two .*the data"):
        sbc(prior, simulate, {"x": lambda value: value}, n=3)
    one, two = (lambda y: y), (lambda x, y: abs(x - y))
    with pytest.raises(ArgumentError, match=r"reference: a function of two .*generator"):
        tarp(prior, simulate, reference=one, distance=two, n=3)
    with pytest.raises(ArgumentError, match=r"distance: a function of two .*reference point"):
        tarp(prior, simulate, reference=two, distance=one, n=3)
    assert "x" in sbc(prior, simulate, {"x": max}, n=3, draws=2).ranks  # a built-in says nothing
