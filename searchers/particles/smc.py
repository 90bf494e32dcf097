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
from numpy.typing import NDArray
from scipy.special import logsumexp

from ppl.language.randomness import generator
from ppl.runtime.tree import Node, Tree
from ppl.searchers.particles.temperature import Temperature, check_temperature, temperature_at
from ppl.searchers.resampling import SCHEMES, Scheme, ess, normalised
from ppl.searchers.search import Searcher, State, all_dead

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SMC(Searcher):
    """Sequential Monte Carlo.

    Attributes:
        num_particles: N.
        ess_threshold: resample when the effective sample size is below this fraction of N; 1
            resamples whenever weights differ, 0 never.
        resampling: `"systematic"`, `"stratified"`, `"residual"`, `"ssp"` or `"multinomial"`.
        resampling_temperature: T > 0, or a rule (`EntropicAnnealing`, `TargetESS`); ancestors are
            drawn with probabilities R proportional to w^(1/T) and keep the weight w / (N R) that
            was not spent. Above 1 it protects diversity from an over-confident verifier.
        tempering: inverse temperatures b of the first rounds; later ones have 1. A round compares
            particles with A^b in the place of their observed likelihood A and returns what it left
            out to the survivors, so that only the path to the target changes, not the target.
    """

    num_particles: int
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"
    resampling_temperature: float | Temperature = 1.0
    tempering: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles={self.num_particles}: at least 1")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold={self.ess_threshold}: a fraction of N, in [0, 1]")
        if self.resampling not in SCHEMES:
            raise ValueError(f"resampling={self.resampling!r}: one of {', '.join(SCHEMES)}")
        check_temperature("resampling_temperature", self.resampling_temperature)
        if not all(0 <= b < np.inf for b in self.tempering):
            raise ValueError(f"tempering={self.tempering}: exponents of zero or more")

    def start(self, tree: Tree) -> State:
        n = self.num_particles
        return State([tree.root] * n, np.zeros(n), log_evidence=0.0)

    def step(self, tree: Tree, state: State) -> State:
        nodes, log_weights = advance(tree, state.nodes, state.log_weights)
        if log_weights.max() == -np.inf:
            raise all_dead(tree, nodes, self)
        log_evidence = state.log_evidence
        assert log_evidence is not None
        t = len(state.info)
        log_priorities = self._priorities(nodes, log_weights, t)
        size = ess(normalised(log_priorities))
        over = not any(node.open for node in nodes)
        # A last resampling would only add noise to the answer.
        resample = not over and size < self.ess_threshold * self.num_particles * (1 - 1e-9)
        note = {"ess": size, "resampled": resample, "log_evidence": log_evidence}
        if resample:
            log_mean = float(logsumexp(log_weights)) - np.log(len(nodes))
            log_evidence += log_mean
            temperature = temperature_at(self.resampling_temperature, log_priorities, t + 1)
            note["temperature"] = temperature
            probabilities = normalised(log_priorities / temperature)
            rng = generator(tree.seed, "resample", t)
            ancestors = SCHEMES[self.resampling](probabilities, len(nodes), rng)
            nodes = [nodes[a] for a in ancestors]
            if temperature == 1 and self._exponent(t) == 1:
                log_weights = np.zeros(len(nodes))
            else:  # N times its probability is the expected offspring of an ancestor
                offspring = np.log(len(nodes) * probabilities[ancestors])
                log_weights = log_weights[ancestors] - log_mean - offspring
        return State(nodes, log_weights, log_evidence, over, [*state.info, note])

    def _exponent(self, t: int) -> float:
        """Inverse temperature of round t = 0, 1, ..."""
        return self.tempering[t] if t < len(self.tempering) else 1.0

    def _priorities(self, nodes: Sequence[Node], log_weights: Floats, t: int) -> Floats:
        """`[N]` log-weights by which round t compares: with A^b in the place of A."""
        if self._exponent(t) == 1:
            return log_weights
        removed = (1 - self._exponent(t)) * np.array([node.log_likelihood for node in nodes])
        alive = log_weights > -np.inf
        return np.where(alive, log_weights - np.where(alive, removed, 0.0), -np.inf)

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        assert state.log_evidence is not None
        total = float(logsumexp(state.log_weights)) - np.log(len(state.nodes))
        return state.nodes, state.log_weights.tolist(), state.log_evidence + total


def advance(tree: Tree, nodes: Sequence[Node], log_weights: Floats) -> tuple[list[Node], Floats]:
    """One expansion per open particle of positive weight; copies of one node are forks of it."""
    nodes, log_weights = list(nodes), log_weights.copy()
    going = [i for i, node in enumerate(nodes) if node.open and log_weights[i] > -np.inf]
    for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
        nodes[i] = child
        log_weights[i] += child.log_increment
    return nodes, log_weights
