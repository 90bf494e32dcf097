"""Particle searchers against enumeration: evidence, posterior, invariance."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import branching

import ppl
from ppl.searchers import SMC

SEEDS = 600


def sticky() -> int:
    """What is good now is likely to be good next: wrong weights after resampling show at once."""
    state = 0
    for t in range(3):
        state = int(pyro.sample(f"x_{t}", dist.Bernoulli(0.9 if state else 0.2)))
        pyro.factor(f"f_{t}", torch.tensor(0.0 if state else -2.0, dtype=torch.float64))
        if t == 1 and pyro.sample("stop", dist.Bernoulli(0.3)) == 1:
            break
    return state


def evidence_error(searcher, program, exact=None, seeds=SEEDS, **options) -> float:
    """Distance of mean(exp(log_evidence)) from the exact value, in standard errors."""
    if exact is None:
        exact = math.exp(ppl.enumerate_program(program).log_evidence)
    results = searcher.run_many(program, [()] * seeds, seed=range(seeds), **options)
    estimates = np.exp([r.log_evidence for r in results])
    spread = estimates.std(ddof=1) / math.sqrt(seeds)
    return abs(estimates.mean() - exact) / max(spread, 1e-9 * exact)


@pytest.mark.parametrize(
    "searcher",
    [
        SMC(4, 1.0, "multinomial", resampling_temperature=3.0),
        SMC(3, 1.0, "ssp", resampling_temperature=0.4),
        SMC(4, 0.9, tempering=(0.2, 0.5)),
        SMC(3, 1.0, "stratified", resampling_temperature=2.0, tempering=(0.0, 2.0, 0.7)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("program", [branching, sticky])
def test_temperatures_do_not_change_the_evidence(searcher, program):
    assert evidence_error(searcher, program) < 4
