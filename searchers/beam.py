"""Beam search over checkpoints, guided by the verifier (Snell et al. 2024, arXiv:2408.03314, 5.2).

    frontier = {root}, expanded into width * expansions first steps
    repeat  keep the `beam_width` best of the children and of the beams that have finished
            expand every kept, unfinished node `expansions` times

Finished beams keep their place and compete with their final value; nothing weighs them again.
Not a sampler: the kept set follows no stated distribution and there is no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.searchers.search import Searcher, State, all_dead
from ppl.tree import Node, Tree


@dataclass(frozen=True)
class BeamSearch(Searcher):
    """Beam search on the observed log-likelihood (with verifiers, their potential) and twists.

    Attributes:
        beam_width: nodes kept after each round.
        expansions: samples drawn from every kept node; the first round draws
            `beam_width * expansions` from the root, so every round costs the same.
        drop_duplicates: keep one of siblings that made the same choices.
    """

    beam_width: int
    expansions: int = 4
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.beam_width < 1 or self.expansions < 1:
            raise ValueError(f"{self!r}: beam_width and expansions are at least 1")

    def start(self, tree: Tree) -> State:
        return State([tree.root], np.zeros(1))

    def step(self, tree: Tree, state: State) -> State:
        going = [node for node in state.nodes if node.open]
        first = going == [tree.root]
        count = self.expansions * (self.beam_width if first else 1)
        children = tree.expand(going, count)
        if self.drop_duplicates:
            children = distinct(children)
        pool = [node for node in state.nodes if node.finished]
        pool += [child for child in children if not child.dead]
        if not pool:
            raise all_dead(tree, children, self)
        # A stable sort: equals stay in the order in which they were drawn.
        kept = sorted(pool, key=lambda node: -node.log_promise)[: self.beam_width]
        over = not any(node.open for node in kept)
        return State(kept, np.array([n.log_likelihood for n in kept]), over=over, info=state.info)

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        return state.nodes, state.log_weights.tolist(), None


def distinct(children: list[Node]) -> list[Node]:
    """The first of every group of siblings with equal choices. Choices that cannot be compared by
    a hash (tensors are compared by identity) count as distinct."""
    seen: dict[tuple[object, ...], Node] = {}
    for child in children:
        parent = child.parent
        assert parent is not None
        seen.setdefault((parent.identity, *child.choices), child)
    return list(seen.values())
