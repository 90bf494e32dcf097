"""Multi-LLM AB-MCTS: the searcher picks who writes the next step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import contents
from scipy.stats import t as student

import ppl
from ppl.errors import ProgramError
from ppl.runtime.enumeration import enumerate_program
from ppl.runtime.tree import Tree
from ppl.searchers import ABMCTSA, ABMCTSM
from ppl.searchers.trees.actions import Actions
from ppl.verifiers import verifier

GOOD, BAD = (
    ppl.TableLM({"a": a, "b": 0.9 - a, "$": 0.1}, symbols="^ab$", end="$", name=name)
    for name, a in (("good", 0.7), ("bad", 0.1))
)


@verifier(aggregate="last")
def likes_a(text):
    return (1 + text.text.count("a")) / (2 + len(text.text))


def writers(*models, steps=3):
    """Every step is written by one of the models, chosen with probabilities 1 : 2 : 3 ..."""
    odds = 1.0 + torch.arange(len(models))
    text = GOOD.prompt("^")
    for t in range(steps):
        who = pyro.sample(f"llm_{t}", dist.Categorical(odds))
        step = pyro.sample(f"step_{t}", models[int(who)](text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", likes_a(text), obs=True)
        if step.finished:
            break
    return text.text


def uses(search):
    return Counter(
        int(r.value) for n in search.tree.nodes for r in n.records if r.name.startswith("llm")
    )


BOTH = pytest.mark.parametrize(
    "make", [ABMCTSA, lambda n, **o: ABMCTSA(n, "beta", **o), ABMCTSM], ids=["A", "A-beta", "M"]
)


@BOTH
def test_with_one_writer_the_tree_is_as_without(make):
    plain = make(40).run(writers, GOOD, seed=3)
    assert contents(make(40, actions="llm").run(writers, GOOD, seed=3)) == contents(plain)


@BOTH
def test_the_better_writer_gets_most_of_the_budget(make):
    used = Counter()
    for seed in range(4):
        search = make(80, actions="llm").begin(writers, GOOD, BAD, seed=seed)
        search.run()
        used += uses(search)
    assert used[0] > 0.65 * used.total()  # the program itself would give it a third


@BOTH
def test_memories_and_ledger(make):
    """Rewards of the whole tree, each once; tokens and calls as ever; budgets are kept."""
    search = make(50, actions="llm").begin(writers, BAD, GOOD, GOOD, seed=1)
    posterior = search.run()
    actions = search.state.actions
    for (writer,), arm in actions.number.items():
        values = [
            n.value
            for n in search.tree.nodes
            if any(r.name.startswith("llm") and int(r.value) == writer for r in n.records)
        ]
        assert actions.scores.number[arm] == len(values)
        assert actions.scores.total[arm] == pytest.approx(sum(values))
    assert posterior.cost.lm_tokens == posterior.cost.lm_calls == 50
    assert sum(actions.scores.number) == 50
    small = make(50, actions="llm").run(
        writers, BAD, GOOD, GOOD, seed=1, budget=ppl.Budget(tokens=7)
    )
    assert small.cost.lm_tokens == 7
    assert small.stopped == "budget"


@BOTH
def test_saved_and_resumed(make, tmp_path):
    whole = make(30, actions="llm").run(writers, GOOD, BAD, seed=2)
    search = make(30, actions="llm").begin(writers, GOOD, BAD, seed=2)
    for _ in range(13):
        search.step()
    search.save(tmp_path / "search")
    models = {"good": GOOD, "bad": BAD}
    again = ppl.searchers.Search.load(tmp_path / "search", program=writers, models=models)
    assert contents(again.run()) == contents(whole)


def test_actions_are_taken_with_their_posterior_probability():
    """P(mean of one arm > mean of the other) under the two Student posteriors, by quadrature."""
    actions = Actions("llm")
    scores = {1: [0.7, 0.9, 0.6], 0: [0.3, 0.6, 0.4, 0.5]}  # arms are numbered as they come
    for writer, values in scores.items():
        actions = actions.met([torch.tensor(writer)])
        for value in values:
            scored = actions.scores.add(len(actions.number) - 1, value)
            actions = replace(actions, scores=scored)
    laws = []
    for values in scores.values():
        n, mean = len(values), float(np.mean(values))
        tau2 = (0.1 + n * np.var(values) + n * mean**2 / (1 + n)) / (1 + n)
        laws.append(student(1 + n, n * mean / (1 + n), math.sqrt(tau2 / (1 + n))))
    grid = np.linspace(-8, 8, 20_001)
    expected = float((laws[0].pdf(grid) * laws[1].cdf(grid)).sum() * (grid[1] - grid[0]))
    assert expected > 0.65
    decide = actions.decide(ABMCTSA(1).draw, np.random.default_rng(0))
    n, fair = 4000, dist.Categorical(torch.ones(2))
    share = np.mean([int(decide("llm_0", fair)) == 1 for _ in range(n)])
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_what_cannot_be_is_never_taken_and_other_sites_are_drawn():
    decide = Actions("llm").decide(ABMCTSA(1).draw, np.random.default_rng(0))
    partly = dist.Categorical(torch.tensor([0.5, 0.0, 0.5]))
    assert {int(decide("llm", partly)) for _ in range(50)} == {0, 2}
    assert decide("llm_x", partly) is None
    assert decide("all_llm_0", partly) is None


@pytest.mark.parametrize("guided", [False, True])
def test_weights_of_all_values_taken_sum_to_the_evidence(guided):
    """Strata: every value of the first choice is taken once, the second one is drawn."""

    def program():
        x = pyro.sample("x", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        y = pyro.sample("y", dist.Bernoulli(0.1 + 0.3 * x))
        pyro.sample("seen", dist.Normal(x + 2 * y, 1.0), obs=torch.tensor(1.5))

    def guide():
        pyro.sample("x", dist.Categorical(torch.tensor([0.6, 0.2, 0.2])))
        pyro.sample("y", dist.Bernoulli(0.5))

    tree = Tree(program, guide=guide if guided else None, seed=5)
    n, total = 400, []
    for value in range(3):
        taken = torch.tensor(value)
        nodes = tree.expand([tree.root], n, lambda name, _, v=taken: v if name == "x" else None)
        assert all(node.choices[0] == value for node in nodes)
        total.append(np.exp([node.log_weight for node in nodes]))
    error = math.sqrt(sum(w.var() / n for w in total))
    evidence = math.exp(enumerate_program(program).log_evidence)
    assert abs(sum(w.mean() for w in total) - evidence) < 4 * error
    assert error < 0.05 * evidence


def test_sites_that_cannot_be_actions_are_named():
    def continuous():
        pyro.sample("llm_0", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="site 'llm_0': Normal is no single choice"):
        ABMCTSA(3, actions="llm").run(continuous, seed=0)
    with pytest.raises(ProgramError, match="without a choice named 'who' or 'who_0'"):
        ABMCTSA(30, actions="who").run(writers, GOOD, BAD, seed=0)


# -- the stack of actions ------------------------------------------------------------------------


@BOTH
def test_every_writer_has_arms_of_its_own(make):
    search = make(60, actions="llm", strategy="stack", batch=2).begin(writers, GOOD, BAD, seed=5)
    posterior = search.run()
    assert posterior.best is not None
    for number in search.state.branches:
        branch = search.state.branches[number]
        for action in range(2):
            mine = [
                child
                for child, maker in zip(branch.children, branch.makers, strict=True)
                if maker == action
            ]
            gen = branch.stack(action).sums[:, 0]
            assert gen[0] == len(mine)
            assert gen[1] == pytest.approx(sum(child.value for child in mine))
            below = [branch.below.sums[0, i] for i, m in enumerate(branch.makers) if m == action]
            assert branch.stack(action).sums[0].sum() == sum(below)
    used = uses(search)
    assert used[0] > 0.55 * used.total()


def test_a_stack_is_about_actions():
    with pytest.raises(ValueError, match="strategy='stack' is about actions"):
        ABMCTSA(5, strategy="stack")
