"""Gumbel MCTS: the schedule, the law of the perturbed steps, and that planning improves."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy
from scipy import stats

import ppl
from ppl.errors import AllParticlesDeadError
from ppl.language import randomness
from ppl.searchers import GumbelMCTS
from ppl.searchers.trees.gumbel_mcts import (
    Branch,
    interior,
    mixed_value,
    perturbed,
    sequential_halving,
    sigma,
)


@pytest.mark.parametrize(
    ("actions", "simulations", "turns"),
    [
        (4, 16, "0000 1111 22 33 44 55"),
        (4, 8, "0000 11 22"),
        (2, 5, "00 11 2"),
        (8, 16, "00000000 1111 22 33"),
        (3, 7, "000 11 22"),
        (5, 5, "00000"),
        (1, 3, "0 1 2"),
    ],
)
def test_schedules_of_sequential_halving(actions, simulations, turns):
    rounds = sequential_halving(actions, simulations)
    assert " ".join(str(t) * number for t, number in enumerate(rounds)) == turns


# -- the perturbed steps -----------------------------------------------------------------------


def texts(value: float = 0.5) -> str:
    """A first step of two symbols at most: seven texts. Then more, of no consequence."""
    text = TOY.prompt("^")
    text = text + pyro.sample("step", TOY(text, max_tokens=2))
    pyro.factor("liked", torch.tensor(value, dtype=torch.float64).log())
    first = text.text + "$" * text.finished
    pyro.sample("more", dist.Normal(0.0, 1.0))
    pyro.factor("no more", torch.tensor(0.0))
    return first


def first_steps() -> dict[str, float]:
    return ppl.enumerate_program(_one_step).marginal()


def _one_step() -> str:
    text = TOY.prompt("^")
    text = text + pyro.sample("step", TOY(text, max_tokens=2))
    return text.text + "$" * text.finished


def test_arrivals_are_gumbel_noise_on_the_log_probabilities():
    """The first arrival of a step that is drawn with probability p: noise plus log p, and noises
    of different steps are independent."""
    probabilities = first_steps()
    names = list(probabilities)
    p = np.array([probabilities[name] for name in names])
    rng = np.random.default_rng(0)
    noise = []
    for _ in range(1500):
        draws, gumbels = rng.choice(len(p), 300, p=p), perturbed(300, rng)
        assert (np.diff(gumbels) < 0).all()
        firsts = [int(np.argmax(draws == a)) for a in range(len(p))]
        noise.append(gumbels[firsts] - np.log(p))
    columns = np.array(noise).T  # [7, 1500]
    for column in columns:
        assert stats.kstest(column, "gumbel_r").pvalue > 1e-3
    off_diagonal = np.corrcoef(columns)[~np.eye(len(p), dtype=bool)]
    assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(1500)


def test_considered_steps_are_the_distinct_draws_with_their_arrivals():
    search = GumbelMCTS(12, 12).begin(texts, seed=5)
    search.step()
    drawn = [node for node in search.tree.nodes if node.depth == 1]
    assert len(drawn) == 12
    steps = [node.choices for node in drawn]
    expected = [k for k, step in enumerate(steps) if step not in steps[:k]]
    assert search.state.actions == tuple(drawn[k] for k in expected)
    assert 1 < len(expected) < 12
    everything = perturbed(12, randomness.generator(5, "gumbel"))
    assert search.state.gumbels == pytest.approx(everything[expected])


@pytest.mark.parametrize(("simulations", "actions"), [(1, 16), (5, 3), (12, 6)])
def test_equal_values_decide_as_the_model_would(simulations, actions):
    """The law of the decision is softmax(logits): that of a step of the language model."""
    runs = GumbelMCTS(simulations, actions).run_many(texts, [()] * 700, seed=range(700))
    seen = Counter(run.samples[0].value for run in runs)
    exact = first_steps()
    assert set(seen) <= set(exact)
    expected = [700 * p for p in exact.values()]
    assert stats.chisquare([seen[name] for name in exact], expected).pvalue > 1e-3


# -- planning ----------------------------------------------------------------------------------

PRIOR = torch.tensor([0.45, 0.25, 0.15, 0.1, 0.05], dtype=torch.float64)
REWARD = torch.tensor([0.3, 0.5, 0.2, 0.9, 0.6], dtype=torch.float64)


def bandit() -> int:
    """Values are exact: all that is uncertain is what is drawn."""
    arm = pyro.sample("arm", dist.Categorical(PRIOR))
    pyro.factor("reward", REWARD[int(arm)].log())
    return int(arm)


@pytest.mark.parametrize("simulations", [2, 4, 16])
@pytest.mark.parametrize("value_scale", [0.01, 0.1])
def test_exact_values_improve_the_policy(simulations, value_scale):
    searcher = GumbelMCTS(simulations, 8, value_scale=value_scale)
    searches = [searcher.begin(bandit, seed=s) for s in range(300)]
    gains = []
    for search in searches:
        search.run()
        chosen = search.posterior().samples[0].value
        # Never worse than the first draw, which follows the prior.
        gains.append(float(REWARD[chosen] - REWARD[search.state.actions[0].result]))
    assert min(gains) >= 0
    assert np.mean(gains) > 4 * np.std(gains) / math.sqrt(300)
    values = [float(REWARD[s.posterior().samples[0].value]) for s in searches]
    prior = float(PRIOR @ REWARD)
    assert np.mean(values) - prior > 3 * np.std(values) / math.sqrt(300)


def test_two_steps_are_decided_by_the_improved_policy():
    """Two are never halved, so the law of the decision is softmax(logits + sigma(q)), exactly."""

    def two_arms() -> int:
        arm = pyro.sample("arm", dist.Bernoulli(0.6))
        pyro.factor("reward", math.log(0.2 if arm == 1 else 0.7))
        return int(arm)

    runs = GumbelMCTS(20, 20, value_scale=0.02).run_many(two_arms, [()] * 600, seed=range(600))
    worse = sum(run.samples[0].value for run in runs) / 600
    boost = math.exp((50 + 10) * 0.02)  # after ten visits of each
    exact = 0.6 / (0.6 + 0.4 * boost)
    assert abs(worse - exact) < 4 * math.sqrt(exact * (1 - exact) / 600)


def test_values_of_completions_improve_the_policy():
    """Values are means of few completions here; what a step is worth is known by enumeration."""
    worth = {"a": 0.9 * 0.7038, "b": 0.3 * 0.285, "": 0.6}
    searches = [GumbelMCTS(16).begin(toy, "prod", seed=s) for s in range(150)]
    for search in searches:
        search.run()
    gains = []
    for search in searches:
        steps = {node.identity: node.step for node in search.state.actions}
        gains.append(worth[steps[search.notes[-1]["chosen"]]] - 0.46236)
    assert np.mean(gains) > 4 * np.std(gains) / math.sqrt(150)
    assert np.mean(gains) > 0.1


# -- visits ------------------------------------------------------------------------------------


def test_as_many_simulations_as_steps_visit_each_once():
    search = GumbelMCTS(6, 6).begin(bandit, seed=0)
    search.step()
    assert all(search.state.branches[a.identity].visits == 1 for a in search.state.actions)
    assert len(search.tree.nodes) == 1 + 6  # finished steps: nothing more to draw


def test_a_round_visits_the_highest_of_those_in_turn():
    search = GumbelMCTS(32, 8, value_scale=0.05).begin(toy, "prod", seed=3)
    search.step()
    state = search.state
    while not search.over:
        branches = [state.branches[a.identity] for a in state.actions]
        before = [(b.visits, b.mean) for b in branches]
        t, number = state.round, state.schedule[state.round]
        q = np.array([mean for _, mean in before])
        q = (q - q.min()) / (q.max() - q.min())
        scores = np.array(state.gumbels) + (50 + max(v for v, _ in before)) * 0.05 * q
        in_turn = [i for i, (visits, _) in enumerate(before) if visits == t]
        expected = sorted(in_turn, key=lambda i: -scores[i])[:number]
        search.step()
        state = search.state
        branches = [state.branches[a.identity] for a in state.actions]
        visited = [i for i, b in enumerate(branches) if b.visits > before[i][0]]
        assert sorted(expected) == visited
    assert sum(b.visits for b in branches) == 32


def test_of_the_most_visited_steps_one_is_decided_on():
    """However high the noise of another one is: only they have come through all rounds."""
    search = GumbelMCTS(32, 8).begin(toy, "prod", seed=3)
    search.step()
    state = search.state
    first, second = state.actions[:2]
    branches = state.branches.set(first.identity, Branch(1, 0.9))
    branches = branches.set(second.identity, Branch(2, 0.2))
    for other in state.actions[2:]:
        branches = branches.set(other.identity, Branch(1, 0.9))
    state = replace(state, branches=branches, over=True)
    assert state.gumbels[0] > state.gumbels[1]
    assert GumbelMCTS(32, 8)._chosen(state) is second


def test_statistics_add_up():
    search = GumbelMCTS(60, 4, width=3).begin(toy, "last", seed=5)
    search.run()
    nodes = {node.identity: node for node in search.tree.nodes}
    branches = search.state.branches
    assert max(nodes[i].depth for i in branches) == 3
    for identity, own in branches.items():
        below = [branches[c.identity] for c in own.children]
        assert all(c.parent is nodes[identity] for c in own.children)
        assert len(below) <= 3
        if nodes[identity].open:
            assert own.visits == 1 + sum(b.visits for b in below)
            assert own.total == pytest.approx(own.first + sum(b.total for b in below))
        else:  # visited again and again, judged once
            assert own.total == pytest.approx(own.visits * nodes[identity].value)
    simulated = [node for node in nodes.values() if node.simulated]
    assert all(node.parent.simulated or node.parent.identity in branches for node in simulated)


def test_one_visit_of_a_slot_counts_half():
    """pi' of the visited slot is .9: less one half it leads, less one whole it would not."""
    assert interior([1.0], [1], 0.0, 2, math.log(9) / 51) == 0


