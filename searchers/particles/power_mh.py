"""Metropolis chains for the power target p(x)^alpha (Karan and Du 2025, arXiv:2510.14901), and
tempered chains that exchange their texts (parallel power tempering, 2026).

    a text is T steps long; after its end come steps of padding
    repeat  draw r uniformly from 1 .. T
            y = x up to step r - 1, then drawn anew from q up to step T
            x = y with probability min(1, p(y)^alpha q(x) / (p(x)^alpha q(y)))

The horizon is the same for every text. To redraw only as many steps as the text has now, as some
released code does, never makes one longer; to draw r from the text's own steps needs a factor
len(x) / len(y) in the ratio. Without likelihoods this needs no verifier; with them they stay in the
target. Not weighted: there is no evidence.

Tempering has a chain for each of alpha_1 < .. < alpha_K; after every move neighbours exchange texts
with probability min(1, exp((alpha_(k+1) - alpha_k) (log p(x_k) - log p(x_(k+1))))), which needs no
model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.primitives import power
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.particle import Program
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.likelihood import log_prior
from ppl.searchers.particles.metropolis import before, decided, log_ratio, redrawn
from ppl.searchers.search import Note, Searcher
from ppl.searchers.state import Frontier
from ppl.searchers.trees.persistent import Log


@dataclass(frozen=True)
class Walks(Frontier):
    """The nodes are where the chains stand, none before the first round; `visited` is where they
    were after each."""

    visited: Log[Node] = field(default_factory=Log)


@dataclass(frozen=True)
class _Metropolis(Searcher[Walks]):
    n: int
    horizon: int

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n, horizon=self.horizon)

    @property
    def _chains(self) -> int:
        raise NotImplementedError

    @property
    def _proposal(self) -> float:
        raise NotImplementedError

    def _log_target(self, node: Node, chain: int) -> float:
        """Log of the target over what proposes, for a whole text."""
        return node.log_weight if node.finished else -math.inf

    def start(self, tree: Tree) -> Walks:
        return Walks(())

    def step(self, tree: Tree, state: Walks) -> tuple[Walks, Note]:
        k = self._chains
        note: Note = {}
        if state.round == 0:
            nodes = redrawn(tree, [tree.root] * k, self.horizon, self._proposal)
        else:
            nodes, moved = self.move(tree, state.nodes, state.round)
            nodes, exchanged = self.exchange(tree, nodes, state.round)
            note = {"accepted": moved / k, **exchanged}
        visited = state.visited.append(*self._shown(nodes))
        over = state.round == self.n
        return state.after(nodes=tuple(nodes), visited=visited, over=over), note

    def move(self, tree: Tree, nodes: Sequence[Node], number: int) -> tuple[list[Node], int]:
        """One Metropolis move of every chain."""
        rng = generator(tree.seed, "move", number)
        steps = rng.integers(1, self.horizon + 1, size=len(nodes))
        beginnings = [before(node, int(r)) for node, r in zip(nodes, steps, strict=True)]
        proposed = redrawn(tree, beginnings, self.horizon, self._proposal)
        ratios = [
            log_ratio(self._log_target(new, i), self._log_target(old, i))
            for i, (new, old) in enumerate(zip(proposed, nodes, strict=True))
        ]
        return decided(nodes, proposed, np.array(ratios), rng.random(len(nodes)))

    def exchange(self, tree: Tree, nodes: Sequence[Node], number: int) -> tuple[list[Node], Note]:
        """What chains do to each other after a move; here nothing."""
        return list(nodes), {}

    def _shown(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """The chains whose states are the result."""
        return nodes

    def result(self, tree: Tree, state: Walks) -> Result:
        """All states of the chains, of equal weight; those that are no whole text have none."""
        weights = [0.0 if node.finished and not node.dead else -math.inf for node in state.visited]
        if state.over and all(node.open for node in state.visited):
            warnings.warn(
                f"no run of the program ended within horizon={self.horizon} steps, so that none "
                f"counts and there is no result of {type(self).__name__}'s law; give horizon= the "
                "most steps that a run takes",
                stacklevel=2,
            )
        return Result(list(state.visited), weights)


@dataclass(frozen=True)
class PowerMH(_Metropolis):
    """Metropolis chains for p(x)^alpha times what the program observes.

    Attributes:
        n: moves of each chain.
        horizon: T, steps (checkpoints) that a run of the program takes at most; runs that take more
            do not count.
        alpha: the exponent; 4 as published.
        chains: independent ones, side by side in shared batches.
        proposal: power that language models draw with, None for alpha, as published.
    """

    alpha: float = 4.0
    chains: int = 1
    proposal: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(chains=self.chains)
        checks.positive(alpha=self.alpha)
        if self.proposal is not None:
            checks.positive(proposal=self.proposal)

    def target(self, program: Program) -> Program:
        """The program with its choices to the power alpha."""
        return power(program, self.alpha)

    @property
    def _chains(self) -> int:
        return self.chains

    @property
    def _proposal(self) -> float:
        return self.alpha if self.proposal is None else self.proposal


@dataclass(frozen=True)
class PowerTempering(_Metropolis):
    """Tempered chains for p(x)^alpha times what the program observes; the sharpest is the result.

    Attributes:
        n: sweeps: a move of every chain, then exchanges between neighbours, in even and odd pairs
            by turns.
        horizon: T, as of `PowerMH`.
        alphas: the exponents, rising; three to five of them.
        proposal: power that language models draw with. One for all chains: a text keeps what it
            was proposed with when it changes its chain.
    """

    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    proposal: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = list(self.alphas) == sorted(set(self.alphas))
        if not self.alphas or not rising or self.alphas[0] <= 0:
            raise ValueError(f"alphas={self.alphas}: positive exponents, each above the one before")
        checks.positive(proposal=self.proposal)

    def target(self, program: Program) -> Program:
        """The program with its choices to the largest power."""
        return power(program, self.alphas[-1])

    @property
    def _chains(self) -> int:
        return len(self.alphas)

    @property
    def _proposal(self) -> float:
        return self.proposal

    def _log_target(self, node: Node, chain: int) -> float:
        if not node.finished or node.dead:
            return -math.inf
        return node.log_weight + (self.alphas[chain] - self.alphas[-1]) * log_prior(node)

    def _shown(self, nodes: Sequence[Node]) -> Sequence[Node]:
        return nodes[-1:]

    def exchange(self, tree: Tree, nodes: Sequence[Node], number: int) -> tuple[list[Node], Note]:
        """Neighbours exchange their texts, or not; the note has the first of each pair that did."""
        rng = generator(tree.seed, "exchange", number)
        nodes, exchanged = list(nodes), list[int]()
        for i in range((number - 1) % 2, len(nodes) - 1, 2):
            u, pair = rng.random(), nodes[i : i + 2]
            if any(self._log_target(node, i) == -math.inf for node in pair):
                continue
            rise = self.alphas[i + 1] - self.alphas[i]
            if math.log(u) < rise * (log_prior(pair[0]) - log_prior(pair[1])):
                nodes[i : i + 2] = pair[::-1]
                exchanged.append(i)
        return nodes, {"exchanged": exchanged}
