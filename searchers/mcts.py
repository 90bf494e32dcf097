"""Monte Carlo tree search with UCT over checkpoints (Kocsis and Szepesvari 2006).

    simulate  from the root, while the node has `width` children: go to the child maximising
              Q(child) + C sqrt(ln N(node) / N(child))
    expand    draw one more child of the node reached
    evaluate  run the program on from the child to its end; the value is what it observed there
    back up   add the value to every node on the path

Q is the mean of the values below a node. One simulation costs one completion, so `simulations`
compares directly with N of best-of-N. Every completion is a candidate answer. Not a sampler: the
candidates follow no stated distribution and there is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ppl.searchers.search import Searcher, all_dead
from ppl.tree import Node, Tree


@dataclass
class Statistics:
    """What MCTS knows of one tree node: N, sum of values, children drawn, nothing left below."""

    visits: int = 0
    total: float = 0.0
    children: list[Node] = field(default_factory=list)
    closed: bool = False


@dataclass
class MCTSState:
    """What the next simulation needs."""

    statistics: dict[int, Statistics]
    answers: list[Node] = field(default_factory=list)
    simulations: int = 0
    over: bool = False
    info: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class MCTS(Searcher):
    """Upper confidence bounds applied to trees.

    Attributes:
        simulations: how many completions to spend.
        width: children per node; a node with fewer gets a new one before any is revisited (their
            first-play value is infinite).
        exploration: C. The classic square root of two suits values in [0, 1].
    """

    simulations: int
    width: int = 4
    exploration: float = math.sqrt(2)

    def __post_init__(self) -> None:
        if self.simulations < 1 or self.width < 1 or self.exploration < 0:
            raise ValueError(f"{self!r}: simulations and width at least 1, exploration at least 0")

    def start(self, tree: Tree) -> MCTSState:
        return MCTSState({tree.root.identity: Statistics()})

    def step(self, tree: Tree, state: MCTSState) -> MCTSState:
        path = self._select(tree.root, state.statistics)
        child = tree.expand([path[-1]])[0]
        leaf = tree.rollout([child])[0]
        statistics = state.statistics
        statistics[path[-1].identity].children.append(child)
        statistics[child.identity] = Statistics(closed=not child.open)
        _back_up([*path, child], leaf.value, statistics, self.width)
        answers = state.answers if leaf.dead else [*state.answers, leaf]
        done = state.simulations + 1
        over = done == self.simulations or statistics[tree.root.identity].closed
        if over and not answers:
            raise all_dead(tree, [leaf], self)
        return replace(state, answers=answers, simulations=done, over=over)

    def _select(self, root: Node, statistics: dict[int, Statistics]) -> list[Node]:
        """The path from the root to a node that can take another child."""
        path = [root]
        while len(statistics[path[-1].identity].children) >= self.width:
            here = statistics[path[-1].identity]
            options = [c for c in here.children if not statistics[c.identity].closed]
            path.append(max(options, key=lambda c: self._bound(here, statistics[c.identity])))
        return path

    def _bound(self, parent: Statistics, child: Statistics) -> float:
        return uct(child.total / child.visits, parent.visits, child.visits, self.exploration)

    def result(
        self, tree: Tree, state: MCTSState
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        # A vote among completions counts each by its value.
        return state.answers, [leaf.log_likelihood for leaf in state.answers], None


def uct(mean: float, parent_visits: int, visits: int, exploration: float) -> float:
    """Mean value plus the UCB1 bonus C sqrt(ln N / n)."""
    return mean + exploration * math.sqrt(math.log(parent_visits) / visits)


def _back_up(path: list[Node], value: float, statistics: dict[int, Statistics], width: int) -> None:
    """Adds the value along the path, and closes nodes below which all is finished or dead, so that
    no simulation is wasted on what cannot change."""
    for node in reversed(path):
        here = statistics[node.identity]
        here.visits += 1
        here.total += value
        if len(here.children) == width:
            here.closed = all(statistics[c.identity].closed for c in here.children)