def test_interior_rule_in_numbers():
    assert mixed_value([0.6, 0.2], [2, 1], 0.5) == pytest.approx(0.425)
    assert mixed_value([], [], 0.5) == 0.5
    assert sigma([0.6, 0.2, 0.425], 2, 0.1) == pytest.approx([5.2, 0.0, 2.925])
    assert sigma([0.3, 0.3], 7, 0.1) == pytest.approx([0.0, 0.0])
    # pi' = .902, .005, .093 less visits / 4; where visits outrun pi', the slot not drawn yet.
    assert interior([0.6, 0.2], [2, 1], 0.5, 3, 0.1) == 0
    assert interior([0.6, 0.2], [9, 1], 0.5, 3, 0.015) == 2
    # A node whose first completion was good promises more than those below, and the other way.
    assert interior([0.6, 0.2], [1, 1], 0.9, 3, 0.1) == 2
    assert interior([0.6, 0.2], [1, 1], 0.0, 3, 0.1) == 0


def test_interior_visits_follow_the_improved_policy():
    q, visits = [0.5, 0.9, 0.1, 0.6], []
    for _ in range(400):
        slot = interior(q[: len(visits)], visits, 0.5, 4, 0.005)
        if slot == len(visits):
            visits.append(0)
        visits[slot] += 1
    improved = np.exp(sigma(q, max(visits), 0.005))
    assert np.array(visits) / 400 == pytest.approx(improved / improved.sum(), abs=0.02)


