"""Tree search: statistics, selection, and simulations side by side."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy

import ppl
from ppl.searchers import MCTS
from ppl.searchers.likelihood import log_prior
from ppl.searchers.trees.mcts import puct, uct


def test_uct_equals_a_worked_example():
    assert uct(0.5, 100, 10, math.sqrt(2)) == pytest.approx(1.459705, abs=1e-6)


def test_mcts_statistics_are_consistent():
    search = MCTS(12, width=2).begin(toy, "prod", seed=3)
    while not search.over:
        search.step()
    statistics = search.state.statistics
    root = statistics[0]
    assert root.visits == search.state.simulations
    for node in statistics.values():
        below = [statistics[c.identity] for c in node.children]
        assert sum(b.visits for b in below) <= node.visits
        if below:
            assert node.total >= sum(b.total for b in below) - 1e-12


def test_mcts_root_choice_converges_to_the_better_arm():
    """Arm 1 pays .9, arm 0 pays .1: with simulations the visits go to arm 1."""
    search = MCTS(80, width=6, exploration=0.5).begin(_two_arms, seed=0)
    while not search.over:
        search.step()
    statistics = search.state.statistics
    visits = {0: 0, 1: 0}
    for child in statistics[0].children:
        visits[int(child.choices[0])] += statistics[child.identity].visits
    assert visits[1] > 3 * visits[0] > 0


def _two_arms() -> int:
    arm = pyro.sample("arm", dist.Bernoulli(0.5))
    pyro.factor("shape", torch.tensor(0.0))
    for t in range(4):
        pyro.sample(f"noise_{t}", dist.Normal(0.0, 1.0))
        pyro.factor(f"pause_{t}", torch.tensor(0.0))
    pyro.factor("pay", torch.tensor(math.log(0.9 if arm == 1 else 0.1)))
    return int(arm)


def test_mcts_stops_when_the_tree_is_exhausted():
    posterior = MCTS(500, width=2).run(_one_coin, seed=0)
    assert len(posterior.samples) == 2


def _one_coin() -> float:
    coin = pyro.sample("coin", dist.Bernoulli(0.5))
    pyro.factor("f", torch.tensor(0.0))
    return float(coin)


def test_puct_bonus_in_numbers():
    assert uct(0.5, 100, 10, math.sqrt(2)) == pytest.approx(1.459705, abs=1e-6)
    assert puct(0.0, 0.25, 100, 10) == pytest.approx(0.285256, abs=1e-6)


@pytest.mark.parametrize("selection", ["uct", "puct"])
@pytest.mark.parametrize("evaluation", ["rollout", "verifier"])
@pytest.mark.parametrize("leaves", [1, 3, 8])
def test_statistics_of_batched_leaves_add_up(selection, evaluation, leaves):
    """Whatever was on its way together: in the end every node knows the values below it."""
    searcher = MCTS(40, 3, selection=selection, evaluation=evaluation, leaves=leaves)
    search = searcher.begin(toy, "last", seed=5)
    rounds = 0
    while not search.over:
        search.step()
        rounds += 1
    statistics, nodes = search.state.statistics, {n.identity: n for n in search.tree.nodes}
    assert search.state.simulations <= 40
    assert rounds <= search.state.simulations
    if leaves > 1:
        assert rounds < search.state.simulations
    for identity, own in statistics.items():
        below = [statistics[c.identity] for c in own.children]
        at_itself = 0 if nodes[identity] is search.tree.root else 1
        assert own.visits == at_itself + sum(s.visits for s in below)
        assert len(own.children) <= 3
        if evaluation == "verifier":
            value = nodes[identity].value if at_itself else 0.0
            assert own.total == pytest.approx(value + sum(s.total for s in below))


def test_puct_prefers_likely_steps_and_uct_does_not():
    """Equal values everywhere: only the prior tells the steps apart."""

    def model():
        text = TOY.prompt("^")
        for t in range(4):
            text += pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed=TOY.encode("ab")))
            ppl.twist(f"t_{t}", 0.0)
        return text.text

    def visits_of_a(selection):
        searcher = MCTS(60, 4, selection=selection, evaluation="verifier")
        shares = []
        for seed in range(12):
            search = searcher.begin(model, seed=seed)
            search.run()
            root = search.state.statistics[0]
            by_step = {"a": [], "b": []}
            for child in root.children:
                by_step[child.step].append(search.state.statistics[child.identity].visits)
            if by_step["a"] and by_step["b"]:
                a, b = (sum(v) / len(v) for v in by_step.values())
                shares.append(a / (a + b))
        return sum(shares) / len(shares)

    assert visits_of_a("puct") > 0.55 > visits_of_a("uct")


def test_priors_are_of_the_steps_and_not_of_their_past():
    """Both symbols are equally likely after any beginning, but not their beginnings."""
    law = {"a": 0.1, "b": 0.1, "c": 0.8}
    lm = ppl.TableLM(
        lambda prefix: law | {"$": 0.0} if len(prefix) == 1 else {"a": 0.2, "b": 0.8},
        symbols="^abc$",
    )

    def model():
        text = lm.prompt("^")
        for t in range(2):
            text += pyro.sample(f"s_{t}", lm(text, max_tokens=1))
            ppl.twist(f"t_{t}", 0.0)
        pyro.sample("end", lm(text, max_tokens=1))

    searcher = MCTS(30, 6, selection="puct", evaluation="verifier")
    search = searcher.begin(model, seed=0)
    search.run()
    statistics = search.state.statistics
    (parent, *_) = (c for c in statistics[0].children if len(statistics[c.identity].children) > 1)
    here = statistics[parent.identity]
    bonus = searcher._scores(parent, here.children, statistics, Counter())
    shares = np.array([{"a": 0.2, "b": 0.8}[c.step] for c in here.children])
    for child, share, score in zip(here.children, shares / shares.sum(), bonus, strict=True):
        own = statistics[child.identity]
        expected = puct(own.total / own.visits, share, here.visits, own.visits)
        assert score == pytest.approx(expected)


def test_the_models_opinion_knows_no_scale():
    def model():
        with pyro.poutine.scale(scale=2.0):
            pyro.sample("x", dist.Bernoulli(0.5))

    tree = ppl.Tree(model)
    (node,) = tree.expand([tree.root])
    assert log_prior(node) == pytest.approx(math.log(0.5))


def test_a_tree_with_something_open_uses_all_its_simulations():
    for seed in range(6):
        search = MCTS(14, 4).begin(toy, "prod", seed=seed)
        search.run()
        assert search.state.simulations == 14


def test_simulations_on_their_way_make_others_look_elsewhere():
    def flat():
        text = TOY.prompt("^")
        for t in range(3):
            text += pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed=TOY.encode("ab")))
            ppl.twist(f"t_{t}", 0.0)
        return text.text

    search = MCTS(4, 2, leaves=2).begin(flat, seed=0)
    search.step()
    search.step()
    root = search.state.statistics[0]
    assert [len(search.state.statistics[c.identity].children) for c in root.children] == [1, 1]
