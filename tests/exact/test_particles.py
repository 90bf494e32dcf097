"""Particle searchers against enumeration: evidence, posterior, invariance."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from programs import branching, toy

import ppl
from ppl.searchers import SMC

SEEDS = 600


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
@pytest.mark.parametrize("program", [partial(toy, "prod"), branching], ids=["toy", "branching"])
def test_temperatures_do_not_change_the_evidence(searcher, program):
    assert evidence_error(searcher, program) < 4
