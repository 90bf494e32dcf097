"""VGB: leaves are visited in proportion to p * A, whatever the values on the way say."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, VERIFIERS, difference

import ppl
from ppl.searchers import VGB

ANSWER_1 = 0.398553
STEPS = {"a": 0.5, "b": 0.3, "$": 0.2}


def reward(text: str) -> float:
    lead = text.count("a") - text.count("b")
    return 0.9 if lead > 0 else 0.6 if lead == 0 else 0.3


def future(text: str) -> float:
    """The optimal value over what has been observed."""
    if text.endswith("$") or len(text) == 3:
        return 1.0
    return sum(p * reward(text + s) * future(text + s) for s, p in STEPS.items())


def noise(text: str) -> float:
    """log of 3^U(-1, 1), a function of the text."""
    return math.log(3) * (2 * ((sum(ord(c) * 37**i for i, c in enumerate(text)) % 97) / 96) - 1)


def exact(text: str) -> float:
    return math.log(future(text))


def noisy(text: str) -> float:
    return math.log(future(text)) + noise(text)


def flat(text: str) -> float:
    """Undoes what was observed, so that V = 1 before the end."""
    seen = [reward(text[: t + 1]) for t in range(len(text))]
    return -math.log(math.prod(seen))


def program(value) -> int:
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
        if step.finished:
            break
        if t < 2:
            ppl.twist(f"value_{t}", value(text.text))
    return difference(text)


def whole_tree(value):
    """A walk that has grown every prefix, with all children of each."""
    searcher = VGB(1, 40, law="model")
    tree = ppl.Tree(program, (value,), seed=3)
    children, pending = {}, [tree.root]
    while pending:
        node = pending.pop()
        children[node.identity] = searcher._weighed(tree.expand([node], 40))
        pending += [child for child, _ in children[node.identity] if child.open]
    return searcher, tree, children


def stationary(searcher, tree, children):
    """What the walk visits in the long run, from its transitions."""
    nodes = [n for n in tree.nodes if n is tree.root or any(
        n is c for c, _ in children.get(n.parent.identity, ()))]  # fmt: skip
    place = {node.identity: i for i, node in enumerate(nodes)}
    moves = np.zeros((len(nodes), len(nodes)))
    for node in nodes:
        near, shares = searcher.neighbours(node, children.get(node.identity, ()))
        for there, share in zip(near, shares, strict=True):
            moves[place[node.identity], place[there.identity]] += share
    assert moves.sum(1) == pytest.approx(1.0)
    values, vectors = np.linalg.eig(moves.T)
    law = np.real(vectors[:, np.argmax(np.real(values))])
    return nodes, law / law.sum()


@pytest.mark.parametrize("value", [exact, noisy, flat], ids=lambda f: f.__name__)
def test_leaves_follow_the_target_for_any_inner_value(value):
    searcher, tree, children = whole_tree(value)
    nodes, law = stationary(searcher, tree, children)
    leaves = [(node, p) for node, p in zip(nodes, law, strict=True) if node.finished]
    assert len(leaves) == 15
    mass = sum(p for _, p in leaves)
    one = sum(p for node, p in leaves if node.result == 1) / mass
    assert one == pytest.approx(ANSWER_1, abs=1e-6)


@pytest.mark.parametrize(("value", "down"), [(exact, 0.3986), (flat, 0.428)])
def test_going_down_only_is_another_law(value, down):
    """With exact values it is right, and without any it is what plain sampling weighs last."""
    _, tree, children = whole_tree(value)
    law = {tree.root.identity: 1.0}
    ones = 0.0
    for node in sorted(tree.nodes, key=lambda n: n.depth):
        p = law.get(node.identity, 0.0)
        if node.finished:
            ones += p * (node.result == 1)
        elif p:
            kids = children[node.identity]
            weights = np.array([log_p + child.log_promise for child, log_p in kids])
            shares = np.exp(weights - weights.max())
            for (child, _), share in zip(kids, shares / shares.sum(), strict=True):
                law[child.identity] = p * share
    assert ones == pytest.approx(down, abs=2e-3)


def test_a_walk_converges_to_it():
    posterior = VGB(9000, 40, law="model").run(program, exact, seed=1)
    assert posterior.marginal()[1] == pytest.approx(ANSWER_1, abs=0.06)
    assert posterior.log_evidence is None
    again = VGB(9000, 6).run(program, flat, seed=2)  # a small tree is near it
    assert again.marginal()[1] == pytest.approx(ANSWER_1, abs=0.25)


def test_a_prefix_is_paid_for_once():
    search = VGB(400, 5).begin(program, exact, seed=0)
    search.run()
    grown = search.state.grown
    assert len({node.identity for node in grown}) == len(grown)
    assert search.tree.cost.lm_calls == 5 * len(grown)
    depths = [note["depth"] for note in search.notes]
    assert any(b < a for a, b in pairwise(depths))  # it went back


def coins() -> tuple[int, int]:
    """Two plain Pyro choices, whose values are tensors."""
    x = int(pyro.sample("x", dist.Bernoulli(0.3)))
    ppl.twist("here", 0.0)
    y = int(pyro.sample("y", dist.Bernoulli(0.3)))
    pyro.factor("f", torch.tensor(math.log(0.5 if x else 0.4), dtype=torch.float64))
    return x, y


def test_children_that_chose_equal_tensors_are_one():
    """By the model's law: apart, each would weigh p(c | x), and the likelier all the more."""
    exact = ppl.enumerate_program(coins).marginal()
    search = VGB(60, 12, law="model").begin(coins, seed=0)
    search.run()
    for children in search.state.children.values():
        shares = {node.choices[0].item(): math.exp(log_p) for node, log_p in children}
        assert shares == pytest.approx({0.0: 0.7, 1.0: 0.3}, abs=1e-6)
    walks = VGB(600, 12, law="model").run_many(coins, [()] * 8, seed=range(8))
    for value, p in exact.items():
        found = np.mean([walk.marginal().get(value, 0.0) for walk in walks])
        assert found == pytest.approx(p, abs=0.05), value
