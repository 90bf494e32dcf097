"""SMC for the power target p(x)^alpha, which needs no verifier (power sampling: Karan and Du 2025,
arXiv:2510.14901; by SMC: Power-SMC 2026, arXiv:2602.10273).

    for every particle and token
        propose from p(v | x)^alpha / sum_v p(v | x)^alpha, which is temperature 1 / alpha
        log w += log sum_v p(v | x)^alpha, whatever token was drawn
    at every checkpoint
        if ESS < kappa N: resample
    with a ramp alpha rises from 1, and where it does
        log w += (alpha_t - alpha_(t-1)) log p(all of x so far)

A low temperature alone is another law: it sharpens every token by itself and does not know where
few continuations lead. What the program observes stays in the target, p(x)^alpha * A(x), and
exp(log_evidence) is an unbiased estimate of that target's mass, sum_x p(x)^alpha A(x). A finished
particle follows the ramp with what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppl.language import checks
from ppl.language.primitives import power
from ppl.runtime.node import Node
from ppl.runtime.particle import Program
from ppl.runtime.weights import Weights
from ppl.searchers.likelihood import log_prior
from ppl.searchers.particles.smc import SMC


@dataclass(frozen=True)
class PowerSMC(SMC):
    """SMC for p(x)^alpha times what the program observes: the posterior of `ppl.power(program,
    alpha)`.

    Programs mark where particles may be compared: of one that observes nothing, by
    `ppl.twist(name, 0.0)` every 64 tokens or so, as published. Sites of a guide and sites with
    `top_p` are proposed as they stand, which is exact too, only with more spread.

    Attributes:
        num_particles: N; 32 as published.
        alpha: the exponent. 2 as published, 4 in the paper on Markov chains.
        ramp: rounds over which the exponent rises from 1 to alpha; 0 has alpha from the start.
            Published are 100 to 400 tokens.
    """

    num_particles: int = 32
    alpha: float = 2.0
    ramp: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(alpha=self.alpha)
        checks.count(least=0, ramp=self.ramp)

    def target(self, program: Program) -> Program:
        """The program with its choices to the power alpha."""
        return power(program, self.alpha)

    def _power(self, t: int) -> float:
        """The exponent of round t = 0, 1, ..."""
        share = 1.0 if self.ramp == 0 else min(1.0, (t + 1) / self.ramp)
        return 1.0 + share * (self.alpha - 1.0)

    def _priorities(self, nodes: Sequence[Node], weights: Weights, t: int) -> Weights:
        """Weights for p^(alpha_t) in the place of p^alpha, which the tree weighs with. What
        resampling does not use of them survives, and is there when the exponent has risen."""
        missing = self._power(t) - self.alpha
        weights = super()._priorities(nodes, weights, t)
        if missing == 0:
            return weights
        return weights.add([0.0 if n.dead else missing * log_prior(n) for n in nodes])
