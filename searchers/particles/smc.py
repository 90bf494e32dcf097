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

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.particles.temperature import Temperature, check_temperature, temperature_at
from ppl.searchers.resampling import Scheme, Uneven, check_scheme, resampled
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Particles


@dataclass(frozen=True)
class SMC(Searcher[Particles]):
    """Sequential Monte Carlo.

    Attributes:
        num_particles: N.
        ess_threshold: resample when the effective sample size is below this fraction of N; 1
            resamples whenever weights differ, 0 never.
        resampling: `"systematic"`, `"stratified"`, `"residual"`, `"ssp"` or `"multinomial"`; or
            `"chopthin"`, which bounds the ratio of weights in the place of making them equal.
        resampling_temperature: T > 0, or a rule (`EntropicAnnealing`, `TargetESS`); ancestors are
            drawn with probabilities R proportional to w^(1/T) and keep the weight w / (N R) that
            was not spent. Above 1 it protects diversity from an over-confident verifier.
        tempering: inverse temperatures b of the first rounds; later ones have 1. A round compares
            particles with A^b in the place of their observed likelihood A and returns what it left
            out to the survivors, so that only the path to the target changes, not the target.
    """

    num_particles: int
    ess_threshold: float = 0.5
    resampling: Scheme | Uneven = "systematic"
    resampling_temperature: float | Temperature = 1.0
    tempering: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(num_particles=self.num_particles)
        checks.probability(ess_threshold=self.ess_threshold)
        check_scheme(self.resampling, uneven=True)
        check_temperature("resampling_temperature", self.resampling_temperature)
        for exponent in self.tempering:
            checks.nonnegative(tempering=exponent)

    def start(self, tree: Tree) -> Particles:
        """N particles of equal weight, at the root."""
        n = self.num_particles
        return Particles((tree.root,) * n, Weights.equal(n))

    def step(self, tree: Tree, state: Particles) -> tuple[Particles, Note]:
        """Advances and weighs all; resamples when the ESS falls below `ess_threshold` N."""
        nodes, weights = advance(tree, state.nodes, state.weights, self._power(state.round))
        if weights.dead:
            raise all_dead(tree, nodes, self)
        t = state.round
        priorities = self._priorities(nodes, weights, t)
        size = priorities.ess
        over = not any(node.open for node in nodes)
        note = {"ess": size, "resampled": False, "log_evidence": weights.log_carried}
        # A last resampling would only add noise to the answer.
        if not over and size < self.ess_threshold * self.num_particles * (1 - 1e-9):
            nodes, weights, temperature = self._resample(tree, nodes, weights, priorities, t)
            nodes, moved = self.move(tree, nodes, t + 1)
            note |= {"resampled": True, "temperature": temperature, **moved}
        return state.after(nodes=tuple(nodes), weights=weights, over=over), note

    def _resample(
        self, tree: Tree, nodes: Sequence[Node], weights: Weights, priorities: Weights, t: int
    ) -> tuple[list[Node], Weights, float]:
        temperature = temperature_at(self.resampling_temperature, priorities.log_weights, t + 1)
        probabilities = priorities.flatten(temperature).probabilities
        rng = generator(tree.seed, "resample", t)
        ancestors, shares = resampled(self.resampling, probabilities, len(nodes), rng)
        if temperature == 1 and priorities is weights:
            weights = weights.resample(ancestors)
        else:  # N times its probability is the expected offspring of an ancestor
            with np.errstate(divide="ignore"):
                weights = weights.resample(ancestors, np.log(len(nodes) * probabilities))
        if shares is not None:
            weights = weights.add(np.log(len(nodes) * shares))
        return [nodes[a] for a in ancestors], weights, temperature

    def move(self, tree: Tree, nodes: list[Node], rounds: int) -> tuple[list[Node], Note]:
        """What happens to copies right after they were made; here nothing."""
        return nodes, {}

    def _power(self, t: int) -> float:
        """What language models draw with in round t, see `Tree.expand`."""
        return 1.0

    def _exponent(self, t: int) -> float:
        """Inverse temperature of round t = 0, 1, ..."""
        return self.tempering[t] if t < len(self.tempering) else 1.0

    def _priorities(self, nodes: Sequence[Node], weights: Weights, t: int) -> Weights:
        """`[N]` weights by which round t compares: with A^b in the place of A."""
        if self._exponent(t) == 1:
            return weights
        # What is dead stays so: its likelihood is infinitely far down, and has no power.
        removed = [0.0 if n.dead else (self._exponent(t) - 1) * n.log_likelihood for n in nodes]
        return weights.add(removed)

    def result(self, tree: Tree, state: Particles) -> Result:
        """The particles with their weights and an unbiased estimate of the evidence."""
        return Result(state.nodes, state.weights.tolist(), state.weights.log_evidence)


def advance(
    tree: Tree, nodes: Sequence[Node], weights: Weights, power: float = 1.0
) -> tuple[list[Node], Weights]:
    """One expansion per open particle of positive weight; copies of one node are forks of it."""
    moved = list(nodes)
    going = [i for i, node in enumerate(nodes) if node.open and weights.log_weights[i] > -np.inf]
    log_increments = np.zeros(len(nodes))
    for i, child in zip(going, tree.expand([nodes[i] for i in going], power=power), strict=True):
        moved[i] = child
        log_increments[i] = child.log_increment
    return moved, weights.add(log_increments)
