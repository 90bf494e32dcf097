"""VectorizedSMC: the laws of SMC on programs that run once for all particles."""

from __future__ import annotations

import asyncio
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import HMM_EMISSION, HMM_INITIAL, HMM_TRANSITION, TOY, hmm

import ppl
from ppl.errors import (
    AllParticlesDeadError,
    DuplicateSiteError,
    NonDeterministicProgramError,
    ProgramError,
    WeightError,
)
from ppl.searchers import SMC, VectorizedSMC

OBSERVED = (0.3, -0.5, 1.2, 0.7, 1.9)
SYMBOLS = (0, 2, 1, 2, 2)


def walk(observations=OBSERVED):
    """x' = .9 x + N(0, .5), y = 1.5 x + N(0, .8); returns the first and the last state."""
    first = x = pyro.sample("x_0", dist.Normal(torch.tensor(0.0), 1.0))
    for t, y in enumerate(observations):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(1.5 * x, 0.8), obs=torch.tensor(y))
    return torch.stack([first, x], -1)


def walk_exactly(observations=OBSERVED):
    """Evidence, and the posterior means of the first and the last state, by linear algebra."""
    n = len(observations)
    prior = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            spread = 0.81 ** min(i, j) + 0.25 * sum(0.81**k for k in range(min(i, j)))
            prior[i, j] = 0.9 ** abs(i - j) * spread
    y = np.array(observations)
    covariance = 2.25 * prior + 0.64 * np.eye(n)
    solved = np.linalg.solve(covariance, y)
    log_evidence = -(np.linalg.slogdet(2 * math.pi * covariance)[1] + y @ solved) / 2
    means = 1.5 * prior @ solved
    return math.exp(log_evidence), means[0], means[-1]


def symbols():
    """The hidden Markov model of programs.py, for rows."""
    state = pyro.sample("x_0", dist.Categorical(HMM_INITIAL))
    for t, y in enumerate(SYMBOLS):
        if t:
            state = pyro.sample(f"x_{t}", dist.Categorical(HMM_TRANSITION[state]))
        pyro.sample(f"y_{t}", dist.Categorical(HMM_EMISSION[state]), obs=torch.tensor(y))
    return state


def standard_errors(values, exact) -> float:
    return abs(np.mean(values) - exact) / (np.std(values, ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize(
    "searcher",
    [VectorizedSMC(6), VectorizedSMC(3, 1.0, "multinomial"), VectorizedSMC(4, 0.9, "ssp")],
    ids=repr,
)
def test_evidence_of_linear_gaussian_and_discrete_models(searcher):
    for program, exact in [
        (walk, walk_exactly()[0]),
        (symbols, math.exp(ppl.enumerate_program(hmm, SYMBOLS).log_evidence)),
    ]:
        runs = [searcher.run(program, seed=seed) for seed in range(250)]
        assert standard_errors([math.exp(p.log_evidence) for p in runs], exact) < 4
        assert any(note["resampled"] for p in runs for note in p.history)


def test_means_of_early_and_late_states():
    """The first state has gone through all resamplings."""
    _, first, last = walk_exactly()
    runs = [VectorizedSMC(1000, 1.0).run(walk, seed=seed) for seed in range(20)]
    for i, exact in enumerate((first, last)):
        means = [p.expectation(lambda value, i=i: float(value[i])) for p in runs]
        assert standard_errors(means, exact) < 4
        assert np.mean(means) == pytest.approx(exact, abs=0.05)


def test_the_same_law_as_smc():
    ours = [VectorizedSMC(4, 1.0).run(walk, seed=seed).log_evidence for seed in range(300)]
    plain = SMC(4, 1.0).run_many(walk, [()] * 100, seed=range(100))
    log_evidences = [p.log_evidence for p in plain]
    error = np.hypot(np.std(ours) / math.sqrt(300), np.std(log_evidences) / math.sqrt(100))
    assert abs(np.mean(ours) - np.mean(log_evidences)) < 4 * error


def accumulating():
    """Variables of the program's own, a vector, a deterministic value and a factor."""
    total = torch.zeros(())
    for t in range(4):
        step = pyro.sample(f"s_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        total = total + step[..., 0]
        double = pyro.deterministic(f"d_{t}", 2 * total)
        pyro.factor(f"f_{t}", torch.where(double > 0, 2.0, -1.0))
    return total


def test_what_the_program_computes_follows_the_ancestors():
    posterior = VectorizedSMC(50, 1.0).run(accumulating, seed=0)
    assert any(note["resampled"] for note in posterior.history)
    for sample in posterior.samples:
        nodes = sample.trace.nodes
        steps = [nodes[f"s_{t}"]["value"] for t in range(4)]
        assert all(step.shape == (2,) for step in steps)
        sums = np.cumsum([float(step[0]) for step in steps])
        assert sample.value == pytest.approx(sums[-1], abs=1e-5)
        assert [float(nodes[f"d_{t}"]["value"]) for t in range(4)] == pytest.approx(
            2 * sums, abs=1e-5
        )
        likelihood = sum(2.0 if value > 0 else -1.0 for value in sums)
        assert sample.log_likelihood == pytest.approx(likelihood)
        prior = sum(float(dist.Normal(0.0, 1.0).log_prob(step).sum()) for step in steps)
        assert sample.log_joint == pytest.approx(prior + likelihood, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_choices_changed_in_place_are_still_what_was_chosen(threshold):
    def program(in_place):
        total = torch.zeros(())
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Normal(0.5 * total, 1.0))
            if in_place:
                x += total
                total = x
            else:
                total = x + total
            pyro.factor(f"f_{t}", 2.0 * total)
        return total

    one, other = (VectorizedSMC(20, threshold).run(program, way, seed=0) for way in (True, False))
    assert one.log_evidence == other.log_evidence
    assert [s.log_joint for s in one.samples] == [s.log_joint for s in other.samples]
    chosen = [[float(s.trace.nodes["x_1"]["value"]) for s in p.samples] for p in (one, other)]
    assert chosen[0] == chosen[1]


def test_one_seed_one_result_and_a_posterior_that_travels():
    one, same, other = (VectorizedSMC(20).run(symbols, seed=seed) for seed in (1, 1, 2))
    assert one.log_evidence == same.log_evidence != other.log_evidence
    assert one.marginal() == same.marginal()
    again = pickle.loads(pickle.dumps(one))
    assert again.map == one.map
    assert again.samples[3].trace.nodes.keys() == one.samples[3].trace.nodes.keys()
    assert VectorizedSMC(5).run(lambda: None).log_evidence == 0.0


def one_row_only():
    if pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0)) > 0:
        pyro.factor("f", torch.tensor(1.0))


def plated():
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))


