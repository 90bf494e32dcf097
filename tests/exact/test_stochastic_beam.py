"""Stochastic beam search as written and as released: who is kept, by enumeration."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pyro
import pytest
from programs import TOY, VERIFIERS, toy

import ppl
from ppl.searchers import BeamSearch, StochasticBeamSearch


def pool():
    """Three first steps of the toy: judged .9, .3 and .6, of probability .5, .3 and .2."""
    tree = ppl.Tree(toy, ("prod",), seed=0)
    children = {child.step: child for child in tree.expand([tree.root], 60)}
    return tree, [children[s] for s in ("a", "b", "")]


def inclusion(weights, k):
    """Of draws one after the other without replacement."""
    found = np.zeros(len(weights))
    for order in permutations(range(len(weights)), k):
        p, left = 1.0, sum(weights)
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        found[list(order)] += p
    return found


E = [0.9**0.5 * 0.5**0.5, 0.3**0.5 * 0.3**0.5, 0.6**0.5 * 0.2**0.5]
LAWS = {
    "paper": [math.exp(e / 0.5) for e in E],
    "released": [e ** (1 / 0.5) for e in E],
}


@pytest.mark.parametrize("form", LAWS)
def test_inclusion_probabilities_of_two_out_of_three(form):
    searcher, runs = StochasticBeamSearch(2, form=form), 3000
    tree, nodes = pool()
    seen = np.zeros(3)
    for number in range(runs):
        seen[[nodes.index(node) for node in searcher._keep(tree, nodes, number)]] += 1
    assert seen / runs == pytest.approx(inclusion(LAWS[form], 2), abs=4 * 0.5 / math.sqrt(runs))


def test_the_two_forms_are_far_apart():
    """The best of the three is kept surely more often by its ratio of scores squared."""
    paper, released = (inclusion(LAWS[form], 1) for form in ("paper", "released"))
    assert released[0] / released[1] == pytest.approx((E[0] / E[1]) ** 2)
    assert 1.0 < paper[0] / paper[1] < 2.3


@pytest.mark.parametrize("form", LAWS)
def test_a_cold_one_keeps_the_best(form):
    tree, nodes = pool()
    cold = StochasticBeamSearch(2, temperature=1e-6, form=form)
    kept = set(map(id, BeamSearch(2, likelihood=0.5)._keep(tree, nodes, 0)))
    assert set(map(id, cold._keep(tree, nodes, 0))) == kept


def test_released_scores_are_means_over_steps_of_what_a_token_is_worth():
    def two_symbols_a_step() -> str:
        text = TOY.prompt("^")
        for t in range(2):
            step = pyro.sample(f"step_{t}", TOY(text, max_tokens=2))
            text = text + step
            pyro.sample(f"ok_{t}", VERIFIERS["last"](text), obs=True)
            if step.finished:
                break
        return text.text

    tree = ppl.Tree(two_symbols_a_step, seed=1)
    leaves = tree.rollout(tree.expand([tree.root], 40))
    leaf = next(node for node in leaves if node.depth == 2)
    first, second = (node.records[0] for node in leaf.path[1:])
    c = [leaf.parent.value, leaf.value / leaf.parent.value]
    p = [math.exp(r.prior() / len(r.value.tokens)) for r in (first, second)]
    product = math.prod(a**0.3 * b**0.7 for a, b in zip(c, p, strict=True))
    searcher = StochasticBeamSearch(2, form="released", likelihood=0.7)
    (score,) = searcher._log_scores(tree, [leaf])
    assert math.exp(score) == pytest.approx(product**0.5)
    (whole,) = searcher.with_(normalise=False)._log_scores(tree, [leaf])
    assert math.exp(whole) == pytest.approx(product)


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="form='published'"):
        StochasticBeamSearch(2, form="published")
