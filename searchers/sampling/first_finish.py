"""First Finish Search (Agarwal, Sengupta, Chakraborty 2025, arXiv:2505.18149): the shortest of n.

    start n samples side by side, a token of each at a time
    the first that ends, with an answer, is the result; the others are cancelled

With S(L) = P(length >= L) and S'(L) = P(length > L) the text that is returned follows

    P(y) = p(y) (S^n - S'^n) / (S - S')         at L = the length of y

which is not the program's law: short texts win. It helps where right texts are shorter than wrong
ones, as in long reasoning. It costs n min(length) tokens. Not a sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State


@dataclass(frozen=True)
class Race(State):
    """What is left of a race.

    Attributes:
        winner: the first with an answer, None before the race.
    """

    winner: Node | None = None


@dataclass(frozen=True)
class FirstFinish(Searcher[Race]):
    """Starts n samples and takes the first that ends.

    Tokens are counted as they are drawn: samples pass the program's checkpoints without waiting for
    one another, as long as a batch holds all of them; where several end with the same token, one of
    those is drawn. What a program waits for beside its model (a server, a slow `ppl.call`) is raced
    by the clock, so that the winner is no function of the seed then. The verdicts of the program's
    verifiers choose nothing. Samples that were cancelled are paid for as far as they had come; the
    steps that they were in are not in the tree. The whole race is one round.

    Attributes:
        n: how many start.
        answered: only a result that is not None wins, so that an early blank does not; if there is
            no other, the first that ended is the result.
    """

    steers: ClassVar[bool] = False

    n: int
    answered: bool = True

    def __post_init__(self) -> None:
        checks.count(n=self.n)
        checks.flag(answered=self.answered)

    def start(self, tree: Tree) -> Race:
        """Nobody has set out."""
        return Race()

    def step(self, tree: Tree, state: Race) -> tuple[Race, Note]:
        """The race: who arrives at a checkpoint goes on at once, until one wins."""
        tree.expand([tree.root], self.n, quorum=0)
        ended: list[Node] = []
        while latest := tree.collect(1):
            ended += [node for node in latest if not node.open]
            first = [node for node in latest if node.finished and self._wins(node)]
            if first:
                cancelled = self.n - len(ended)
                tree.abandon()
                # Not the first row: it would win every tie.
                tie = generator(tree.seed, state.round, "first finish").integers(len(first))
                winner = first[int(tie)]
                note = {"node": winner.identity, "ties": len(first), "cancelled": cancelled}
                return state.after(winner=winner, over=True), note
            tree.expand([node for node in latest if node.open], quorum=0)
        alive = [node for node in ended if not node.dead]
        if not alive:
            raise all_dead(tree, ended, self)
        return state.after(winner=alive[0], over=True), {"node": alive[0].identity}

    def _wins(self, node: Node) -> bool:
        return not node.dead and (node.result is not None or not self.answered)

    def result(self, tree: Tree, state: Race) -> Result:
        """The winner; before there is one, where all have come to."""
        if state.winner is not None:
            return Result.by_likelihood([state.winner])
        left = {id(node.parent) for node in tree.nodes}
        return Result.by_likelihood([n for n in tree.nodes[1:] if n.open and id(n) not in left])
