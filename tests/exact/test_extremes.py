"""Verifiers that know nothing, everything, or are asked in another order (specification 8.2)."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import toy
from scipy.stats import chisquare

import ppl
from ppl.runtime.tree import Tree
from ppl.searchers import (
    ABMCTSA,
    DVTS,
    MCTS,
    REBASE,
    SMC,
    AStar,
    BeamSearch,
    BestFirst,
    BestOfN,
    GumbelMCTS,
    LookaheadSearch,
    MultiPerspective,
    RolloverBudgetForcing,
)
from ppl.verifiers import FunctionVerifier

LETTERS = ppl.TableLM({"a": 0.6, "b": 0.4}, symbols="^ab$", end="$")


def spelled(verifier, steps=3):
    text = LETTERS.prompt("^")
    for t in range(steps):
        text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=1))
        pyro.sample(f"ok_{t}", verifier(text), obs=True)
    return text.text


# -- a verifier that knows nothing -----------------------------------------------------------------

indifferent = FunctionVerifier(lambda text: 0.5, name="indifferent", aggregate="last")


@pytest.mark.parametrize(
    "searcher",
    [
        BestOfN(4),
        BeamSearch(2, 3),
        LookaheadSearch(2, 2),
        DVTS(2, 3),
        REBASE(4),
        BestFirst(5, 2),
        MCTS(4, 2),
        GumbelMCTS(4, 3),
        ABMCTSA(9),
        RolloverBudgetForcing(6, 3),
    ],
    ids=repr,
)
def test_with_a_constant_verifier_the_answer_is_a_sample_of_the_model(searcher):
    runs = searcher.run_many(spelled, [(indifferent,)] * 400, seed=range(400))
    count = Counter(run.best for run in runs if run.best is not None)
    assert count.total() == len(runs)
    texts = [a + b + c for a in "ab" for b in "ab" for c in "ab"]
    expected = [count.total() * math.prod(0.6 if x == "a" else 0.4 for x in t) for t in texts]
    assert chisquare([count[text] for text in texts], expected).pvalue > 1e-4


def test_with_a_constant_verifier_the_posterior_is_the_prior():
    posterior = SMC(2000, 1.0).run(spelled, indifferent, seed=0)
    share = posterior.marginal(lambda value: value.count("b"))
    for b in range(4):
        p = math.comb(3, b) * 0.4**b * 0.6 ** (3 - b)
        assert abs(share[b] - p) < 4 * math.sqrt(p * (1 - p) / 2000)
    assert posterior.log_evidence == pytest.approx(math.log(0.5))


# -- a verifier that knows everything --------------------------------------------------------------

SOLUTIONS = ("bbab", "bbba")


def chance(text) -> float:
    """Probability that the model ends at a solution from here."""
    written = text.text
    rest = [s[len(written) :] for s in SOLUTIONS if s.startswith(written)]
    return sum(math.prod(0.6 if x == "a" else 0.4 for x in r) for r in rest)


oracle = FunctionVerifier(chance, name="oracle", meaning="value", aggregate="last")


@pytest.mark.parametrize(
    "searcher",
    [
        BeamSearch(1, 16),
        DVTS(1, 16),
        BestFirst(5, 16),
        AStar(5, 16, cost="value"),
        MultiPerspective(5, 16, ("likelihood",)),
        REBASE(40),
        MCTS(120, 12, evaluation="verifier", exploration=0.1),
        SMC(60, 1.0),
    ],
    ids=repr,
)
def test_the_exact_chance_of_success_leads_to_a_solution(searcher):
    """The model alone solves 7.7% of the problems; enough draws show all successors."""
    solved = [searcher.run(spelled, oracle, 4, seed=s).best in SOLUTIONS for s in range(12)]
    assert all(solved)


# -- in another order ------------------------------------------------------------------------------


def drifting():
    """Continuous: no two children are alike."""
    x = 0.0
    for t in range(3):
        x = x + float(pyro.sample(f"x_{t}", dist.Normal(torch.tensor(0.0), 1.0)))
        pyro.factor(f"score_{t}", torch.tensor(-((x - 1.0) ** 2)))
    return round(x, 6)


def grown(searcher):
    search = searcher.begin(drifting, seed=5)
    search.run()
    return search.tree, sorted(sample.value for sample in search.posterior().samples)


@pytest.mark.parametrize(
    "searcher",
    [
        BeamSearch(3, 4),
        DVTS(2, 4),
        BestFirst(6, 3),
        AStar(9, 3),
        MultiPerspective(6, 3, ("prior",)),
    ],
    ids=repr,
)
def test_the_order_of_children_does_not_matter(searcher, monkeypatch):
    """Children handed over the other way round, each with its own score: the same are chosen."""
    expand = Tree.expand

    @functools.wraps(expand)
    def reversed_within(self, nodes, counts=1, decide=None):
        children = expand(self, nodes, counts, decide)
        place = {node: i for i, node in enumerate(nodes)}
        return sorted(children, key=lambda c: (place[c.parent], -c.identity))

    first, _ = grown(searcher)
    scores = {n.identity: n.log_likelihood for n in first.nodes}
    monkeypatch.setattr(Tree, "expand", reversed_within)
    second, results = grown(searcher)
    # Numbers of later children follow the order, so the first two levels are what can be compared.
    level = {n.identity for n in first.nodes if n.depth == 1}
    assert {n.identity for n in second.nodes if n.depth == 1} == level
    assert all(scores[i] == {n.identity: n.log_likelihood for n in second.nodes}[i] for i in level)

    def expanded(tree):
        return {n.parent.identity for n in tree.nodes if n.depth == 2}

    assert expanded(second) == expanded(first)
    assert results


# -- many samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", [BestOfN(1500), SMC(1500, 0.9), REBASE(600)], ids=repr)
def test_votes_of_many_samples_choose_the_mode(searcher):
    """Of the posterior for samplers; REBASE only keeps near it, and the mode is far ahead."""
    exact = ppl.enumerate_program(toy, "prod").marginal()
    mode = max(exact, key=exact.get)
    assert searcher.run(toy, "prod", seed=1).vote() == mode
