"""Rules for the temperature T of resampling, round by round: ancestors are drawn from w^(1/T).

`EntropicAnnealing` is that of entropic particle filtering (Giannone et al. 2025, arXiv:2510.05825):
verifiers are over-confident in early steps, so resampling is flattened while the run is young and
the effective sample size e (a share of N) is low. Its lookahead modulation is not part of it; a
program says what it expects of the next steps with `ppl.twist`.

`TargetESS` takes the largest exponent 1/T whose effective sample size is not below a target, by
root finding, as adaptive tempering does (Zhou, Johansen, Aston 2016, arXiv:1303.3123).

`SMC` gives back to the survivors what resampling did not use of their weights. T depends on the
current particles alone, and given these the expected weight of each is what it was: the evidence
is unbiased for any rule here. (Adaptive SMC samplers, which anneal the target, are biased of order
1/N; here only resampling is annealed.) `ParticleFilter` drops the rest, as the released code of
entropic particle filtering does; what it then follows is a flattened law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.weights import ess, normalised
from ppl.searchers.parse import register

Floats = NDArray[np.float64]
_FLATTEST = 1e-6


class Temperature(Protocol):
    """T > 0 for round t = 1, 2, ... given `[N]` log-weights, not normalised."""

    def __call__(self, log_weights: Floats, t: int) -> float:
        """The temperature of round `t`, counted from 1, for log-weights `[N]`."""
        ...


def temperature_at(setting: float | Temperature, log_weights: Floats, t: int) -> float:
    """The temperature of round t: a constant, or what a rule says."""
    return setting(log_weights, t) if callable(setting) else setting


def check_temperature(name: str, setting: float | Temperature) -> None:
    """Raises ValueError for a constant temperature that is not positive and finite."""
    if not callable(setting):
        checks.positive(**{name: setting})


@register
@dataclass(frozen=True)
class EntropicAnnealing:
    """The temperature of entropic particle filtering, with the defaults of its released code.

    With u = t / max_steps, while e < ess_threshold and u < early_phase (else T = 1):

        "ess"      T = max(1, (1 - u) / e)
        "entropy"  T = 1 / (h + (1 - h) u), h the entropy of the weights divided by log N
        "base"     T = 2 - u

    Attributes:
        max_steps: rounds that a run may take.
        method: which.
        ess_threshold: share of N.
        early_phase: share of the rounds.
    """

    max_steps: int
    method: Literal["ess", "entropy", "base"] = "ess"
    ess_threshold: float = 0.5
    early_phase: float = 0.5

    def __post_init__(self) -> None:
        checks.count(max_steps=self.max_steps)
        checks.one_of(("ess", "entropy", "base"), method=self.method)
        checks.probability(ess_threshold=self.ess_threshold, early_phase=self.early_phase)

    def __call__(self, log_weights: Floats, t: int) -> float:
        """Above one while the weights are uneven in the early phase; one otherwise."""
        probabilities, n, u = normalised(log_weights), len(log_weights), t / self.max_steps
        e = ess(probabilities) / n
        if n == 1 or e >= self.ess_threshold or u >= self.early_phase:
            return 1.0
        if self.method == "ess":
            return max(1.0, (1 - u) / e)
        if self.method == "base":
            return 2 - u
        h = float(entr(probabilities).sum()) / math.log(n)
        return 1 / (h + (1 - h) * u)


@register
@dataclass(frozen=True)
class TargetESS:
    """The lowest T >= 1 for which the effective sample size of w^(1/T) is at least a target.

    Attributes:
        share: the target, a share of N. Where fewer particles are alive, they become equal.
    """

    share: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: a share of N, between 0 and 1")

    def __call__(self, log_weights: Floats, t: int) -> float:
        """The lowest temperature, at least one, at which the ESS is `share` N."""
        from scipy.optimize import brentq  # which takes a quarter of a second to import

        def excess(exponent: float) -> float:  # falls in the exponent
            return ess(normalised(exponent * log_weights)) - self.share * len(log_weights)

        if excess(1.0) >= 0:
            return 1.0
        if excess(_FLATTEST) <= 0:
            return 1 / _FLATTEST
        return 1 / float(brentq(excess, _FLATTEST, 1.0))
