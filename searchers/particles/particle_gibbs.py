"""Particle Gibbs over answers (Andrieu, Doucet, Holenstein 2010; with a PRM, Puri et al. 2025,
arXiv:2502.01618, Algorithm 2), and parallel tempering of such chains (there Algorithm 3).

    sweep 1  plain SMC that resamples in every round
    repeat   draw one of the particles by its weight: the reference
             a conditional sweep of N - 1 free particles and the reference

A sweep leaves the posterior invariant, so with more sweeps the answers come from the posterior for
every N, where more sweeps of plain SMC would only average its bias. There is no evidence estimate:
later sweeps are not properly weighted, take `SMC` for that.
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
from ppl.searchers.particles import conditional_smc
from ppl.searchers.particles.conditional_smc import Sweep
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State


@dataclass(frozen=True)
class Chains(State):
    """What the next round needs: a sweep per chain, and the finished sweeps of the first chain."""

    sweeps: tuple[Sweep, ...]
    done: tuple[Sweep, ...] = ()


@dataclass(frozen=True)
class ParticleGibbs(Searcher[Chains]):
    """A chain of conditional SMC sweeps.

    Attributes:
        num_particles: N, of each sweep; two at least for a chain that moves.
        sweeps: how many; one is plain SMC.
        ancestor_sampling: give the reference a new past in every round, so that its early steps
            change too where N is small. Costs scores of the reference's future after every other
            particle's past: of the order of N T^2 steps a sweep, none of them generated.

    All particles of all sweeps make the result, each sweep with the same total weight.
    """

    num_particles: int
    sweeps: int
    ancestor_sampling: bool = False

    def __post_init__(self) -> None:
        checks.count(num_particles=self.num_particles, sweeps=self.sweeps)
        check_fields(self)

    @property
    def _exponents(self) -> tuple[float, ...]:
        return (1.0,)

    def start(self, tree: Tree) -> Chains:
        """A first sweep per chain, conditioned on nothing."""
        return Chains(self._begin(tree, 0, [None] * len(self._exponents)))

    def _begin(
        self, tree: Tree, number: int, references: Sequence[Node | None]
    ) -> tuple[Sweep, ...]:
        k, n = len(self._exponents), self.num_particles
        return tuple(
            conditional_smc.begin(tree, n, number * k + i, reference, exponent)
            for i, (reference, exponent) in enumerate(zip(references, self._exponents, strict=True))
        )

    def step(self, tree: Tree, state: Chains) -> tuple[Chains, Note]:
        """One step of every sweep. When all have ended, each draws a path, chains exchange theirs,
        and the next sweeps begin, conditioned on them."""
        going = [sweep for sweep in state.sweeps if sweep.rounds == 0 or not sweep.over]
        moved = iter(conditional_smc.advance(tree, going, ancestor_sampling=self.ancestor_sampling))
        sweeps = tuple(next(moved) if sweep in going else sweep for sweep in state.sweeps)
        for sweep in sweeps:
            if sweep.weights.dead:
                raise all_dead(tree, sweep.nodes, self)
        if not all(sweep.over for sweep in sweeps):
            return state.after(sweeps=sweeps), {}
        done = (*state.done, sweeps[0])
        paths = [conditional_smc.draw(tree, sweep) for sweep in sweeps]
        paths, note = self._exchange(tree, len(done), paths)
        if len(done) == self.sweeps:
            return state.after(sweeps=sweeps, done=done, over=True), note
        return state.after(sweeps=self._begin(tree, len(done), paths), done=done), note

    def _exchange(self, tree: Tree, number: int, paths: list[Node]) -> tuple[list[Node], Note]:
        return paths, {"reference": paths[0].identity}

    def result(self, tree: Tree, state: Chains) -> Result:
        """Particles of all sweeps of the chain of exponent one, each sweep with weight one."""
        done = state.done or state.sweeps[:1]
        nodes = [node for sweep in done for node in sweep.nodes]
        log_weights = [s.weights.log_weights - s.weights.log_sum for s in done]
        return Result(nodes, np.concatenate(log_weights).tolist())


@dataclass(frozen=True)
class ParallelTempering(ParticleGibbs):
    """Particle Gibbs chains at several temperatures that exchange their references.

    Chain k targets p(x) * A(x)^b_k, A the observed likelihood: hot chains (small b) wander, the
    first (b = 1) is the result. After every sweep, neighbours i and j exchange their references
    with probability min(1, (A(x_j) / A(x_i))^(b_i - b_j)), in even and odd pairs by turns. Only
    the likelihood is tempered, so the model's probabilities cancel.

    Attributes:
        inverse_temperatures: b of each chain, from 1 downwards. With 1 alone it is particle Gibbs.
    """

    inverse_temperatures: tuple[float, ...] = (1.0, 0.5, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        b = self.inverse_temperatures
        if not b or b[0] != 1 or list(b) != sorted(set(b), reverse=True) or b[-1] < 0:
            raise ValueError(f"inverse_temperatures={b}: from 1.0 downwards, none below zero")

    @property
    def _exponents(self) -> tuple[float, ...]:
        return self.inverse_temperatures

    def _exchange(self, tree: Tree, number: int, paths: list[Node]) -> tuple[list[Node], Note]:
        rng = generator(tree.seed, "exchange", number)
        paths, b, exchanged = list(paths), self._exponents, []
        for i in range((number - 1) % 2, len(paths) - 1, 2):
            log_ratio = (b[i] - b[i + 1]) * (paths[i + 1].log_likelihood - paths[i].log_likelihood)
            if np.log(rng.random()) < log_ratio:
                paths[i], paths[i + 1] = paths[i + 1], paths[i]
                exchanged.append(i)
        return paths, {"reference": paths[0].identity, "exchanged": exchanged}
