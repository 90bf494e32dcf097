"""Kernels leave their target where it is: start from the exact posterior, apply one, compare.

All starting points are exact draws (by rejection) in one tree, and one batch moves all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, VERIFIERS, toy
from scipy import stats

import ppl
from ppl.language.randomness import generator
from ppl.searchers import ParallelTempering, ParticleGibbs, Weights
from ppl.searchers.particles import conditional_smc
from ppl.searchers.particles.resample_move import move_last
from ppl.searchers.resampling import systematic


def sticky(power: float = 1.0, twisted: bool = False) -> tuple[int, ...]:
    """What is good now is likely to be good next; some finish early. Twelve texts.

    Every step pays less than the one before, whatever is drawn: comparing particles at different
    steps would show."""
    states = [0]
    for t in range(3):
        x = int(pyro.sample(f"x_{t}", dist.Bernoulli(0.9 if states[-1] else 0.2)))
        states.append(x)
        reward = (0.0 if x else -1.5) - t
        pyro.factor(f"f_{t}", torch.tensor(power * reward, dtype=torch.float64))
        if twisted:
            ppl.twist(f"twist_{t}", 0.8 * x - 0.3 * t)
        if t == 1 and pyro.sample("stop", dist.Bernoulli(0.2)) == 1:
            break
    return tuple(states[1:])


def sticky_guide(*_: object) -> None:
    for t in range(3):
        pyro.sample(f"x_{t}", dist.Bernoulli(0.5))
        if t == 1 and pyro.sample("stop", dist.Bernoulli(0.5)) == 1:
            break


def wayward() -> tuple[int, ...]:
    """Pasts with other futures: other sites, other numbers of steps, values with no chance."""
    first = int(pyro.sample("first", dist.Categorical(torch.tensor([0.3, 0.3, 0.4]))))
    pyro.factor("f", torch.tensor(-0.5 * first, dtype=torch.float64))
    if first == 0:
        other = int(pyro.sample("other", dist.Bernoulli(0.6)))
        pyro.factor("g", torch.tensor(-0.7 * other, dtype=torch.float64))
        return first, other
    allowed = {1} if first == 1 else {1, 2}
    letter = pyro.sample("second", TOY(TOY.prompt("^"), max_tokens=1, allowed=allowed))
    second = int(letter.text == "a")
    pyro.factor("h", torch.tensor(-0.4 * first * second, dtype=torch.float64))
    third = int(pyro.sample("third", dist.Bernoulli(0.2 + 0.3 * second)))
    ppl.condition(first + third > 1)
    return first, second, third


def exact_draws(tree, count, exact):
    """`[count]` finished nodes, each value as often as it should be up to rounding.

    Nodes of equal value serve by turns, so a start is as exact as a start can be."""
    leaves = tree.rollout(tree.expand([tree.root], 1500))
    pools = {value: [leaf for leaf in leaves if leaf.result == value] for value in exact}
    shares = np.array([exact[value] for value in pools])
    wanted = systematic(shares, count, generator(tree.seed, "start"))
    values = list(pools)
    return [pools[values[v]][i % len(pools[values[v]])] for i, v in enumerate(wanted)]


def p_value(nodes, program, key=lambda value: value) -> float:
    """Of the chi-square test that the results of `nodes` follow the program's posterior."""
    exact = ppl.enumerate_program(program).marginal(key)
    seen = Counter(key(node.result) for node in nodes)
    assert set(seen) <= set(exact)
    observed = [seen[value] for value in exact]
    expected = [len(nodes) * p for p in exact.values()]
    return float(stats.chisquare(observed, expected).pvalue)


def swept(tree, references, n, *, ancestor_sampling=False, exponent=1.0):
    """Every reference after one conditional sweep of its own."""
    sweeps = [
        conditional_smc.begin(tree, n, i, node, exponent) for i, node in enumerate(references)
    ]
    while any(not sweep.over for sweep in sweeps):
        going = [s for s in sweeps if not s.over]
        moved = iter(conditional_smc.advance(tree, going, ancestor_sampling=ancestor_sampling))
        sweeps = [s if s.over else next(moved) for s in sweeps]
    return [conditional_smc.draw(tree, sweep) for sweep in sweeps]


CASES = {
    "sticky": (sticky, None),
    "twisted": (partial(sticky, 1.0, True), None),
    "guided": (sticky, sticky_guide),
    "wayward": (wayward, None),
}


def test_a_finished_particle_has_weight_one_in_later_rounds_of_a_sweep():
    """Also one whose last step had a weight, as a twist was taken out there."""

    def ragged() -> None:
        first = pyro.sample("first", dist.Bernoulli(0.5))
        ppl.twist("t", 0.7)
        pyro.sample("second", dist.Bernoulli(0.5))
        if first:
            ppl.condition(True, "more")
            pyro.sample("third", dist.Bernoulli(0.5))

    tree = ppl.Tree(ragged, seed=2)
    sweep = conditional_smc.begin(tree, 40, 0)
    seen = 0
    while not sweep.over:
        before = set(map(id, sweep.nodes))
        (sweep,) = conditional_smc.advance(tree, [sweep], ancestor_sampling=False)
        for node, weight in zip(sweep.nodes, sweep.weights.log_weights, strict=True):
            if node.finished and id(node) in before:
                assert node.log_increment == pytest.approx(-0.7)
                assert weight == 0
                seen += 1
    assert seen


