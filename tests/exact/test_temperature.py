"""Rules for the temperature of resampling: as published, and what they do to evidence and law."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from programs import kalman, toy

import ppl
from ppl.runtime.weights import ess, normalised
from ppl.searchers import SMC, EntropicAnnealing, ParticleFilter, TargetESS


def evidence_error(searcher, program, arguments, exact, seeds) -> float:
    """Distance of mean(exp(log_evidence)) from the exact value, in standard errors."""
    results = searcher.run_many(program, [arguments] * seeds, seed=range(seeds))
    estimates = np.exp([r.log_evidence for r in results])
    return abs(estimates.mean() - exact) / (estimates.std(ddof=1) / math.sqrt(seeds))


def weights_of_ess(share: float, n: int) -> np.ndarray:
    """`[n]` log-weights, one heavy and the others equal, whose ESS is that share of n."""
    # 1 / (x^2 + (1 - x)^2 / (n - 1)) = share n, the root above 1 / n
    a, b, c = n / (n - 1), -2 / (n - 1), 1 / (n - 1) - 1 / (share * n)
    x = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    weights = np.full(n, (1 - x) / (n - 1))
    weights[n // 2] = x
    assert 1 / (weights**2).sum() == pytest.approx(share * n)
    return np.log(weights) + 3.7  # weights need not sum to one


@pytest.mark.parametrize(
    ("e", "u", "expected"),
    [(0.1, 0.1, 9.0), (0.25, 0.2, 3.2), (0.2, 0.2, 4.0), (0.501, 0.1, 1.0), (0.1, 0.5, 1.0)],
)
def test_published_temperatures_by_ess(e, u, expected):
    annealing = EntropicAnnealing(100)
    assert annealing(weights_of_ess(e, 40), round(100 * u)) == pytest.approx(expected)


def test_other_published_temperatures():
    log_weights = weights_of_ess(0.3, 20)
    p = normalised(log_weights)
    h = -(p * np.log(p)).sum() / math.log(20)
    expected = 1 / (h + (1 - h) * 0.3)
    assert EntropicAnnealing(10, "entropy")(log_weights, 3) == pytest.approx(expected)
    assert EntropicAnnealing(10, "base")(log_weights, 3) == pytest.approx(1.7)
    for method in ("ess", "entropy", "base"):
        assert EntropicAnnealing(10, method)(log_weights, 5) == 1.0
        assert EntropicAnnealing(10, method, ess_threshold=0.3)(log_weights, 3) == 1.0
        assert EntropicAnnealing(10, method, early_phase=0.3)(log_weights, 3) == 1.0
        assert EntropicAnnealing(10, method)(np.zeros(1), 1) == 1.0
    # Half the particles exactly: not below the threshold.
    assert EntropicAnnealing(10)(np.array([0.0, 0.0, -np.inf, -np.inf]), 1) == 1.0
    # The dead count among the N, and weigh nothing.
    dead = np.array([0.0, 0.0, -np.inf, -np.inf, -np.inf])
    assert EntropicAnnealing(10)(dead, 2) == pytest.approx(0.8 / 0.4)
    h = math.log(2) / math.log(5)
    assert EntropicAnnealing(10, "entropy")(dead, 2) == pytest.approx(1 / (h + (1 - h) * 0.2))


def test_the_target_is_hit_where_it_can_be():
    log_weights = np.random.default_rng(0).normal(0, 3, 30)
    for share in (0.3, 0.6, 0.95):
        temperature = TargetESS(share)(log_weights, 1)
        assert temperature > 1
        assert ess(normalised(log_weights / temperature)) == pytest.approx(share * 30)
    assert TargetESS(0.5)(log_weights / 100, 1) == 1.0
    dead = np.where(np.arange(30) < 9, log_weights, -np.inf)
    temperature = TargetESS(0.5)(dead, 1)
    assert ess(normalised(dead / temperature)) == pytest.approx(9)


RULES = [
    EntropicAnnealing(60, ess_threshold=1.0),
    EntropicAnnealing(60, "base", ess_threshold=1.0),
    TargetESS(0.97),
]


class Dropping(SMC):
    """SMC that forgets what tempered resampling left of the weights."""

    def step(self, tree, state):
        state, note = super().step(tree, state)
        if note["resampled"]:
            zeros = np.zeros(self.num_particles)
            state = replace(state, weights=replace(state.weights, log_weights=zeros))
        return state, note


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_carried_weights_keep_the_evidence_exact(rule):
    """Not only in the limit: eight particles, a rule that looks at them, E[Z] = Z."""
    search = SMC(8, 1.0, resampling_temperature=rule).begin(toy, "prod", seed=1)
    assert max(note.get("temperature", 1.0) for note in search.run().history) > 1.0
    assert evidence_error(search.searcher, toy, ("prod",), 0.46236, 500) < 4


def test_dropped_weights_do_not():
    rule = EntropicAnnealing(60, "base", ess_threshold=1.0)
    searcher = Dropping(8, 1.0, resampling_temperature=rule)
    assert evidence_error(searcher, toy, ("prod",), 0.46236, 500) > 5


def test_an_adaptive_target_keeps_the_evidence_of_a_state_space_model():
    observations = (0.3, -0.5, 1.2, 0.7)
    searcher = SMC(8, 0.9, resampling_temperature=TargetESS(0.8))
    exact = math.exp(kalman_log_evidence(observations))
    assert evidence_error(searcher, kalman, (observations,), exact, 300) < 4


def kalman_log_evidence(observations) -> float:
    """By the Kalman filter."""
    mean, variance, total = 0.0, 1.0, 0.0
    for t, y in enumerate(observations):
        if t:
            mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        spread = 2.25 * variance + 0.64
        total -= ((y - 1.5 * mean) ** 2 / spread + math.log(2 * math.pi * spread)) / 2
        gain = 1.5 * variance / spread
        mean, variance = mean + gain * (y - 1.5 * mean), (1 - 1.5 * gain) * variance
    return total


def test_entropic_particle_filtering_has_the_limit_of_its_recursion():
    """As released, the answers follow a flattened law; the limit for many particles is exact."""
    rule = EntropicAnnealing(6, ess_threshold=0.9)
    law = {"": 1.0}
    heats = []
    for t in range(1, 4):
        grown: dict[str, float] = {}
        for text, p in law.items():
            open_ = len(text) < 3 and not text.endswith("$")
            steps = {"a": 0.5, "b": 0.3, "$": 0.2} if open_ else {"": 1.0}
            for step, q in steps.items():
                grown[text + step] = grown.get(text + step, 0.0) + p * q
        odds = {text: _reward(text) / (1 - _reward(text)) for text in grown}
        first = sum(p * odds[text] for text, p in grown.items())
        e = first**2 / sum(p * odds[text] ** 2 for text, p in grown.items())
        u = t / 6
        heats.append(max(1.0, (1 - u) / e) if e < 0.9 and u < 0.5 else 1.0)
        flat = {text: p * odds[text] ** (1 / heats[-1]) for text, p in grown.items()}
        law = {text: p / sum(flat.values()) for text, p in flat.items()}
    assert heats[0] > 1.2
    exact = dict.fromkeys(range(-3, 4), 0.0)
    for text, p in law.items():
        exact[text.count("a") - text.count("b")] += p
    released = ParticleFilter(1500, "odds", rule, "systematic").run(toy, "last", seed=0)
    assert [n["temperature"] for n in released.history] == pytest.approx(heats, abs=0.1)
    for answer, p in exact.items():
        assert released.marginal().get(answer, 0.0) == pytest.approx(p, abs=0.03)
    carried = SMC(1500, 1.0, resampling_temperature=rule).run(toy, "last", seed=0)
    assert carried.marginal()[1] == pytest.approx(0.431416, abs=0.03)
    assert abs(exact[1] - 0.431416) > 0.06


def _reward(text: str) -> float:
    lead = text.count("a") - text.count("b")
    return 0.9 if lead > 0 else 0.6 if lead == 0 else 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: EntropicAnnealing(0),
        lambda: EntropicAnnealing(5, "none"),
        lambda: EntropicAnnealing(5, early_phase=1.5),
        lambda: TargetESS(1.0),
        lambda: SMC(3, resampling_temperature=0.0),
        lambda: ParticleFilter(3, temperature=math.inf),
        lambda: ParticleFilter(3, resampling="bogus"),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="="):
        make()
    assert ppl.searchers.EntropicAnnealing is EntropicAnnealing
