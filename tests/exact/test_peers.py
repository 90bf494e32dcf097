"""Two defects of released code (docs/peers.md) put into ours: the exact laws must see them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import toy

from ppl.searchers import ParticleGibbs, SMCSteering
from ppl.searchers.particles import conditional_smc, steering
from ppl.searchers.resampling import systematic


def standard_errors(values, exact: float) -> float:
    """Distance of the mean from the exact value."""
    return abs(np.mean(values) - exact) / (np.std(values, ddof=1) / math.sqrt(len(values)))


def first_two_matter() -> bool:
    """Odds of 9 or 3/7 for two symbols, none for a third: all is known before the last step."""
    good = 0
    for t in range(2):
        a = int(pyro.sample(f"x_{t}", dist.Bernoulli(0.5)))
        good += a
        pyro.factor(f"f_{t}", torch.tensor(math.log(9 if a else 3 / 7), dtype=torch.float64))
    pyro.sample("x_2", dist.Bernoulli(0.5))
    return good == 2


def thinned_with_a_constant_too_small(probabilities, n, rng):
    """Thinning whose c counts an atom as light and as kept: sum_i min(1, c W_i) falls below n."""
    if len(probabilities) <= n:
        return np.arange(len(probabilities)), probabilities
    order = np.argsort(probabilities)
    lighter = np.cumsum(probabilities[order])
    heavier = len(order) - 1 - np.arange(len(order))
    fits = np.flatnonzero(lighter / probabilities[order] + heavier <= n + 1e-12)
    c = (n - heavier[fits[0]]) / lighter[fits[0]] if len(fits) else n
    kept, light = np.flatnonzero(c * probabilities >= 1), np.flatnonzero(c * probabilities < 1)
    if len(kept) < n:
        share = probabilities[light] / probabilities[light].sum()
        light = light[systematic(share, n - len(kept), rng)]
        return np.append(kept, light), np.append(probabilities[kept], np.full(len(light), 1 / c))
    return kept, probabilities[kept]


def test_the_constant_of_optimal_resampling_shows_in_the_evidence(monkeypatch):
    """What the evidence tests of steering must not pass."""
    monkeypatch.setattr(steering, "optimal", thinned_with_a_constant_too_small)
    done = SMCSteering(3, 2).run_many(toy, [()] * 450, seed=range(450))
    error = standard_errors([math.exp(posterior.log_evidence) for posterior in done], 0.46236)
    assert error > 4


@pytest.mark.parametrize("broken", [False, True])
def test_the_step_at_which_a_reference_is_weighed_shows_in_the_chain(broken, monkeypatch):
    advance = conditional_smc.advance

    def with_last_weight(tree, sweeps, *, ancestor_sampling):
        done = advance(tree, sweeps, ancestor_sampling=ancestor_sampling)
        broken = []
        for sweep in done:
            if sweep.reference is not None:
                log_weights = [*sweep.weights.tolist()[:-1], sweep.reference[-1].log_increment]
                sweep = replace(sweep, weights=replace(sweep.weights, log_weights=log_weights))
            broken.append(sweep)
        return broken

    if broken:
        monkeypatch.setattr(conditional_smc, "advance", with_last_weight)
    shares = []
    for posterior in ParticleGibbs(4, 8).run_many(first_two_matter, [()] * 120, seed=range(120)):
        last = posterior.samples[-16:]  # four sweeps, each with the same weight
        weights = np.exp([s.log_weight for s in last])
        shares.append(float(weights @ [s.value for s in last] / weights.sum()))
    error = standard_errors(shares, (9 / (9 + 3 / 7)) ** 2)
    assert (error > 5) if broken else (error < 4)