def test_ancestors_given_the_reference_belong_to_one_law_of_resampling():
    """Conditional resampling must be some unbiased scheme r, given that the reference survives:
    with o_i offspring of i, q(o | i is the reference) = r(o) o_i / (N W_i), one r for all i.

    To draw the free slots systematically and add the reference breaks it, although every expected
    number of offspring is right; in whole sweeps that is too small to be seen."""
    shares, runs = np.array([0.5, 0.3, 0.2]), 4000
    tree = ppl.Tree(sticky, seed=6)
    nodes = tree.expand([tree.root], 3)
    laws = []  # per reference r(o) / N and its standard error
    for i in range(3):
        order = [*(j for j in range(3) if j != i), i]
        before, weights = tuple(nodes[j] for j in order), Weights(np.log(7 * shares[order]))
        seen: Counter[tuple[int, ...]] = Counter()
        for number in range(runs):
            sweep = conditional_smc.Sweep(number, before, weights, nodes[i].path, rounds=1)
            parents = conditional_smc._resampled(tree, sweep)
            assert parents[-1] is nodes[i]
            seen[tuple(sum(p is node for p in parents) for node in nodes)] += 1
        q = {o: count / runs for o, count in seen.items()}
        scale = {o: shares[i] / o[i] for o in q}
        laws.append({o: (scale[o] * p, scale[o] * math.sqrt(p / runs)) for o, p in q.items()})
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for o in {o for o in (*laws[i], *laws[j]) if o[i] and o[j]}:
            (a, a_error), (b, b_error) = laws[i].get(o, (0.0, 0.0)), laws[j].get(o, (0.0, 0.0))
            assert abs(a - b) < 4 * math.hypot(a_error, b_error), (i, j, o, a, b)


@pytest.mark.parametrize("ancestor_sampling", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_conditional_sweep_leaves_the_posterior(case, ancestor_sampling):
    program, guide = CASES[case]
    tree = ppl.Tree(program, guide=guide, seed=1)
    before = exact_draws(tree, 1200, ppl.enumerate_program(program).marginal())
    after = swept(tree, before, 3, ancestor_sampling=ancestor_sampling)
    assert p_value(after, program) > 1e-3
    assert sum(a.result != b.result for a, b in zip(before, after, strict=True)) > 200


def test_a_tempered_sweep_leaves_the_tempered_posterior():
    tree = ppl.Tree(sticky, seed=5)
    tempered = partial(sticky, 0.4)
    before = exact_draws(tree, 1200, ppl.enumerate_program(tempered).marginal())
    assert p_value(swept(tree, before, 2, exponent=0.4), tempered) > 1e-3


@pytest.mark.parametrize("ancestor_sampling", [False, True])
def test_a_conditional_sweep_on_the_toy_language_model(ancestor_sampling):
    def program() -> str:
        text = TOY.prompt("^")
        for t in range(3):
            step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
            text = text + step
            pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
            if step.finished:
                break
        return text.text + "$" * text.finished

    tree = ppl.Tree(program, seed=1)
    before = exact_draws(tree, 800, ppl.enumerate_program(program).marginal())
    after = swept(tree, before, 2, ancestor_sampling=ancestor_sampling)
    assert p_value(after, program) > 1e-3


@pytest.mark.parametrize("last", [1, 2, 9])
@pytest.mark.parametrize("guide", [None, sticky_guide])
def test_metropolis_moves_of_the_last_steps_leave_the_posterior(last, guide):
    tree = ppl.Tree(sticky, guide=guide, seed=last)
    before = exact_draws(tree, 1500, ppl.enumerate_program(sticky).marginal())
    uniforms = generator(7, last).random(len(before))
    after, count = move_last(tree, before, 3, last, uniforms)
    assert p_value(after, sticky) > 1e-3
    assert count == sum(a is not b for a, b in zip(before, after, strict=True)) > 200


def test_moves_keep_what_was_there_before_the_last_steps():
    tree = ppl.Tree(sticky, seed=2)
    before = exact_draws(tree, 200, ppl.enumerate_program(sticky).marginal())
    after, _ = move_last(tree, before, 3, 1, np.full(200, 1e-9))
    for old, new in zip(before, after, strict=True):
        assert new.result[:2] == old.result[:2]
        if old.depth == 2:  # finished after two rounds: nothing of it is of the last round
            assert new is old


def test_exchanging_references_leaves_both_targets():
    b = 0.3
    searcher = ParallelTempering(2, 2, inverse_temperatures=(1.0, b))
    tree = ppl.Tree(sticky, seed=3)
    cold = exact_draws(tree, 2500, ppl.enumerate_program(sticky).marginal())
    hot = exact_draws(tree, 2500, ppl.enumerate_program(sticky, b).marginal())
    mixed = generator(0, "pairs").permutation(2500)
    pairs = [searcher._exchange(tree, 2 * i + 1, [cold[i], hot[j]]) for i, j in enumerate(mixed)]
    assert p_value([paths[0] for paths, _ in pairs], sticky) > 1e-3
    assert p_value([paths[1] for paths, _ in pairs], partial(sticky, b)) > 1e-3
    rate = sum(bool(note["exchanged"]) for _, note in pairs) / len(pairs)
    expected = _enumerated_acceptance(b)
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / len(pairs))


