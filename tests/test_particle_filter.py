"""The published particle filter, and how far it is from the distribution it is derived from."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, more_a, toy

import ppl
from ppl.searchers import SMC, BestOfN, ParticleFilter
from ppl.verifiers import FunctionVerifier

# Limits for many particles, by exact recursion over the fifteen texts: P(1) and P(at most 0).
LIMITS = [
    (ParticleFilter(2000), "last", 0.43801, 0.26837),
    (ParticleFilter(2000, "odds"), "last", 0.51493, 0.00599),
    (SMC(2000, 1.0, "multinomial"), "prod", 0.39855, 0.32553),
]


@pytest.mark.parametrize(("searcher", "aggregate", "one", "low"), LIMITS)
def test_three_filters_have_three_limits(searcher, aggregate, one, low):
    runs = [searcher.run(toy, aggregate, seed=s).marginal() for s in range(2)]
    assert sum(r[1] for r in runs) / 2 == pytest.approx(one, abs=0.03)
    assert sum(r.get(k, 0.0) for r in runs for k in (-3, -2, -1, 0)) / 2 == pytest.approx(
        low, abs=0.02
    )


@pytest.mark.parametrize("weight", ["exp", "odds"])
def test_probabilities_of_every_round_are_the_published_softmax(weight):
    search = ParticleFilter(6, weight, temperature=0.5).begin(toy, "last", seed=3)
    before = [search.tree.root] * 6
    while not search.over:
        search.step()
        grown = iter(n for n in search.tree.nodes if n.parent in before and n.parent.open)
        # Finished particles are scored again with their last score: that is what was published.
        pool = [next(grown) if node.open else node for node in before]
        scores = [more_a(node.text) for node in pool]
        raw = scores if weight == "exp" else [math.log(r / (1 - r)) for r in scores]
        roots = [math.exp(x / 0.5) for x in raw]
        expected = [x / sum(roots) for x in roots]
        assert search.notes[-1]["probabilities"] == pytest.approx(expected)
        before = search.state.nodes
        assert all(node in pool for node in before)
    assert search.run().log_evidence is None


def test_one_particle_is_one_sample():
    for seed in range(20):
        filtered, plain = (s.run(toy, "last", seed=seed) for s in (ParticleFilter(1), BestOfN(1)))
        assert [str(s.text) for s in filtered.samples] == [str(s.text) for s in plain.samples]


def test_the_dead_are_never_drawn():
    """exp(0) is not zero: what a condition has ruled out must not come back."""

    def program() -> int:
        coin = pyro.sample("coin", dist.Bernoulli(0.2))
        ppl.condition(bool(coin == 1))
        pyro.sample("more", dist.Bernoulli(0.5))
        pyro.factor("end", torch.tensor(-0.1))
        return int(coin)

    posterior = ParticleFilter(30).run(program, seed=1)
    assert {s.value for s in posterior.samples} == {1}


def test_certain_rewards_have_no_odds():
    sure = FunctionVerifier(lambda text: 1.0, name="sure")

    def program() -> str:
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("ok", sure(text), obs=True)
        return text.text

    assert ParticleFilter(3).run(program).best is not None
    with pytest.raises(ppl.PPLError, match="odds are not finite; give the verifier a floor"):
        ParticleFilter(3, "odds").run(program)


@pytest.mark.parametrize("bad", [{"num_particles": 0}, {"weight": "prob"}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        ParticleFilter(**{"num_particles": 2, **bad})
