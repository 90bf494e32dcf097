"""Best-first search over checkpoints, and A* with a cost-to-go (A*-decoding: Chatziveroglou 2025,
arXiv:2505.13672; the algorithm: Hart, Nilsson, Raphael 1968).

    queue = {root}
    repeat  pop the node of least f, expand it k times, push the children

Best-first has f = -score and runs for a number of expansions; A* has f = cost so far + weight *
bound on the cost to go, and stops when a finished node is popped. With a bound that is never too
high, and all successors of a node among its k children, that node is optimal. Successors are
samples: children that chose the same are one. Ties go to the node that was pushed first.

When the expansions are spent and nothing has finished, the best node of the queue is completed
greedily: language models give their most likely tokens. It is paid like all else, and the posterior
says `stopped == "expansions"`.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ppl.errors import SearchStateError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.duplicates import distinct
from ppl.searchers.likelihood import log_prior
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier

# A node in the queue: its f under each of the orders, and when it was pushed, which settles ties.
Entry = tuple[tuple[float, ...], int, Node]


@dataclass(frozen=True)
class Queue(Frontier):
    """The nodes are those that have finished; the others wait.

    Attributes:
        waiting: in no order.
        pushed: entries made so far.
        expanded: nodes expanded so far.
    """

    waiting: tuple[Entry, ...] = ()
    pushed: int = 0
    expanded: int = 0


@dataclass(frozen=True)
class QueueSearch(Searcher[Queue]):
    """What all searches with a queue share. One round pops a node for every order.

    If nothing has finished when the expansions are spent, the best open node is completed greedily;
    that is not counted as expansions.

    Attributes:
        simulations: most nodes that are expanded.
        expansions: k, samples drawn at every node.
    """

    simulations: int
    expansions: int = 4

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, expansions=self.expansions)

    @abstractmethod
    def priorities(self, tree: Tree, nodes: Sequence[Node]) -> list[tuple[float, ...]]:
        """f of every node under every order; of each order the least is popped."""

    def drawn(self, tree: Tree, nodes: Sequence[Node]) -> list[Node]:
        """New children of the nodes that were popped."""
        return tree.expand(nodes, self.expansions)

    def fresh(self, tree: Tree, children: list[Node]) -> list[Node]:
        """Those of the new nodes that are no duplicates."""
        return distinct(children)

    def start(self, tree: Tree) -> Queue:
        """The root waits, nothing is found."""
        return Queue((), waiting=(((), 0, tree.root),), pushed=1)

    def step(self, tree: Tree, state: Queue) -> tuple[Queue, Note]:
        """Pops the first node of every order, draws its children and queues those that are new."""
        if state.expanded >= self.simulations:
            return self._completed(tree, state)
        popped, waiting = self._pop(state)
        nodes = [node for *_, node in popped]
        if nodes[0].finished:  # only A* queues finished nodes: it has found its answer
            return state.after(nodes=tuple(nodes), waiting=(), over=True), {}
        children = self.drawn(tree, nodes)
        alive = [child for child in self.fresh(tree, children) if not child.dead]
        found = (*state.nodes, *(child for child in alive if child.finished))
        queued = [child for child in alive if child.open or self.queues_finished]
        pushed = state.pushed + len(queued)
        order = range(state.pushed, pushed)
        waiting += zip(self.priorities(tree, queued), order, queued, strict=True)
        if not found and not waiting:
            if all(child.dead for child in children):
                raise all_dead(tree, children, self)
            raise SearchStateError(
                f"nothing is left to expand and nothing has finished: all {len(children)} new "
                "nodes are dead or equal to earlier ones; let normal_form tell more states apart"
            )
        expanded = state.expanded + len(nodes)
        over = not waiting or (expanded >= self.simulations and bool(found))
        note = {"f": [f for f, *_ in popped], "nodes": [n.identity for n in nodes]}
        return state.after(
            nodes=found, waiting=tuple(waiting), pushed=pushed, expanded=expanded, over=over
        ), note

    def _completed(self, tree: Tree, state: Queue) -> tuple[Queue, Note]:
        """The best that waits, run greedily to its end; if that is a dead one, the next is next."""
        best, *rest = sorted(state.waiting, key=lambda entry: entry[:2])
        (end,) = tree.rollout([best[-1]], greedy=True)
        if not end.dead:
            return state.after(nodes=(end,), over=True, stopped="expansions"), {}
        if not rest:
            raise all_dead(tree, [end], self)
        return state.after(waiting=tuple(rest)), {}

    def _pop(self, state: Queue) -> tuple[list[Entry], list[Entry]]:
        """Of each order the least that no order before it has taken; and those left over."""
        if not state.expanded:  # the root, which nobody has to judge
            return list(state.waiting), []
        popped, left = [], list(state.waiting)
        orders = len(left[0][0])
        for k in range(min(orders, len(left), self.simulations - state.expanded)):
            popped.append(min(left, key=lambda entry: (entry[0][k], entry[1])))
            left.remove(popped[-1])
        return popped, left

    queues_finished = False

    def result(self, tree: Tree, state: Queue) -> Result:
        """What has finished; before that, what waits, the first to be popped first."""
        return Result.by_likelihood(
            state.nodes or [node for *_, node in sorted(state.waiting, key=lambda e: e[:2])]
        )


@dataclass(frozen=True)
class BestFirst(QueueSearch):
    """Always expands the open node that is liked most.

    The score is the observed log-likelihood with its twist. Under products deeper nodes score
    lower and the search goes wide; under `last`, `min` or `mean` it goes deep.
    """

    def priorities(self, tree: Tree, nodes: Sequence[Node]) -> list[tuple[float, ...]]:
        """One order: the higher the promise, the earlier."""
        return [(-node.log_promise,) for node in nodes]


@dataclass(frozen=True)
class AStar(QueueSearch):
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
        checks.one_of(("likelihood", "joint", "value"), cost=self.cost)
        if self.cost == "value" and self.cost_to_go is not None:
            raise ValueError("cost='value' has its own cost_to_go: give one or the other")
        checks.nonnegative(weight=self.weight)
        check_fields(self)

    def priorities(self, tree: Tree, nodes: Sequence[Node]) -> list[tuple[float, ...]]:
        """One order: f, the cost so far and `weight` times the cost to go."""
        return [(self._f(node),) for node in nodes]

    def _f(self, node: Node) -> float:
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
