"""The alive particle filter for hard constraints (Del Moral, Jasra, Lee, Yau, Zhang 2015,
arXiv:1304.0151; in probabilistic programs, Kudlicka, Murray, Ronquist, Schon 2019).

    repeat  until N + 1 proposals are alive:
                draw an ancestor by the weights of the last round, advance it to its next checkpoint
            K = number of proposals;  keep the first N that are alive, with their weights
            log Z += log(sum of the N weights / (K - 1))

No particle is ever dead, however rare survival is: the work grows instead. The (N + 1)-th survivor
and the -1 make the evidence unbiased (stopping at the N-th overestimates it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.errors import AllParticlesDeadError
from ppl.language import checks
from ppl.language.randomness import generator
from ppl.posterior.posterior import Posterior
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.search import Note, Searcher
from ppl.searchers.state import Particles


@dataclass(frozen=True)
class Alive(Particles):
    """What the next round needs; `log_evidence` is that of all rounds done."""

    log_evidence: float = 0.0


@dataclass(frozen=True)
class AliveParticleFilter(Searcher[Alive]):
    """SMC that proposes until enough particles are alive.

    Attributes:
        num_particles: N.
        max_proposals: most proposals in one round. A round that would need more is a failure
            (`AllParticlesDeadError` with an evidence of NaN): to go on with fewer would be biased.
    """

    num_particles: int
    max_proposals: int = 10_000

    def __post_init__(self) -> None:
        checks.count(num_particles=self.num_particles)
        checks.count(least=self.num_particles + 1, max_proposals=self.max_proposals)

    def start(self, tree: Tree) -> Alive:
        """N particles of equal weight, at the root."""
        n = self.num_particles
        return Alive((tree.root,) * n, Weights.equal(n))

    def step(self, tree: Tree, state: Alive) -> tuple[Alive, Note]:
        """Proposes until N + 1 are alive, drops the last; the evidence takes the factor
        sum of N weights / (proposals - 1)."""
        alive, proposals = self._propose(tree, state)
        kept = alive[: self.num_particles]
        nodes = tuple(node for node, _ in kept)
        weights = Weights(np.array([increment for _, increment in kept]))
        log_evidence = state.log_evidence + weights.log_sum - float(np.log(proposals - 1))
        note = {"proposals": proposals, "ess": weights.ess}
        over = not any(node.open for node in nodes)
        return state.after(nodes=nodes, weights=weights, log_evidence=log_evidence, over=over), note

    def _propose(self, tree: Tree, state: Alive) -> tuple[list[tuple[Node, float]], int]:
        """The first N + 1 survivors with their log-increments, and the proposals it took.

        A batch is never larger than the number of survivors still wanted, so the last survivor is
        always the last proposal, as if they were made one by one."""
        n, t = self.num_particles, state.round
        probabilities = state.weights.probabilities
        alive: list[tuple[Node, float]] = []
        dead: list[Node] = []
        proposals = 0
        while len(alive) <= n:
            wanted = n + 1 - len(alive)
            if proposals + wanted > self.max_proposals:
                raise self._failure(tree, state, dead, proposals)
            rng = generator(tree.seed, "ancestors", t, proposals)
            # In random order: the last survivor is left out, whoever its ancestor is.
            drawn = rng.choice(n, wanted, p=probabilities)
            ancestors = [state.nodes[a] for a in drawn]
            open_ = [node for node in ancestors if node.open]
            children = iter(tree.expand(open_, alone=True))  # K counts independent tries
            for ancestor in ancestors:  # a finished particle is its own next step, with weight one
                node = next(children) if ancestor.open else ancestor
                if node.dead:
                    dead.append(node)
                else:
                    alive.append((node, node.log_increment if ancestor.open else 0.0))
            proposals += wanted
        return alive, proposals

    def _failure(
        self, tree: Tree, state: Alive, dead: Sequence[Node], proposals: int
    ) -> AllParticlesDeadError:
        sites = sorted({node.dead_at or "a weight of zero" for node in dead})
        error = AllParticlesDeadError(
            f"{len(dead)} of {proposals} proposals are dead, killed at "
            f"{', '.join(map(repr, sites))}; raise max_proposals={self.max_proposals}, soften the "
            "condition, or give a guide that proposes what it wants",
            Posterior.of(tree, Result(state.nodes, state.weights.tolist()), searcher=repr(self)),
        )
        error.log_evidence = math.nan  # not zero: unknown
        return error

    def result(self, tree: Tree, state: Alive) -> Result:
        """The N particles, with an unbiased estimate of the evidence."""
        return Result(state.nodes, state.weights.tolist(), state.log_evidence)
