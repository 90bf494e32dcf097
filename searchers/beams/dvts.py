"""Diverse verifier tree search (Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open
models"; code in search-and-learn).

    n independent subtrees, each a greedy beam of its own:
    repeat  sample M next steps from the subtree's node, go on from the best of them
    finally the finished candidates of every subtree's last step

Beams that compete end up as variations of one answer; subtrees never meet, so the answers stay
diverse. The published code also exports the unfinished siblings of the last step, which have no
answer; here only what has finished is an answer. Not a sampler: there is no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppl.language import checks
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


@dataclass(frozen=True)
class Subtrees(Frontier):
    """The nodes are those that subtrees stand at; `answers` what has finished in each."""

    answers: tuple[tuple[Node, ...], ...] = ()


@dataclass(frozen=True)
class DVTS(Searcher[Subtrees]):
    """Diverse verifier tree search.

    Attributes:
        n: subtrees; the published setting for a budget of N samples is N / expansions.
        expansions: M, steps sampled at every node.
    """

    n: int
    expansions: int = 4

    def __post_init__(self) -> None:
        checks.count(n=self.n, expansions=self.expansions)

    def start(self, tree: Tree) -> Subtrees:
        """`n` subtrees, all at the root."""
        return Subtrees((tree.root,) * self.n, answers=((),) * self.n)

    def step(self, tree: Tree, state: Subtrees) -> tuple[Subtrees, Note]:
        """Draws `expansions` children in every subtree, which goes on from the best alone."""
        nodes, answers = list(state.nodes), list(state.answers)
        going = [i for i, node in enumerate(nodes) if node.open]
        children = tree.expand([nodes[i] for i in going], self.expansions)
        for number, i in enumerate(going):
            own = children[number * self.expansions : (number + 1) * self.expansions]
            # The first of equals: max keeps the order in which they were drawn.
            nodes[i] = max(own, key=lambda node: node.log_promise)
            if nodes[i].finished:
                answers[i] = tuple(node for node in own if node.finished and not node.dead)
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        over = not any(node.open for node in nodes)
        return state.after(nodes=tuple(nodes), answers=tuple(answers), over=over), {}

    def result(self, tree: Tree, state: Subtrees) -> Result:
        """Answers of all subtrees, weighted by likelihood; where a subtree has none, its node."""
        pairs = zip(state.nodes, state.answers, strict=True)
        return Result.by_likelihood([node for at, found in pairs for node in found or (at,)])
