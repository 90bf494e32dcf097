"""Sequential Monte Carlo: the particle filter over programs, bootstrap or guided.

    repeat  advance every unfinished particle to its next checkpoint
            log w += log G + log p - log q
            if ESS < kappa N:  log Z += log mean w;  resample;  w = 1
    finally log Z += log mean w

The final weighted set is properly weighted for p(x) * prod G whatever the resampling scheme or
threshold, so exp(log_evidence) is an unbiased estimate of the evidence. A finished particle keeps
its weight, takes part in resampling, and is never weighed again.
Doucet and Johansen 2009; Chopin and Papaspiliopoulos 2020, ch. 10; with a PRM as likelihood, Puri
et al. 2025 (arXiv:2502.01618).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ppl.randomness import generator
from ppl.searchers.resampling import SCHEMES, Scheme, ess, normalised
from ppl.searchers.search import Searcher, State, all_dead
from ppl.tree import Node, Tree


@dataclass(frozen=True)
class SMC(Searcher):
    """Sequential Monte Carlo.

    Attributes:
        num_particles: N.
        ess_threshold: resample when the effective sample size is below this fraction of N; 1
            resamples whenever weights differ, 0 never.
        resampling: `"systematic"`, `"stratified"`, `"residual"` or `"multinomial"`.
    """

    num_particles: int
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles={self.num_particles}: at least 1")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold={self.ess_threshold}: a fraction of N, in [0, 1]")
        if self.resampling not in SCHEMES:
            raise ValueError(f"resampling={self.resampling!r}: one of {', '.join(SCHEMES)}")

    def start(self, tree: Tree) -> State:
        n = self.num_particles
        return State([tree.root] * n, np.zeros(n), log_evidence=0.0)

    def step(self, tree: Tree, state: State) -> State:
        nodes, log_weights = self._advance(tree, state)
        if log_weights.max() == -np.inf:
            raise all_dead(tree, nodes, self)
        log_evidence = state.log_evidence
        assert log_evidence is not None
        probabilities = normalised(log_weights)
        size = ess(probabilities)
        over = not any(node.open for node in nodes)
        # A last resampling would only add noise to the answer.
        resample = not over and size < self.ess_threshold * self.num_particles * (1 - 1e-9)
        note = {"ess": size, "resampled": resample, "log_evidence": log_evidence}
        if resample:
            log_evidence += float(logsumexp(log_weights)) - np.log(len(nodes))
            rng = generator(tree.seed, "resample", len(state.info))
            ancestors = SCHEMES[self.resampling](probabilities, len(nodes), rng)
            nodes, log_weights = [nodes[a] for a in ancestors], np.zeros(len(nodes))
        return State(nodes, log_weights, log_evidence, over, [*state.info, note])

    def _advance(
        self, tree: Tree, state: State
    ) -> tuple[list[Node], np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """One expansion per open particle; copies of one node are forks of it."""
        nodes, log_weights = list(state.nodes), state.log_weights.copy()
        going = [i for i, node in enumerate(nodes) if node.open and log_weights[i] > -np.inf]
        for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
            nodes[i] = child
            log_weights[i] += child.log_increment
        return nodes, log_weights

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        assert state.log_evidence is not None
        total = float(logsumexp(state.log_weights)) - np.log(len(state.nodes))
        return state.nodes, state.log_weights.tolist(), state.log_evidence + total
