"""Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788) and TARP coverage (Lemos et
al. 2023, arXiv:2302.03026) of the particle searchers, over random hidden Markov programs.

Draw a program, a truth from its prior and data from the truth; then the truth's rank among draws
from the posterior is uniform, for every statistic. The two statistics here depend on the data:
the joint log-density, and the distance to a reference point guessed from the data. (Statistics
that do not would let the prior pass for the posterior.)
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl.language.randomness import generator
from ppl.searchers import (
    SMC,
    BestOfN,
    ParticleGibbs,
    ResampleMove,
    SMCSteering,
)

DRAWS, SIMULATIONS, STEPS = 4, 150, 4


def hidden_path(initial, transition, emission, observed) -> tuple[int, ...]:
    path = [int(pyro.sample("x_0", dist.Categorical(initial)))]
    for t, y in enumerate(observed):
        if t:
            path.append(int(pyro.sample(f"x_{t}", dist.Categorical(transition[path[-1]]))))
        pyro.sample(f"y_{t}", dist.Categorical(emission[path[-1]]), obs=torch.tensor(y))
    return tuple(path)


def simulated(seed):
    """A random program's arguments, and the truth behind its data."""
    rng = generator("calibration", seed)
    initial, *rows = rng.dirichlet(np.ones(3) * 0.7, size=4)
    emission = rng.dirichlet(np.ones(3) * 0.5, size=3)
    path, observed = [rng.choice(3, p=initial)], []
    for t in range(STEPS):
        if t:
            path.append(rng.choice(3, p=rows[path[-1]]))
        observed.append(int(rng.choice(3, p=emission[path[-1]])))
    tensors = (torch.tensor(np.array(p)) for p in (initial, rows, emission))
    return (*tensors, tuple(observed)), tuple(map(int, path))


def log_density(path, arguments) -> float:
    initial, transition, emission, observed = (np.asarray(a) for a in arguments)
    moves = [transition[a, b] for a, b in pairwise(path)]
    seen = [emission[x, y] for x, y in zip(path, observed, strict=True)]
    return float(np.log([initial[path[0]], *moves, *seen]).sum())


def distance(path, arguments, reference) -> float:
    return sum(a != b for a, b in zip(path, reference, strict=True))


def ranks(searcher, flat=False):
    """Ranks of the truths in 0 .. DRAWS, by density and by distance; ties at random."""
    problems = [simulated(seed) for seed in range(SIMULATIONS)]
    runs = searcher.run_many(hidden_path, [a for a, _ in problems], seed=range(SIMULATIONS))
    by_density, by_distance = [], []
    for seed, ((arguments, truth), run) in enumerate(zip(problems, runs, strict=True)):
        rng = generator("ranks", seed)
        p = np.full(len(run.samples), 1 / len(run.samples)) if flat else run.probabilities
        draws = [run.samples[i].value for i in rng.choice(len(p), DRAWS, p=p)]
        best_guess = np.asarray(arguments[2])[:, list(arguments[3])].argmax(0)
        noise = rng.random(STEPS) < 0.3
        reference = np.where(noise, rng.integers(3, size=STEPS), best_guess)
        for out, f in (
            (by_density, lambda path: log_density(path, arguments)),  # noqa: B023
            (by_distance, lambda path: distance(path, arguments, reference)),  # noqa: B023
        ):
            values = np.array([f(draw) for draw in draws])
            ties = np.isclose(values, f(truth), atol=1e-9).sum()
            below = (values < f(truth) - 1e-9).sum()
            out.append(below + rng.integers(ties + 1))
    return by_density, by_distance


def p_value(rank) -> float:
    return float(stats.chisquare(np.bincount(rank, minlength=DRAWS + 1)).pvalue)


@pytest.mark.parametrize(
    "searcher",
    [
        SMC(30),
        ResampleMove(20, 1.0),
        SMCSteering(10, 3),
        ParticleGibbs(5, 5),
    ],
    ids=repr,
)
def test_truths_rank_uniformly(searcher):
    by_density, by_distance = ranks(searcher)
    assert p_value(by_density) > 1e-3
    assert p_value(by_distance) > 1e-3


def test_the_prior_does_not_pass_for_the_posterior():
    by_density, by_distance = ranks(BestOfN(20), flat=True)
    assert p_value(by_density) < 1e-4
    assert p_value(by_distance) < 1e-4
