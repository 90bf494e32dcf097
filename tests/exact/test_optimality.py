"""Searchers that promise an optimum, against enumeration of the toy; shares that sum up."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import TOY, VERIFIERS, difference, more_a, toy, toy_guide

import ppl
from ppl.searchers import (
    DVTS,
    REBASE,
    AStar,
    BeamSearch,
    BestFirst,
    Greedy,
    LookaheadSearch,
    StochasticBeamSearch,
)
from ppl.searchers.beams.rebase import allocate
from ppl.searchers.resampling import without_replacement

PROBABILITY = {"a": 0.5, "b": 0.3, "$": 0.2}
# With this many samples of a node, all of its three successors are among them.
ALL = 60


def strings(prefix: str = "") -> list[str]:
    """The fifteen texts of the toy that begin with `prefix`."""
    if prefix.endswith("$") or len(prefix) == 3:
        return [prefix]
    return [s for symbol in "ab$" for s in strings(prefix + symbol)]


def score(string: str) -> float:
    """The verifier's probability for a beginning of a text."""
    a, b = string.count("a"), string.count("b")
    return 0.9 if a > b else 0.6 if a == b else 0.3


def joint(string: str) -> float:
    """p(string) times the verifier's probabilities of all its beginnings."""
    steps = [string[: i + 1] for i in range(len(string))]
    return math.prod(PROBABILITY[s[-1]] * score(s) for s in steps)


def written(node: ppl.Node) -> str:
    return "".join(n.step or "$" for n in node.path[1:])


def exact_cost_to_go(node: ppl.Node) -> float:
    """The joint cost of the cheapest end of a beginning."""
    so_far = written(node)
    return math.log(joint(so_far)) - math.log(max(joint(s) for s in strings(so_far)))


def a_third_of_it(node: ppl.Node) -> float:
    return exact_cost_to_go(node) / 3


def answer(posterior: ppl.Posterior) -> str:
    choices = [r.value for r in posterior.samples[0].records if r.kind == "choice"]
    return "".join(c.text or "$" for c in choices)


def pops(posterior: ppl.Posterior) -> int:
    return len(posterior.history)


def test_uniform_cost_search_finds_the_mode():
    posterior = AStar(40, ALL, cost="joint").run(toy, "prod", seed=0)
    assert answer(posterior) == max(strings(), key=joint) == "$"
    assert len(posterior.samples) == 1


def test_a_star_by_likelihood_finds_what_the_verifier_likes_most():
    posterior = AStar(40, ALL).run(toy, "prod", seed=0)
    assert answer(posterior) == "a$"
    assert posterior.samples[0].log_likelihood == pytest.approx(math.log(0.81))


@pytest.mark.parametrize("seed", range(5))
def test_a_better_bound_opens_fewer_nodes_and_finds_the_same(seed):
    searches = [
        AStar(40, ALL, cost="joint", cost_to_go=bound).run(toy, "prod", seed=seed)
        for bound in (exact_cost_to_go, a_third_of_it)
    ]
    blind = AStar(40, ALL, cost="joint").run(toy, "prod", seed=seed)
    assert {answer(s) for s in searches} == {answer(blind)} == {"$"}
    assert pops(searches[0]) == 1  # with the exact bound only the optimal path is opened
    assert pops(searches[0]) <= pops(searches[1]) <= pops(blind)


def test_costs_never_fall_along_the_pops():
    for search in (AStar(40, ALL, cost="joint"), AStar(40, ALL, cost="value")):
        costs = [note["f"] for note in search.run(toy, "last", seed=1).history]
        assert costs == sorted(costs)


def grown(aggregate: str, string: str) -> tuple[ppl.Tree, ppl.Node]:
    """A node of the toy that has written the string."""
    tree = ppl.Tree(toy, (aggregate,), seed=0)
    node = tree.root
    for symbol in string:
        node = next(n for n in tree.expand([node], ALL) if (n.step or "$") == symbol)
    return tree, node


def test_the_costs_of_a_star_in_numbers():
    tree, node = grown("last", "aba")  # worth .9, .6, .9
    ((f,),) = AStar(1, cost="value", weight=2.0).priorities(tree, [node])
    assert f == pytest.approx(0.3 + 2 * 0.1)
    bounded = AStar(1, cost="joint", cost_to_go=lambda _: 5.0, weight=2.0)
    for string, to_go in (("ab", 10), ("a$", 0)):  # nothing is to come of what has finished
        tree, node = grown("prod", string)
        ((f,),) = bounded.priorities(tree, [node])
        assert f == pytest.approx(-math.log(joint(string)) + to_go)


