"""Law 1: SMC and best-of-N are properly weighted. Exact evidence by enumeration."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    HMM_EMISSION,
    HMM_INITIAL,
    HMM_TRANSITION,
    TOY,
    branching,
    hmm,
    kalman,
    scored_once,
    toy,
    toy_guide,
    toy_twisted,
)

import ppl
from ppl.errors import AllParticlesDeadError
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import FunctionVerifier

SEEDS = 2000
SCHEMES = ("multinomial", "stratified", "systematic", "residual", "ssp")


def evidence_error(searcher, program, arguments=(), exact=None, seeds=SEEDS, **options) -> float:
    """Distance of mean(exp(log_evidence)) from the exact value, in standard errors."""
    if exact is None:
        exact = math.exp(ppl.enumerate_program(program, *arguments).log_evidence)
    results = searcher.run_many(program, [arguments] * seeds, seed=range(seeds), **options)
    estimates = np.exp([r.log_evidence for r in results])
    error = estimates.mean() - exact
    spread = estimates.std(ddof=1) / math.sqrt(seeds)
    return abs(error) / spread if spread > 0 else 1e9 * abs(error)


@pytest.mark.parametrize(
    ("aggregate", "exact"), [("prod", 0.46236), ("last", 0.678), ("min", 0.6015)]
)
def test_enumeration_agrees_with_the_published_toy(aggregate, exact):
    assert math.exp(ppl.enumerate_program(toy, aggregate).log_evidence) == pytest.approx(exact)


def test_enumerated_marginal_of_the_toy():
    exact = ppl.enumerate_program(toy, "prod").marginal()
    expected = (0.001577, 0.001051, 0.035330, 0.287568, 0.398553, 0.078835, 0.197087)
    assert [exact[k] for k in range(-3, 4)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_smc_evidence_every_scheme(scheme, threshold):
    assert evidence_error(SMC(4, threshold, scheme), toy, ("prod",)) < 4


@pytest.mark.parametrize("aggregate", ["last", "min", "mean", "geomean"])
def test_smc_evidence_every_aggregate(aggregate):
    assert evidence_error(SMC(3, 0.9), toy, (aggregate,)) < 4


def test_best_of_n_evidence():
    assert evidence_error(BestOfN(3), toy, ("prod",)) < 4


@pytest.mark.parametrize("before", [True, False])
def test_twists_do_not_change_the_evidence(before):
    exact = math.exp(ppl.enumerate_program(toy, "prod").log_evidence)
    assert evidence_error(SMC(4, 1.0), toy_twisted, (before,), exact) < 4


@pytest.mark.parametrize("searcher", [SMC(4, 0.9, "residual"), BestOfN(3)])
def test_guides_do_not_change_the_evidence(searcher):
    assert evidence_error(searcher, toy, ("prod",), guide=toy_guide) < 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_branching_program_with_dead_particles(scheme):
    assert evidence_error(SMC(3, 0.9, scheme), branching) < 4


def test_one_particle():
    assert evidence_error(SMC(1, 1.0), toy, ("prod",)) < 4


def test_paying_late_has_the_same_evidence_as_paying_early():
    exact = math.exp(ppl.enumerate_program(toy, "prod").log_evidence)
    assert math.exp(ppl.enumerate_program(scored_once).log_evidence) == pytest.approx(exact)
    assert evidence_error(SMC(4), scored_once, (), exact) < 4


def test_discrete_hmm_agrees_with_pyro():
    observations = (0, 2, 1, 2, 2)
    # DiscreteHMM moves once before the first observation: give it the state one step earlier.
    before = torch.linalg.solve(HMM_TRANSITION.T, HMM_INITIAL)
    assert (before >= 0).all()
    law = dist.DiscreteHMM(
        before.log(), HMM_TRANSITION.log(), dist.Categorical(HMM_EMISSION), duration=5
    )
    exact = math.exp(law.log_prob(torch.tensor(observations)))
    assert math.exp(ppl.enumerate_program(hmm, observations).log_evidence) == pytest.approx(exact)
    assert evidence_error(SMC(8), hmm, (observations,), exact, seeds=500) < 4


def test_linear_gaussian_model_agrees_with_pyro():
    observations = (0.3, -0.5, 1.2, 0.7)
    # GaussianHMM moves before its first observation: start it where one move gives N(0, 1).
    start = math.sqrt((1 - 0.25) / 0.81)
    law = dist.GaussianHMM(
        dist.Normal(torch.zeros(1), torch.full((1,), start)).to_event(1),
        torch.full((1, 1), 0.9),
        dist.Normal(torch.zeros(1), torch.full((1,), 0.5)).to_event(1),
        torch.full((1, 1), 1.5),
        dist.Normal(torch.zeros(1), torch.full((1,), 0.8)).to_event(1),
        duration=len(observations),
    )
    exact = math.exp(law.log_prob(torch.tensor(observations)[:, None]))
    assert evidence_error(SMC(16), kalman, (observations,), exact, seeds=400) < 4


def test_total_variation_shrinks_like_one_over_root_n():
    exact = ppl.enumerate_program(toy, "prod").marginal()
    sizes, seeds = (8, 32, 128), 60
    distances = []
    for n in sizes:
        runs = SMC(n).run_many(toy, [("prod",)] * seeds, seed=range(seeds))
        distances.append(np.mean([total_variation(r.marginal(), exact) for r in runs]))
    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    assert -0.65 < slope < -0.35, (slope, distances)


def test_large_n_marginal_is_the_posterior():
    exact = ppl.enumerate_program(toy, "prod").marginal()
    posterior = SMC(4000, 0.9).run(toy, "prod", seed=3)
    assert total_variation(posterior.marginal(), exact) < 0.03
    # Re-weighting finished particles (the field's classic bug) gives .471 here, exact is .3986.
    assert abs(posterior.marginal()[1] - 0.39855) < 0.03


def total_variation(p: dict, q: dict) -> float:
    return 0.5 * sum(abs(p.get(k, 0.0) - q.get(k, 0.0)) for k in {*p, *q})


def test_scaling_a_potential_adds_its_log_to_the_evidence():
    runs = [SMC(6).run(_scaled_toy, log_k, seed=5) for log_k in (0.0, 1.25)]
    assert runs[1].log_evidence - runs[0].log_evidence == pytest.approx(1.25)
    assert runs[0].marginal() == pytest.approx(runs[1].marginal())


def _scaled_toy(log_k: float) -> int:
    pyro.factor("k", torch.tensor(log_k, dtype=torch.float64))
    return toy("prod")


def test_dead_sets_count_as_zero_evidence():
    def strict():
        ppl.condition(bool(pyro.sample("x", dist.Bernoulli(0.3)) == 1), "must")

    runs = SMC(2).run_many(strict, [()] * SEEDS, seed=range(SEEDS))
    dead = [r for r in runs if isinstance(r, AllParticlesDeadError)]
    assert 0.4 * SEEDS < len(dead) < 0.6 * SEEDS  # .7 squared
    estimates = np.exp([r.log_evidence for r in runs])
    assert abs(estimates.mean() - 0.3) < 4 * estimates.std() / math.sqrt(SEEDS)


def test_odd_poisson_process():
    """Early finish with a branch-dependent condition (treeppl issue 64): (1 - e^-10) / 2."""
    exact = (1 - math.exp(-10)) / 2
    assert evidence_error(SMC(4), _odd_events, (), exact, seeds=1000) < 4


def _odd_events() -> bool:
    total, odd, k = 0.0, False, 0
    while True:
        total += float(pyro.sample(f"wait_{k}", dist.Exponential(1.0)))
        k += 1
        if total > 5:
            break
        odd = not odd
    ppl.condition(odd, "odd")
    return odd


def test_what_one_particle_observes_about_a_shared_text_says_nothing_to_others():
    """The text is made once, outside: its verdict is every particle's own to pay for."""
    shared = TOY.prompt("^") + TOY.continuation("a")
    right = FunctionVerifier(
        lambda text: 0.5 if text.tokens == shared.tokens else 0.3, name="right"
    )

    def program():
        pyro.sample("begin", right(shared), obs=True)  # .5
        text = shared + pyro.sample("step", TOY(shared, max_tokens=1))
        pyro.sample("end", right(text), obs=True)  # .3 / .5 more
        return text.text

    assert ppl.enumerate_program(program).log_evidence == pytest.approx(math.log(0.3))
    for searcher in (BestOfN(4), SMC(4)):
        for seed in range(2):
            found = searcher.run(program, seed=seed).log_evidence
            assert found == pytest.approx(math.log(0.3))
