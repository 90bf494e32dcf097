"""Best-first search over checkpoints, and A* with a cost-to-go (A*-decoding: Chatziveroglou 2025,
arXiv:2505.13672; the algorithm: Hart, Nilsson, Raphael 1968).

    queue = {root}
    repeat  pop the node of least f, expand it k times, push the children

Best-first has f = -score and runs for a number of expansions; A* has f = cost so far + weight *
bound on the cost to go, and stops when a finished node is popped. With a bound that is never too
high, and all successors of a node among its k children, that node is optimal. Successors are
samples: children that chose the same are one. Ties go to the node that was pushed first.
"""

from __future__ import annotations

import heapq
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ppl.searchers.beam import distinct, log_prior
from ppl.searchers.search import Searcher, State, all_dead
from ppl.tree import Node, Tree


@dataclass
class Queue(State):
    """The nodes are those that have finished; `waiting` is a heap of (f, order, node)."""

    waiting: list[tuple[float, int, Node]] = field(default_factory=list)
    pushed: int = 0
    expanded: int = 0


@dataclass(frozen=True)
class _QueueSearch(Searcher):
    """What the two share: the queue.

    Attributes:
        max_expansions: most nodes that are expanded.
        expansions: k, samples drawn at every node.
    """

    max_expansions: int
    expansions: int = 4

    def __post_init__(self) -> None:
        if self.max_expansions < 1 or self.expansions < 1:
            raise ValueError(f"{self!r}: max_expansions and expansions are at least 1")

    @abstractmethod
    def priority(self, node: Node) -> float:
        """f: the least is popped first."""

    def start(self, tree: Tree) -> Queue:
        return Queue([], np.zeros(0), waiting=[(0.0, 0, tree.root)], pushed=1)

    def step(self, tree: Tree, state: Queue) -> Queue:
        f, _, node = state.waiting[0]
        waiting = state.waiting[:]
        heapq.heappop(waiting)
        if node.finished:  # only A* queues finished nodes: it has found its answer
            return Queue([node], np.zeros(1), over=True, info=state.info)
        children = distinct(tree.expand([node], self.expansions))
        alive = [child for child in children if not child.dead]
        found = [child for child in alive if child.finished]
        pushed = state.pushed
        for child in alive:
            if child.open or self.queues_finished:
                heapq.heappush(waiting, (self.priority(child), pushed, child))
                pushed += 1
        nodes = state.nodes + found
        if not nodes and not waiting:
            raise all_dead(tree, children, self)
        expanded = state.expanded + 1
        over = not waiting or expanded >= self.max_expansions
        note = {"f": f, "node": node.identity}
        log_weights = np.array([n.log_likelihood for n in nodes])
        return Queue(nodes, log_weights, None, over, [*state.info, note], waiting, pushed, expanded)

    queues_finished = False

    def result(
        self, tree: Tree, state: Queue
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        nodes = state.nodes or [node for *_, node in sorted(state.waiting)]
        return nodes, [node.log_likelihood for node in nodes], None


@dataclass(frozen=True)
class BestFirst(_QueueSearch):
    """Always expands the open node that is liked most.

    The score is the observed log-likelihood with its twist. Under products deeper nodes score
    lower and the search goes wide; under `last`, `min` or `mean` it goes deep.
    """

    def priority(self, node: Node) -> float:
        return -node.log_promise


@dataclass(frozen=True)
class AStar(_QueueSearch):
    """A* on the cost of steps.

    Attributes:
        cost: `"likelihood"`: minus the observed log-likelihood; `"joint"`: that plus minus the
            log-probability of the choices, so that the answer is the posterior mode; `"value"`:
            1 - v as the cost to go of a value v = exp(log-likelihood), with the increases of that
            as the cost so far, which makes f never fall along a path.
        cost_to_go: bound on the cost that is still to come, from a node; None for 0, which makes
            this uniform-cost search. A module-level function if the search is to be saved. Not
            together with `cost="value"`, which has its own.
        weight: of the cost to go; above 1 is quicker and no longer optimal.
    """

    cost: Literal["likelihood", "joint", "value"] = "likelihood"
    cost_to_go: Callable[[Node], float] | None = None
    weight: float = 1.0

    queues_finished = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost not in ("likelihood", "joint", "value"):
            raise ValueError(f"cost={self.cost!r}: 'likelihood', 'joint' or 'value'")
        if self.cost == "value" and self.cost_to_go is not None:
            raise ValueError("cost='value' has its own cost_to_go: give one or the other")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight={self.weight}: zero or more")

    def priority(self, node: Node) -> float:
        if self.cost == "value":
            to_go = [1.0 - n.value for n in node.path[1:]]
            rises = [max(0.0, b - a) for a, b in itertools.pairwise(to_go)]
            return math.fsum(rises) + self.weight * to_go[-1]
        spent = -node.log_likelihood
        if self.cost == "joint":
            spent -= log_prior(node)
        if self.cost_to_go is None or node.finished:
            return spent
        return spent + self.weight * self.cost_to_go(node)
