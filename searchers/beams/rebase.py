"""REBASE: reward balanced search (Wu, Sun, Li, Welleck, Yang 2024, arXiv:2408.00724).

    B = N;  expand the root N times
    repeat  B -= number of children that have finished
            share B among the unfinished ones by softmax(R / T)
            expand each as often as its share says

All solutions together cost about as much as N samples. Shares are those of the published code:
from the best node down, each takes the ceiling of its part of what is left; they always sum to B
and favour the top (the paper's rounding does not sum to B). Not a sampler: offspring are decided,
not drawn, and the set follows no stated distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.language import checks
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


@dataclass(frozen=True)
class REBASE(Searcher[Frontier]):
    """Reward balanced search.

    Attributes:
        n: N, the budget of width and the number of solutions.
        temperature: T of the softmax over rewards. 0.1 in the paper, 0.2 in its code. The reward is
            the observed likelihood: with a verifier, its potential of the text so far.
    """

    n: int
    temperature: float = 0.1

    def __post_init__(self) -> None:
        checks.count(n=self.n)
        checks.positive(temperature=self.temperature)

    def start(self, tree: Tree) -> Frontier:
        """The root alone."""
        return Frontier((tree.root,))

    def step(self, tree: Tree, state: Frontier) -> tuple[Frontier, Note]:
        """Shares `n` less the finished among the open nodes by softmax of their values, and expands
        each by its share."""
        finished = [node for node in state.nodes if node.finished]
        going = [node for node in state.nodes if node.open]
        shares = allocate([node.value for node in going], self.n - len(finished), self.temperature)
        children = tree.expand(going, shares)
        # Nodes without a share are given up; what is dead gets nothing and gives its share back.
        nodes = (*finished, *(child for child in children if not child.dead))
        if not nodes:
            raise all_dead(tree, children, self)
        over = not any(node.open for node in nodes)
        return state.after(nodes=nodes, over=over), {"width": len(children)}

    def result(self, tree: Tree, state: Frontier) -> Result:
        """The frontier, weighted by likelihood."""
        return Result.by_likelihood(state.nodes)


def allocate(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """How often to expand each node; sums to the budget.

    Args:
        rewards: one per node, at least one.
        budget: B, expansions to share.
        temperature: T > 0.
    """
    scaled = np.asarray(rewards, dtype=float) / temperature
    mass = np.exp(scaled - scaled.max())
    order = np.argsort(-mass, kind="stable")
    left = np.cumsum(mass[order][::-1])[::-1]  # mass of a node and all after it
    shares = [0] * len(mass)
    for node, rest in zip(order, left, strict=True):
        if budget == 0:
            break
        # Less the rounding of the division, so that equal rewards get equal shares.
        shares[node] = min(budget, math.ceil(budget * (mass[node] / rest) - 1e-9))
        budget -= shares[node]
    return shares
