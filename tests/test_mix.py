"""OSCA: how many samples of which configuration; and best-of-N that draws them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl
from ppl.allocate import mix, mix_coverage
from ppl.errors import ArgumentError
from ppl.searchers import BestOfN
from ppl.searchers.parse import parse


def coverage(p, counts):
    return float(np.mean(1 - np.prod((1 - p) ** np.array(counts), axis=1)))


def test_two_specialists_get_one_sample_each():
    p = np.array([[0.5, 0.0], [0.0, 0.5]])
    for method in ("greedy", "climb", "exact"):
        assert mix(p, 2, method=method) == (1, 1)
    assert coverage(p, (1, 1)) == 0.5
    assert coverage(p, (2, 0)) == 0.375


def test_greedy_is_within_the_bound_of_the_optimum():
    """The bound is 1 - 1/e; random cases of all sizes are far above it, and climbing more so."""
    rng = np.random.default_rng(0)
    worst = {"greedy": 1.0, "climb": 1.0}
    for _ in range(120):
        p = rng.beta(0.4, 0.8, (rng.integers(2, 8), rng.integers(2, 4)))
        n = int(rng.integers(1, 7))
        best = max(
            coverage(p, counts)
            for counts in itertools.product(range(n + 1), repeat=p.shape[1])
            if sum(counts) == n
        )
        assert coverage(p, mix(p, n, method="exact")) == pytest.approx(best)
        for method, least in worst.items():
            worst[method] = min(least, coverage(p, mix(p, n, method=method)) / best)
    print(worst)
    assert worst["climb"] > 0.99
    assert worst["greedy"] > 0.95 > 1 - 1 / math.e


def test_more_budget_only_adds():
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 1.0, (20, 4))
    before = np.zeros(4)
    for budget in range(1, 30):
        counts = mix(p, budget)
        assert sum(counts) == budget
        assert (np.array(counts) >= before).all()
        before = np.array(counts)


def test_unequal_costs_are_paid_and_a_dear_sample_can_be_worth_it():
    p = np.array([[0.9, 0.1]])
    assert mix(p, 10, [10, 1]) == (1, 0)  # by cost alone it would be ten cheap ones: .65
    assert mix(p, 9, [10, 1]) == (0, 9)
    rng = np.random.default_rng(2)
    for _ in range(60):
        p, cost = rng.beta(0.5, 1.0, (6, 3)), rng.uniform(1, 4, 3)
        greedy, exact = (mix(p, 8, cost, method=m) for m in ("greedy", "exact"))
        assert np.dot(greedy, cost) <= 8 + 1e-9
        # The better of two greedy runs: half of 1 - 1/e (Leskovec et al. 2007).
        assert coverage(p, greedy) >= (1 - 1 / math.e) / 2 * coverage(p, exact)


def test_counted_samples_are_judged_without_bias():
    """The plug-in divides 16 samples where all with the one solve more: of a problem with one right
    sample of 16 it says 1 - (15/16)^16 = .64, not 1, and so values a second configuration."""
    rng = np.random.default_rng(3)
    for _ in range(8):
        right = rng.binomial(6, rng.beta(0.5, 1.0, (6, 3)))
        for budget in (2, 5, 9):
            exact, greedy, climb = (
                mix(right, budget, draws=6, method=m) for m in ("exact", "greedy", "climb")
            )
            best = max(
                mix_coverage(counts, right, 6).mean()
                for counts in itertools.product(range(7), repeat=3)
                if sum(counts) <= budget
            )
            assert mix_coverage(exact, right, 6).mean() == pytest.approx(best)
            for counts in (greedy, climb):
                assert sum(counts) == budget
                assert max(counts) <= 6
                assert mix_coverage(counts, right, 6).mean() >= (1 - 1 / math.e) * best
            # Greedy is what its name says: the best sample, added again and again.
            path = np.zeros(3, dtype=int)
            for _ in range(budget):
                more = [path + np.eye(3, dtype=int)[j] for j in range(3) if path[j] < 6]
                gains = [mix_coverage(counts.tolist(), right, 6).mean() for counts in more]
                path = more[int(np.argmax(np.round(gains, 12)))]
            one, other = (mix_coverage(c, right, 6).mean() for c in (greedy, path.tolist()))
            assert one == pytest.approx(other)
    right = np.array([[2, 1], [1, 0], [0, 1]])
    assert mix(right, 16, draws=16) == (16, 0)
    assert mix(right / 16, 16) == (10, 6)
    assert mix(right, 99, draws=16) == (16, 16)  # no more than were drawn


def test_what_was_not_solved_in_a_few_draws_is_not_impossible_with_a_prior():
    right, drawn = np.array([[5, 0], [5, 0]]), np.array([[100, 2], [100, 2]])
    assert mix(right / drawn, 40) == (40, 0)
    assert mix(right, 40, draws=drawn) == (40, 0)
    # (0 + .5) / 3 is more than (5 + .5) / 101.
    assert mix(right, 40, draws=drawn, prior=(0.5, 0.5)) == (0, 40)


def test_a_mix_is_judged_without_bias():
    right, drawn = np.array([[2, 0], [0, 5]]), 5
    found = mix_coverage((2, 1), right, drawn)
    assert found == pytest.approx([0.7, 1.0])  # pass@2 of (5, 2)
    assert mix_coverage((0, 0), right, drawn) == pytest.approx([0, 0])
    with pytest.raises(ArgumentError, match="more than were drawn"):
        mix_coverage((6, 0), right, drawn)


@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e15])
def test_a_mix_does_not_depend_on_the_unit_of_costs(unit):
    """As FLOPs of a sample are: gains for their cost must not be rounded away."""
    p = np.array([[0.1, 0.9], [0.1, 0.9]])
    assert mix(p, 4 * unit, unit) == (0, 4)
    assert mix(p, 4.4 * unit, [unit, 1.1 * unit]) == (0, 4)
    # Only gains for their cost find the three cheap ones.
    one = np.array([[0.6, 0.5]])
    assert mix(one, 3 * unit, [3 * unit, unit], method="greedy") == (0, 3)


def test_bad_input_is_named():
    p = np.full((2, 2), 0.5)
    for bad, match in (
        ({"budget": 0.5}, "budget"),
        ({"cost": [1.0]}, "cost"),
        ({"cost": [1.0, -1.0]}, "cost"),
        ({"cost": [1.0, 2.0], "method": "climb"}, "climb"),
        ({"draws": [3]}, "draws"),
        ({"success": [[2, 0]]}, "success"),
        ({"success": [[2, 0]], "draws": 1}, "success"),
        ({"budget": 10**6, "method": "exact"}, "exact"),
        ({"prior": (0.0, 1.0), "success": [[1, 0]], "draws": 2}, "prior"),
    ):
        with pytest.raises(ValueError, match=match):
            mix(**{"success": p, "budget": 4.0, **bad})


RIGHT = (0.9, 0.5, 0.2)


def configured():
    who = int(pyro.sample("llm", dist.Categorical(probs=torch.tensor([0.7, 0.2, 0.1]))))
    right = bool(pyro.sample("x", dist.Bernoulli(RIGHT[who])))
    pyro.factor("ok", torch.tensor(0.0 if right else math.log(0.1)))
    return who


def test_best_of_n_draws_the_mix():
    posterior = BestOfN(6, mix=(1, 3, 2)).run(configured, seed=3)
    chosen = [int(s.records[0].value) for s in posterior.samples]
    assert chosen == [1, 2, 0, 1, 2, 1]  # in turn, so that a search that is stopped has seen all
    # Which configuration was decided on weighs nothing.
    assert {round(math.exp(s.log_weight), 6) for s in posterior.samples} <= {1.0, 0.1}
    assert parse(repr(BestOfN(6, mix=(1, 3, 2)))) == BestOfN(6, mix=(1, 3, 2))
    with pytest.raises(ArgumentError, match="mix"):
        BestOfN(5, mix=(1, 3, 2))
    with pytest.raises(ArgumentError, match="no value 3"):
        BestOfN(2, mix=(1, 0, 0, 1)).run(configured, seed=0)

    def off():  # one of three configurations is switched off
        return int(pyro.sample("llm", dist.Categorical(probs=torch.tensor([0.5, 0.0, 0.5]))))

    # Counts are those of all values, whether they are possible or not.
    posterior = BestOfN(3, mix=(1, 0, 2)).run(off, seed=0)
    assert sorted(s.value for s in posterior.samples) == [0, 2, 2]
    with pytest.raises(ArgumentError, match="value 1 of site 'llm' has probability zero"):
        BestOfN(3, mix=(1, 2, 0)).run(off, seed=0)
    with pytest.raises(ppl.errors.ProgramError, match="'model'"):
        BestOfN(2, mix=(1, 1), site="model").run(configured, seed=0)


def test_the_mix_is_the_law_of_the_choice():
    """The evidence is that of the program whose configurations have the mix's shares."""
    logs = [BestOfN(6, mix=(1, 3, 2)).run(configured, seed=s).log_evidence for s in range(160)]
    found = np.exp(np.array(logs))
    one = 0.1 + 0.9 * np.array(RIGHT)  # of each configuration
    exact = np.dot([1, 3, 2], one) / 6
    assert abs(found.mean() - exact) < 3 * found.std() / math.sqrt(len(found))
    # By the program's own probabilities it is another number.
    assert abs(found.mean() - np.dot([0.7, 0.2, 0.1], one)) > 10 * found.std() / len(found) ** 0.5
