"""Tree search over refinements of whole answers (SPaR: Cheng, Liu, Wang, Gu, Lu, Zhang, Dong, Tang,
Wang, Huang 2024, arXiv:2412.11605).

    queue = {nothing}
    repeat  take a node; draw `branch` refinements of it (of nothing: drafts), and judge them
            stop if one is worth more than `threshold`
            bfs: when a level is through, its `keep` best are the queue
            dfs: the `keep` best of the node's children go first

A node is an answer, a checkpoint of a program that writes an answer, observes a judge and, as long
as it is not content, writes a critique, refines the answer, and observes the judge again. The
judge's potentials telescope, so that a node's value is that of its latest answer. Not a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.duplicates import distinct
from ppl.searchers.resampling import without_replacement
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State

# A value is a sum of telescoping logarithms: one equal to the threshold may come out above it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Refinements(State):
    """What the next round needs.

    Attributes:
        queue: nodes to refine, the next one first.
        level: bfs: what has grown in the level below the queue.
        answers: all that has grown and is not dead.
        grown: number of nodes that refining has made.
        settled: nothing is left to refine.
    """

    queue: tuple[Node, ...]
    level: tuple[Node, ...] = ()
    answers: tuple[Node, ...] = ()
    grown: int = 0
    settled: bool = False


@dataclass(frozen=True)
class TreeRefinement(Searcher[Refinements]):
    """Refines answers until one is good enough.

    The best answer is what counts: let the program say with `ppl.answer` what it has so far. Where
    it does not, and would refine the best once more, the search ends by running that particle on to
    the program's own end, which may be worse than what it comes from; then let it return as soon as
    it is content. A search stopped by its budget gives all nodes, the best first. Children that
    chose the same are one. A dead child, of a failed condition, is dropped; a judge that gives zero
    kills what could be refined, so give it a floor.

    Attributes:
        simulations: most answers to write; running the best one on is not counted.
        branch: drafts, and refinements of every node that is refined.
        keep: most nodes of a level (bfs) or of siblings (dfs) that are refined.
        depth: most refinements of a draft.
        threshold: a value above it, not one equal to it, ends the search.
        order: `"bfs"`: level by level; `"dfs"`: the best child first.
        select: `"greedy"`: the best are kept; `"sample"`: drawn by value, without replacement.
    """

    simulations: int
    branch: int = 3
    keep: int = 2
    depth: int = 3
    threshold: float = 0.5
    order: Literal["bfs", "dfs"] = "bfs"
    select: Literal["greedy", "sample"] = "greedy"

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, branch=self.branch, keep=self.keep)
        checks.count(least=0, depth=self.depth)
        checks.nonnegative(threshold=self.threshold)
        checks.one_of(("bfs", "dfs"), order=self.order)
        checks.one_of(("greedy", "sample"), select=self.select)

    def start(self, tree: Tree) -> Refinements:
        """The root alone in the queue."""
        return Refinements((tree.root,))

    def step(self, tree: Tree, state: Refinements) -> tuple[Refinements, Note]:
        """Draws `branch` refinements of the next node; they are queued by the order's rule."""
        if state.settled:
            return self._run_on(tree, state), {}
        node, *queue = state.queue
        children = tree.expand([node], min(self.branch, self.simulations - state.grown))
        grown = state.grown + len(children)
        alive = [child for child in distinct(children) if not child.dead]
        answers, level = (*state.answers, *alive), (*state.level, *alive)
        if self.order == "dfs":
            queue, level = self._kept(tree, alive, grown) + queue, ()
        elif not queue:
            queue, level = self._kept(tree, level, grown), ()
        good = any(child.value > self.threshold + _ROUNDING for child in alive)
        settled = good or not queue or grown == self.simulations
        if settled and not answers:
            raise all_dead(tree, children, self)
        note = {"node": node.identity, "values": [child.value for child in children]}
        over = settled and _best(answers).answered
        return state.after(
            queue=tuple(queue),
            level=level,
            answers=answers,
            grown=grown,
            settled=settled,
            over=over,
        ), note

    def _kept(self, tree: Tree, nodes: Sequence[Node], grown: int) -> list[Node]:
        """Those of the nodes that are refined, the best (or the first drawn) first."""
        nodes = [node for node in nodes if node.open and node.depth <= self.depth]
        if self.select == "greedy":
            return sorted(nodes, key=lambda node: -node.log_likelihood)[: self.keep]
        rng = generator(tree.seed, "refinements", grown)
        log_values = [node.log_likelihood for node in nodes]
        return [nodes[i] for i in without_replacement(log_values, self.keep, rng)]

    def _run_on(self, tree: Tree, state: Refinements) -> Refinements:
        """The best answer to its program's end; if that is a dead one, the next best is next."""
        best = _best(state.answers)
        (end,) = tree.rollout([best])
        if not end.dead:
            return state.after(answers=(*state.answers, end), over=True)
        answers = tuple(node for node in state.answers if node is not best)
        if not answers:
            raise all_dead(tree, [end], self)
        return state.after(answers=answers, over=_best(answers).answered)

    def result(self, tree: Tree, state: Refinements) -> Result:
        """Answers, best first, weighted by likelihood."""
        nodes = [node for node in state.answers if node.answered or not state.over]
        nodes.sort(key=lambda node: -node.log_likelihood)
        return Result.by_likelihood(nodes)


def _best(nodes: Sequence[Node]) -> Node:
    """The node of highest value; among equals one that is an answer, then the first."""
    return max(nodes, key=lambda node: (node.log_likelihood, node.answered))
