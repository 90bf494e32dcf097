"""Best-of-N: N independent runs of the program, weighted by what they observed.

This is importance sampling with the program as proposal, so the weighted set is properly weighted
and the evidence estimate is unbiased. `best` is the classic best-of-N (Cobbe et al. 2021), `vote()`
the weighted vote, and `vote(weights="flat")` self-consistency (Wang et al. 2022). With n = 1 it is
plain sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ppl.runtime.tree import Node, Tree
from ppl.searchers.search import Searcher, State, all_dead


@dataclass(frozen=True)
class BestOfN(Searcher):
    """N independent samples.

    Attributes:
        n: how many.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: at least 1")

    def start(self, tree: Tree) -> State:
        return State([tree.root] * self.n, np.zeros(self.n))

    def step(self, tree: Tree, state: State) -> State:
        nodes = list(state.nodes)
        going = [i for i, node in enumerate(nodes) if node.open]
        for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
            nodes[i] = child
        log_weights = np.array([node.log_weight for node in nodes])
        if log_weights.max() == -np.inf:
            raise all_dead(tree, nodes, self)
        over = not any(node.open for node in nodes)
        return State(nodes, log_weights, over=over, info=state.info)

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        log_evidence = float(logsumexp(state.log_weights)) - np.log(self.n)
        return state.nodes, state.log_weights.tolist(), log_evidence
