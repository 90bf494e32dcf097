"""Hedged sampling (Khairi et al. 2025, "When Life Gives You Samples", arXiv 2506.20544): samples at
some temperature, and the greedy text among them.

Sampling far from the mode costs most where a model is weak, as in languages that it knows little;
the greedy text is a hedge against that. It is no draw: it takes part in whatever chooses a text,
and has no part in any evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.lm.warped import warped
from ppl.runtime.particle import Program
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


@dataclass(frozen=True)
class Hedged(Searcher[Frontier]):
    """`greedy` greedy texts, and samples at a temperature; n in all.

    The target is the program with this temperature and floor wherever its models have none of their
    own. With a greedy text among them, texts count by what they have observed, and there is no
    evidence; without, it is `BestOfN` on the target. Greedy texts come first, and
    `posterior.nodes` has them as `simulated`; `ppl.programs.greedy_flags` says which samples they
    are.

    Attributes:
        n: texts.
        temperature: of the samples; which one is best differs between languages, see
            `ppl.programs.temperature_by_language`.
        min_p: drops tokens less likely than this share of the likeliest.
        greedy: how many of the n are greedy; more than one only helps where a program draws
            something else, too.
    """

    steers: ClassVar[bool] = False

    n: int
    temperature: float = 0.7
    min_p: float = 0.1
    greedy: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n)
        checks.count(least=0, greedy=self.greedy)
        checks.positive(temperature=self.temperature)
        checks.probability(min_p=self.min_p)
        if self.greedy > self.n:
            raise ArgumentError(f"greedy={self.greedy}: no more than n={self.n}")

    def target(self, program: Program) -> Program:
        """The program at this temperature."""
        return warped(program, temperature=self.temperature, min_p=self.min_p)

    def start(self, tree: Tree) -> Frontier:
        """`n` copies of the root."""
        return Frontier((tree.root,) * self.n)

    def step(self, tree: Tree, state: Frontier) -> tuple[Frontier, Note]:
        """The greedy texts whole, then the samples a step further each round."""
        nodes = list(state.nodes)
        if state.round == 0 and self.greedy:
            nodes[: self.greedy] = tree.rollout(nodes[: self.greedy], greedy=True)
            over = self.greedy == self.n
        else:
            going = [i for i, node in enumerate(nodes) if node.open]
            for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
                nodes[i] = child
            over = not any(node.open for node in nodes)
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        return state.after(nodes=tuple(nodes), over=over), {"greedy": self.greedy}

    def result(self, tree: Tree, state: Frontier) -> Result:
        """All texts that have begun."""
        begun = [node for node in state.nodes if node is not tree.root]
        if self.greedy:
            return Result.by_likelihood(begun)
        logs = [node.log_weight for node in begun]
        return Result(begun, logs, Weights(np.array(logs)).log_evidence if state.over else None)