def _enumerated_acceptance(b: float) -> float:
    def likelihood(states: tuple[int, ...]) -> float:
        return math.exp(-1.5 * states.count(0) - sum(range(len(states))))

    cold = ppl.enumerate_program(sticky).marginal()
    hot = ppl.enumerate_program(sticky, b).marginal()
    return sum(
        p * q * min(1.0, (likelihood(y) / likelihood(x)) ** (1 - b))
        for x, p in cold.items()
        for y, q in hot.items()
    )


@pytest.mark.parametrize(
    "searcher",
    [
        ParticleGibbs(4, 500),
        ParticleGibbs(3, 400, ancestor_sampling=True),
        ParallelTempering(3, 200, inverse_temperatures=(1.0, 0.5, 0.0)),
    ],
    ids=repr,
)
def test_chains_converge_to_the_posterior(searcher):
    exact = ppl.enumerate_program(sticky).marginal()
    chain = searcher.run(sticky, seed=1)
    assert _distance(chain.marginal(), exact) < 0.1
    assert chain.log_evidence is None
    sweeps = np.array([s.log_weight for s in chain.samples]).reshape(searcher.sweeps, -1)
    assert np.exp(sweeps).sum(1) == pytest.approx(1.0)


def _distance(p: dict, q: dict) -> float:
    return 0.5 * sum(abs(p.get(k, 0.0) - q.get(k, 0.0)) for k in {*p, *q})


def test_ancestor_sampling_changes_early_steps_more_often():
    """With two particles a plain sweep rarely lets go of the reference's first step."""
    tree = ppl.Tree(sticky, seed=4)
    before = exact_draws(tree, 500, ppl.enumerate_program(sticky).marginal())
    changed = []
    for ancestor_sampling in (False, True):
        after = swept(tree, before, 2, ancestor_sampling=ancestor_sampling)
        changed.append(sum(a.path[1] is not b.path[1] for a, b in zip(before, after, strict=True)))
    assert changed[1] > 1.15 * changed[0]


def test_a_forced_child_is_weighed_as_if_it_had_been_proposed():
    tree = ppl.Tree(toy, ("prod",), seed=0)
    first = tree.expand([tree.root], 12)
    going = [node for node in first if node.open]
    second = tree.expand(going)
    before = tree.cost
    again = tree.force(going, second)
    assert [n.log_increment for n in again] == pytest.approx([n.log_increment for n in second])
    assert [str(n.text) for n in again] == [str(n.text) for n in second]
    assert [n.finished for n in again] == [n.finished for n in second]
    assert tree.cost.lm_tokens == before.lm_tokens
    assert tree.cost.scored_tokens == before.scored_tokens + len(going)
    assert all(n.forced and n.cost.lm_tokens == 0 for n in again)
    # It goes on like any node: a fork replays what was forced.
    grown = tree.expand([n for n in again if n.open], 2)
    assert all(n.parent.step == n.history[-4].value.text for n in grown)


def test_a_segment_that_cannot_happen_is_dead():
    tree = ppl.Tree(wayward, seed=0)
    first = tree.expand([tree.root], 30)
    by_value = {int(node.choices[0]): node for node in first}
    second = {k: tree.expand([node], 20) for k, node in by_value.items() if node.open}
    zero = next(node for node in second[2] if node.choices[0].text == "b")
    # After 1 the second is "a" for sure; after 0 there is no such site, and the end is elsewhere.
    assert all(n.dead for n in tree.force([by_value[1], by_value[0]], [zero, zero]))
    assert all(n.dead for n in tree.force([by_value[2]], [second[0][0]]))
    alive = tree.force([by_value[2]], [second[1][0]])[0]
    assert not alive.dead
    assert alive.records[0].prior() == pytest.approx(math.log(0.625))


def test_a_language_model_cannot_be_forced_to_a_number():
    def program() -> None:
        if pyro.sample("kind", dist.Bernoulli(0.5)) == 1:
            ppl.condition(True)
            pyro.sample("x", TOY(TOY.prompt("^"), max_tokens=1))
        else:
            ppl.condition(True)
            pyro.sample("x", dist.Bernoulli(0.5))

    tree = ppl.Tree(program, seed=0)
    first = {int(node.choices[0]): node for node in tree.expand([tree.root], 20)}
    second = {k: tree.expand([node])[0] for k, node in first.items()}
    assert tree.force([first[0]], [second[1]])[0].dead
    assert tree.force([first[1]], [second[0]])[0].dead
