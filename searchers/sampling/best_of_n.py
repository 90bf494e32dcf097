"""Best-of-N: N independent runs of the program, weighted by what they observed.

This is importance sampling with the program as proposal, so the weighted set is properly weighted
and the evidence estimate is unbiased. `best` is the classic best-of-N (Cobbe et al. 2021), `vote()`
the weighted vote, and `vote(weights="flat")` self-consistency (Wang et al. 2022). With n = 1 it is
plain sampling.

All samples go on side by side, unless that would end a limited search with many beginnings and no
sample: see `_in_turn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppl.language import checks
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier

# How much dearer than the dearest so far samples are taken to become, where all are to go on.
_AMPLE = 4


@dataclass(frozen=True)
class BestOfN(Searcher[Frontier]):
    """N independent samples.

    Under a limit of tokens or calls that may not pay for all, samples are completed a few at a
    time, so that a limit of ten samples' price gives about ten samples. Where a limit plainly
    suffices (for every open sample at four times the price of the dearest so far) the result is
    that of a search without limits; else the samples are the same in law only. Stopped early, short
    samples are more likely to be among those completed.

    Attributes:
        n: how many.
    """

    steers: ClassVar[bool] = False

    n: int

    def __post_init__(self) -> None:
        checks.count(n=self.n)

    def start(self, tree: Tree) -> Frontier:
        """`n` copies of the root."""
        return Frontier((tree.root,) * self.n)

    def step(self, tree: Tree, state: Frontier) -> tuple[Frontier, Note]:
        """Takes those whose turn it is one step further."""
        nodes = list(state.nodes)
        going = _in_turn(tree, nodes)
        for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
            nodes[i] = child
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        over = not any(node.open for node in nodes)
        return state.after(nodes=tuple(nodes), over=over), {}

    def result(self, tree: Tree, state: Frontier) -> Result:
        """All samples with their importance weights, and the evidence once all have ended."""
        weights = Weights(np.array([node.log_weight for node in state.nodes]))
        if state.over:
            return Result(state.nodes, weights.tolist(), weights.log_evidence)
        begun = [node for node in state.nodes if node is not tree.root]
        return Result(begun, [node.log_weight for node in begun])


def _in_turn(tree: Tree, nodes: list[Node]) -> list[int]:
    """The samples that go on: all that are furthest behind, if the limits pay for all.

    What a sample will cost is not known before it ends. The first draws its first step alone; if
    the limits do not pay for all, it is completed, and then others, twice as many each time and no
    more than the dearest so far says.
    """
    budget = tree.account.budget
    everyone = [i for i, node in enumerate(nodes) if node.open]
    behind = min(nodes[i].depth for i in everyone)
    in_step = [i for i in everyone if nodes[i].depth == behind]
    if budget.tokens is None and budget.calls is None:
        return in_step
    begun = [node for node in nodes if node is not tree.root]
    if not begun:
        return in_step[:1]
    tokens, calls = (max(1, *costs) for costs in zip((1, 1), *map(_spent, begun), strict=True))
    affordable = min(tree.account.tokens_left / tokens, tree.account.calls_left / calls)
    ended = len(nodes) - len(everyone)
    if affordable >= _AMPLE * len(everyone):
        return in_step
    ahead = sorted(everyone, key=lambda i: -nodes[i].depth)
    return ahead[: max(1, int(min(affordable, 2 * ended)))]


def _spent(node: Node) -> tuple[int, int]:
    """Tokens and calls of a path."""
    costs = [step.cost for step in node.path]
    judged = sum(r.log_scores is not None for r in node.history)
    return sum(c.lm_tokens for c in costs), sum(c.lm_calls for c in costs) + judged