def test_best_first_without_preferences_goes_level_by_level():
    def flat() -> int:
        text = TOY.prompt("^")
        for t in range(3):
            step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
            text = text + step
            ppl.twist(f"t_{t}", 0.0)
            if step.finished:
                break
        return difference(text)

    search = BestFirst(30, 4).begin(flat, seed=0)
    search.run()
    order = [i for note in search.notes for i in note["nodes"]]
    depths = [next(n.depth for n in search.tree.nodes if n.identity == i) for i in order]
    assert depths == sorted(depths)


def test_best_first_pops_what_is_liked_most():
    search = BestFirst(10, 3).begin(toy, "last", seed=2)
    search.run()
    by_identity = {node.identity: node for node in search.tree.nodes}
    waiting: set[int] = {0}
    for note in search.notes:
        (popped,) = note["nodes"]
        assert popped in waiting
        best = max(by_identity[i].log_promise for i in waiting)
        assert by_identity[popped].log_promise == best
        children = [n for n in search.tree.nodes if n.parent is by_identity[popped]]
        distinct = {n.choices: n.identity for n in reversed(children)}
        waiting = (waiting - {popped}) | {i for i in distinct.values() if by_identity[i].open}


@pytest.mark.parametrize(("share", "best"), [(0.0, "a$"), (0.5, "$"), (1.0, "$")])
def test_beam_search_with_full_width_finds_the_maximum(share, best):
    """Of the verifier, of the posterior, and of the model's own likelihood."""
    posterior = BeamSearch(15, ALL, likelihood=share).run(toy, "prod", seed=0)
    samples = [s for s in posterior.samples if s.trace is not None]
    assert len(samples) == 15
    assert answer(posterior) == best
    ranks = [
        (1 - share) * s.log_likelihood + share * (s.log_joint - s.log_likelihood) for s in samples
    ]
    assert ranks == sorted(ranks, reverse=True)


def test_stochastic_beam_search_without_heat_is_beam_search():
    cold = StochasticBeamSearch(2, 3, likelihood=0.5, temperature=1e-9).run(toy, "prod", seed=3)
    plain = BeamSearch(2, 3, likelihood=0.5).run(toy, "prod", seed=3)
    assert [s.value for s in cold.samples] == [s.value for s in plain.samples]
    hot = StochasticBeamSearch(2, 3, temperature=1e9)
    kept = {tuple(s.value for s in hot.run(toy, "prod", seed=i).samples) for i in range(20)}
    assert len(kept) > 3


def test_lookahead_scores_where_candidates_lead():
    """After the most likely tokens to the end, every first step has its own final score."""
    search = LookaheadSearch(1, ALL, lookahead=3).begin(toy, "last", seed=0)
    search.step()
    (kept,) = search.state.nodes
    # a leads to aaa (.9), b to baa (.9), $ is .6: the first drawn of a and b is kept, never $.
    assert kept.step in ("a", "b")
    ahead = [n for n in search.tree.nodes if n.simulated]
    assert {n.text.text for n in ahead if n.depth == 3} == {"aaa", "baa"}
    assert search.run().best == 3 if kept.step == "a" else 1
    for seed in range(3):
        plain = BeamSearch(2, 3).run(toy, "last", seed=seed)
        none = LookaheadSearch(2, 3, lookahead=0).run(toy, "last", seed=seed)
        assert [s.value for s in plain.samples] == [s.value for s in none.samples]


def test_greedy_takes_the_most_likely_and_remembers_its_probability():
    posterior = Greedy().run(toy, "prod", seed=0)
    assert answer(posterior) == "aaa"
    (sample,) = posterior.samples
    assert sample.log_joint == pytest.approx(math.log(joint("aaa")))
    assert Greedy().run(toy, "prod", seed=1).best == posterior.best == 3


def test_a_greedy_draw_comes_with_its_probability_for_nothing():
    """Read off the logits that it was drawn from: the model is not asked again."""
    tree = ppl.Tree(toy, ("prod",), seed=0)
    (end,) = tree.rollout([tree.root], greedy=True)
    asked = TOY.calls
    assert math.fsum(r.prior() for r in end.history if r.kind == "choice") == pytest.approx(
        3 * math.log(0.5)
    )
    assert TOY.calls == asked


