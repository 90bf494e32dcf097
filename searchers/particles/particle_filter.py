"""The particle filter of Puri et al. 2025 (arXiv:2502.01618, "Rollout Roulette"), as published.

    repeat  advance every unfinished particle to its next checkpoint
            r = the verifier's score of every particle, finished ones included
            draw N ancestors from softmax(r / T), r the reward (paper, Algorithm 1), or
            from softmax(logit(r) / T), the odds of r (released code)

This is not a sampler from p(x) * prod r. Two things differ from `SMC`: the weight is exp(r) or the
odds r / (1 - r), where the state-space model of the paper's own section 3 asks for r; and finished
particles are weighed again with their last score in every round that others still need, which
favours those who finish early with a high score. So there is no evidence, and the limit for many
particles depends on both. For the paper's model, properly weighted, use

    SMC(n, ess_threshold=1.0, resampling="multinomial")

docs/particles.md shows the difference in numbers. The set returned is the one after the last
resampling, as in the released code; its two decision rules are `posterior.best` (the default there)
and `posterior.sample(seed)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ppl.errors import WeightError
from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.particles.smc import advance
from ppl.searchers.particles.temperature import Temperature, check_temperature, temperature_at
from ppl.searchers.resampling import SCHEMES, Scheme, check_scheme
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Particles


@dataclass(frozen=True)
class ParticleFilter(Searcher[Particles]):
    """Particle filtering with rewards as published; for a properly weighted filter take `SMC`.

    Attributes:
        num_particles: N.
        weight: `"exp"`, softmax of the rewards as in Algorithm 1, or `"odds"`, softmax of their
            logits as in the released code.
        temperature: T of the softmax, or a rule for it. Towards 0 it is greedy, towards infinity
            plain sampling.
        resampling: how ancestors are drawn.

    Entropic particle filtering as released (Giannone et al. 2025, arXiv:2510.05825) is
    `ParticleFilter(n, "odds", EntropicAnnealing(max_steps), "systematic")`.

    The reward is the observed likelihood of a particle: with a verifier that aggregates by `"last"`
    its score of the text so far.
    """

    num_particles: int
    weight: Literal["exp", "odds"] = "exp"
    temperature: float | Temperature = 1.0
    resampling: Scheme = "multinomial"

    def __post_init__(self) -> None:
        checks.count(num_particles=self.num_particles)
        checks.one_of(("exp", "odds"), weight=self.weight)
        check_temperature("temperature", self.temperature)
        check_scheme(self.resampling)

    def start(self, tree: Tree) -> Particles:
        """N particles at the root."""
        n = self.num_particles
        return Particles((tree.root,) * n, Weights.equal(n))

    def step(self, tree: Tree, state: Particles) -> tuple[Particles, Note]:
        """Advances all and resamples by their tempered scores; no weight is carried on."""
        nodes, _ = advance(tree, state.nodes, state.weights)
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        log_weights, t = self._log_weights(nodes), state.round
        temperature = temperature_at(self.temperature, log_weights, t + 1)
        probabilities = Weights(log_weights / temperature).probabilities
        over = not any(node.open for node in nodes)
        rng = generator(tree.seed, "resample", t)
        ancestors = SCHEMES[self.resampling](probabilities, len(nodes), rng)
        nodes = [nodes[a] for a in ancestors]
        over = over or not any(node.open for node in nodes)
        note = {"probabilities": probabilities.tolist(), "temperature": temperature}
        return state.after(nodes=tuple(nodes), over=over), note

    def _log_weights(self, nodes: Sequence[Node]) -> NDArray[np.float64]:
        """`[N]` rewards or their logits; minus infinity for the dead."""
        rewards = np.array([node.value for node in nodes])
        if self.weight == "odds":
            if (rewards >= 1).any():
                raise WeightError(
                    f"{self!r}: a particle has the reward {rewards.max():.6g}, whose odds are not "
                    "finite; give the verifier a floor, or use weight='exp'"
                )
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(rewards) - np.log1p(-rewards))
        return np.where([node.dead for node in nodes], -np.inf, rewards)

    def result(self, tree: Tree, state: Particles) -> Result:
        """The particles, weighted equally; no evidence, for tempered scores estimate none."""
        return Result(state.nodes, state.weights.tolist())
