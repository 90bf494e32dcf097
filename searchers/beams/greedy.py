"""Greedy decoding: the most likely token at every place, as a baseline.

One path; only choices that are not a language model's are drawn. Not a sampler, no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


@dataclass(frozen=True)
class Greedy(Searcher[Frontier]):
    """Runs the program once with every language model at temperature 0 (without other warps)."""

    steers: ClassVar[bool] = False

    def start(self, tree: Tree) -> Frontier:
        """The root."""
        return Frontier((tree.root,))

    def step(self, tree: Tree, state: Frontier) -> tuple[Frontier, Note]:
        """Runs to the program's end in one round."""
        (node,) = tree.rollout(state.nodes, 1, greedy=True)
        if node.dead:
            raise all_dead(tree, [node], self)
        return state.after(nodes=(node,), over=not node.open), {}

    def result(self, tree: Tree, state: Frontier) -> Result:
        """The one node, with weight one."""
        return Result(state.nodes, [0.0])