def test_draws_without_replacement_have_the_enumerated_probabilities():
    weights, rng, n = np.array([0.5, 0.3, 0.2]), np.random.default_rng(0), 20_000
    counts = Counter(tuple(without_replacement(np.log(weights), 2, rng)) for _ in range(n))
    for i, j in itertools.permutations(range(3), 2):
        p = weights[i] * weights[j] / (1 - weights[i])
        assert abs(counts[i, j] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_stochastic_beams_cool_down(monkeypatch):
    """The log-weights of the draw grow with the rounds as tau falls."""
    seen = []

    def spy(log_weights, count, rng):
        seen.append(list(log_weights))
        return list(range(min(count, len(log_weights))))

    monkeypatch.setattr("ppl.searchers.beams.beam.without_replacement", spy)
    for decay in (1.0, 0.5):
        StochasticBeamSearch(2, 3, temperature=0.8, decay=decay).run(toy, "prod", seed=0)
    half = len(seen) // 2
    for t, (warm, cool) in enumerate(zip(seen[:half], seen[half:], strict=True)):
        assert cool == pytest.approx([w * 2**t for w in warm])
        assert max(warm) <= 1 / 0.8
        assert min(warm) > 0  # exp(score) / tau: a score of zero is the worst there is


@given(
    rewards=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    budget=st.integers(0, 300),
    temperature=st.floats(1e-3, 1e3),
)
def test_rebase_shares_sum_to_the_budget(rewards, budget, temperature):
    shares = allocate(rewards, budget, temperature)
    assert sum(shares) == budget
    assert min(shares) >= 0
    pairs = sorted(zip(rewards, shares, strict=True), reverse=True)
    for (better, more), (worse, less) in itertools.pairwise(pairs):
        assert better == worse or more >= less - 1  # a ceiling may cost the next one a share


def test_rebase_shares_of_the_published_code():
    assert allocate([0.9, 0.8, 0.5, 0.1], 16, 0.2) == [10, 5, 1, 0]
    assert allocate([0.9, 0.9, 0.9], 16, 0.1) == [6, 5, 5]
    assert allocate([0.1, 0.9, 0.5], 12, 1e12) == [4, 4, 4]  # hot: equal
    assert allocate([0.1, 0.9, 0.5], 12, 1e-3) == [0, 12, 0]  # cold: the best takes all


@pytest.mark.parametrize("seed", range(10))
def test_rebase_finds_as_many_solutions_as_asked(seed):
    search = REBASE(7, 0.1).begin(toy, "last", seed=seed)
    posterior = search.run()
    assert sum(node.finished for node in search.state.nodes) == len(posterior.samples) == 7
    widths = [note["width"] for note in search.notes]
    assert widths[0] == 7
    assert widths == sorted(widths, reverse=True)


def test_dvts_goes_by_what_is_liked_and_not_by_the_weight():
    """With a guide, `$` gains the most weight: it is proposed least."""
    search = DVTS(1, 40).begin(toy, "last", seed=0, guide=toy_guide)
    search.step()
    assert [node.step for node in search.state.nodes] == ["a"]


def test_dvts_subtrees_go_on_from_their_best_child():
    search = DVTS(3, 4).begin(toy, "last", seed=1)
    search.run()
    chosen = {n.identity for n in search.tree.nodes for n in n.path} - {0}
    expanded = {n.parent.identity for n in search.tree.nodes if n.parent} - {0}
    assert chosen >= expanded
    for parent in expanded:
        node = next(n for n in search.tree.nodes if n.identity == parent)
        siblings = [n for n in search.tree.nodes if n.parent is node.parent]
        if node.parent is search.tree.root:  # three subtrees start here, four children each
            number = [s.identity for s in siblings].index(parent) // 4
            siblings = siblings[4 * number : 4 * number + 4]
        assert node.log_promise == max(s.log_promise for s in siblings)
    assert len(search.state.nodes) == 3
    assert all(sample.value is not None for sample in search.posterior().samples)


def test_the_oracle_of_this_file_is_the_program():
    exact = ppl.enumerate_program(toy, "prod")
    assert math.exp(exact.log_evidence) == pytest.approx(sum(map(joint, strings())))
    assert VERIFIERS["prod"].name
    assert more_a(TOY.prompt("^") + TOY.continuation("a")) == score("a")