def impossible():
    x = pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)))
    pyro.factor("never", torch.where(x < 2, -math.inf, 0.0))


def undefined():
    with pyro.validation_enabled(False):
        pyro.factor("f", torch.tensor(math.nan))


def twice():
    pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)))
    pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)))


VISITS: list[int] = []
HASTE: list[int] = []


def fickle():
    VISITS.append(0)
    x = pyro.sample(f"x_{len(VISITS)}", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.factor("f", 3 * x)
    pyro.sample("y", dist.Normal(x, 1.0))


def hasty():
    """Stops early when it is run again."""
    HASTE.append(0)
    if len(HASTE) == 2:
        return
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.factor("f", 9 * x)
    pyro.sample("y", dist.Normal(x, 1.0))


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (one_row_only, ProgramError, "cannot branch on a choice"),
        (lambda: float(pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))), ProgramError, "SMC"),
        (lambda: pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1)), ProgramError, "plain Pyro"),
        (lambda: ppl.twist("t", 1.0), ProgramError, "plain Pyro"),
        (plated, ProgramError, "plain Pyro"),
        (lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0)), ProgramError, r"shape \[3\]"),
        (lambda: torch.zeros(3), ProgramError, r"returned \[3\]"),
        (lambda: 7, ProgramError, "returned int"),
        (impossible, AllParticlesDeadError, "'never'"),
        (undefined, WeightError, "not a number"),
        (twice, DuplicateSiteError, "'x'"),
        (fickle, NonDeterministicProgramError, r"came to 'x_\d' where"),
        (hasty, NonDeterministicProgramError, "came to 'its end' where it had come to 'x'"),
    ],
)
def test_what_is_not_done_row_by_row_is_named(program, error, words):
    with pytest.raises(error, match=words):
        VectorizedSMC(8).run(program)


@pytest.mark.parametrize("bad", [(0,), (3, 1.5), (3, 0.5, "none")])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"num_particles|ess_threshold|resampling"):
        VectorizedSMC(*bad)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    VectorizedSMC(10).run(walk, seed=1)
    assert torch.rand(1) == expected


def test_stepped_awaited_and_many_are_what_running_is():
    searcher = VectorizedSMC(64, 0.9)
    alone = [searcher.run(walk, OBSERVED[:t], seed=t) for t in (3, 5)]
    many = searcher.run_many(walk, [(OBSERVED[:3],), (OBSERVED[:5],)], seed=[3, 5])
    awaited = asyncio.run(searcher.arun(walk, OBSERVED[:5], seed=5))
    search = searcher.begin(walk, OBSERVED[:5], seed=5)
    steps = 0
    while not search.over:
        assert search.posterior().log_evidence is None
        search.step()
        steps += 1
    assert steps == 1 + sum(note["resampled"] for note in search.notes) > 1
    others = [(awaited, alone[1]), (search.run(), alone[1])]
    for found, expected in [*zip(many, alone, strict=True), *others]:
        assert found.log_evidence == expected.log_evidence
        assert [s.log_weight for s in found.samples] == [s.log_weight for s in expected.samples]
        values = [torch.stack([s.value for s in p.samples]) for p in (found, expected)]
        assert torch.equal(*values)
