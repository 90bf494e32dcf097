"""Greedy decoding: the most likely token at every place, as a baseline.

One path; only choices that are not a language model's are drawn. Not a sampler, no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.runtime.tree import Node, Tree
from ppl.searchers.search import Searcher, State, all_dead


@dataclass(frozen=True)
class Greedy(Searcher):
    """Runs the program once with every language model at temperature 0 (without other warps)."""

    def start(self, tree: Tree) -> State:
        return State([tree.root], np.zeros(1))

    def step(self, tree: Tree, state: State) -> State:
        nodes = tree.rollout(state.nodes, 1, greedy=True)
        if nodes[0].dead:
            raise all_dead(tree, nodes, self)
        return State(nodes, state.log_weights, over=not nodes[0].open, info=state.info)

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        return state.nodes, state.log_weights.tolist(), None