# -- results -----------------------------------------------------------------------------------


def test_completions_of_the_step_decided_on_come_first():
    search = GumbelMCTS(24, 6).begin(toy, "prod", seed=8)
    posterior = search.run()
    nodes = {node.identity: node for node in search.tree.nodes}
    chosen = nodes[posterior.history[-1]["chosen"]]
    own = [chosen in nodes[s.node].path for s in posterior.samples]
    assert own == sorted(own, reverse=True)
    assert {True, False} == set(own)
    scores = [s.score for s, mine in zip(posterior.samples, own, strict=True) if mine]
    assert scores == sorted(scores, reverse=True)
    finished = {n.identity for n in nodes.values() if n.finished}
    assert {s.node for s in posterior.samples} == finished
    assert posterior.log_evidence is None


def test_all_dead_is_found_only_at_the_end():
    def program() -> None:
        pyro.sample("arm", dist.Bernoulli(0.5))
        pyro.factor("f", 0.0)
        pyro.sample("other", dist.Bernoulli(0.5))
        ppl.condition(False, "never")

    search = GumbelMCTS(5, 2, width=2).begin(program, seed=0)
    with pytest.raises(AllParticlesDeadError, match="'never'"):
        search.run()
    assert search.state.round == len(search.state.schedule) - 1


@pytest.mark.parametrize(
    "bad", [{"simulations": 0}, {"max_actions": 0}, {"width": 0}, {"value_scale": 0.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        GumbelMCTS(**{"simulations": 4, **bad})
