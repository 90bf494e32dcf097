"""Recursive self-aggregation (RSA: Venkatraman et al. 2025, arXiv:2509.26626): a population of
texts, each generation written by a model that has read some of the one before.

    population = N texts, written from the question alone
    repeat T times
        for each of N: draw K of the population, without replacement
                       write a new text from the question and these
    the answer is a vote of the last population, or one of it

The program asks for what it may read with `others(k)`, which is empty in the first generation and
outside of this search:

    seen = others(4)
    text = lm.chat(question if not seen else question + candidates(seen))

No weights and no evidence: texts read each other. The vote of the last population can be worse than
the first one's where wrong texts persuade; with a writer that only copies, a population is the
Wright-Fisher chain of genetics, and its answer one of the first generation by its share there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro
from pyro.poutine.runtime import am_i_wrapped

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.sampling.told import Told
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


class Others(Told):
    """What other runs of the program have returned."""

    nothing = ()

    def __init__(self, k: int) -> None:
        self.k = k
        super().__init__()

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Its kind and k."""
        return ("others", self.k)


@checked
def others(k: int, name: str = "others") -> tuple[Any, ...]:
    """Results of k other runs of this program, as `RecursiveSelfAggregation` draws them.

    Fewer where there are not as many; none in the first generation and outside of that search. It
    has to come before anything that is weighed.

    Args:
        k: how many.
        name: of the site.
    """
    checks.count(k=k)
    if not am_i_wrapped():
        return ()
    seen: tuple[Any, ...] = pyro.sample(name, Others(k))
    return seen


@dataclass(frozen=True)
class Population(Frontier):
    """The nodes are the population; `before` is the one that it has read.

    Attributes:
        generation: of how many generations the texts have been written.
    """

    before: tuple[Node, ...] = field(default=())
    generation: int = 0


@dataclass(frozen=True)
class RecursiveSelfAggregation(Searcher[Population]):
    """A population whose texts are written from each other.

    Costs `n * (rounds + 1)` runs of the program. `vote()` is the vote of the last generation.

    Attributes:
        n: size of the population; 16 as published.
        rounds: T, generations after the first.
    """

    steers: ClassVar[bool] = False

    n: int = 16
    rounds: int = 10

    def __post_init__(self) -> None:
        checks.count(n=self.n)
        checks.count(least=0, rounds=self.rounds)

    def start(self, tree: Tree) -> Population:
        """Nobody has been read."""
        return Population((tree.root,) * self.n)

    def step(self, tree: Tree, state: Population) -> tuple[Population, Note]:
        """Takes every text of the generation a step further, or begins the next."""
        nodes = list(state.nodes)
        going = [i for i, node in enumerate(nodes) if node.open]
        decide = [self._reading(tree, state, i) for i in going]
        for i, child in zip(
            going, tree.expand([nodes[i] for i in going], decide=decide), strict=True
        ):
            nodes[i] = child
        if any(node.open for node in nodes):
            return state.after(nodes=tuple(nodes)), {}
        alive = tuple(node for node in nodes if node.finished and not node.dead)
        if not alive:
            raise all_dead(tree, nodes, self)
        done = state.generation + 1
        note = {"generation": done, "alive": len(alive)}
        if done > self.rounds:
            return state.after(nodes=tuple(nodes), generation=done, over=True), note
        return state.after(nodes=(tree.root,) * self.n, before=alive, generation=done), note

    def _reading(self, tree: Tree, state: Population, number: int) -> Decide:
        """What text `number` reads where its program asks for others."""
        pool = [node.result for node in state.before]

        def decide(name: str, distribution: Any) -> Any:
            if not isinstance(distribution, Others):
                return None
            rng = generator(tree.seed, "others", state.generation, number, name)
            k = min(distribution.k, len(pool))
            return tuple(pool[i] for i in rng.choice(len(pool), k, replace=False)) if k else ()

        return decide

    def result(self, tree: Tree, state: Population) -> Result:
        """The population, each text with the same weight; while one is written, the one before."""
        shown: Sequence[Node] = [node for node in state.nodes if node.finished]
        if not state.over and state.before:
            shown = state.before
        return Result(list(shown), [-math.inf if node.dead else 0.0 for node in shown])
