"""Weights of particles: an immutable value in log space.

    w = Weights.equal(N)
    w = w.add(log_increments)          log w_i += log G_i
    w = w.resample(ancestors)          log Z += log mean w;  w = 1
    w.log_evidence                     log Z + log mean w

Evidence that resampling has taken out of the weights is carried along, so that it cannot be lost
(the design of Chopin's `particles`, there `Weights`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cached import cached_property

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Weights:
    """`[N]` log-weights, not normalised, and the evidence of earlier resamplings.

    Attributes:
        log_weights: `[N]`, read-only.
        log_carried: log-evidence that resamplings have taken out of the weights.
    """

    log_weights: Floats
    log_carried: float = 0.0

    def __post_init__(self) -> None:
        log_weights = checks.numbers(log_weights=self.log_weights)
        if log_weights.ndim != 1:
            raise ValueError(f"log_weights of shape {list(log_weights.shape)}: one axis, [N]")
        checks.number(log_carried=self.log_carried)
        log_weights.flags.writeable = False
        object.__setattr__(self, "log_weights", log_weights)

    @classmethod
    @checked
    def equal(cls, n: int, log_weight: float = 0.0) -> Weights:
        """N weights of the same size."""
        checks.count(least=0, n=n)
        return cls(np.full(n, float(log_weight)))

    def __len__(self) -> int:
        return len(self.log_weights)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights):
            return NotImplemented
        same = np.array_equal(self.log_weights, other.log_weights)
        return same and self.log_carried == other.log_carried

    def __hash__(self) -> int:
        return hash((self.log_weights.tobytes(), self.log_carried))

    def tolist(self) -> list[float]:
        """The log-weights."""
        return list(map(float, self.log_weights))

    @property
    def dead(self) -> bool:
        """True if no particle has weight."""
        return not len(self) or bool(self.log_weights.max() == -np.inf)

    @cached_property
    def probabilities(self) -> Floats:
        """`[N]` normalised weights.

        Raises:
            ValueError: a weight is NaN or infinite, or all are zero.
        """
        return normalised(self.log_weights)

    @property
    def ess(self) -> float:
        """Effective sample size, between 1 and N."""
        return ess(self.probabilities)

    @property
    def log_sum(self) -> float:
        """log of the sum; minus infinity if there is nothing to add."""
        return float(logsumexp(self.log_weights)) if len(self) else -math.inf

    @property
    def log_mean(self) -> float:
        """log of the mean."""
        return self.log_sum - float(np.log(len(self)))

    @property
    def log_evidence(self) -> float:
        """log of the estimate of the evidence: what was carried, and the mean of what is here."""
        return self.log_carried + self.log_mean

    def add(self, log_increments: Floats | Sequence[float]) -> Weights:
        """Every weight times its own factor."""
        factors = checks.numbers(log_increments=log_increments)
        if factors.shape != self.log_weights.shape:
            raise ValueError(f"log_increments: {len(factors)} for {len(self)} particles")
        return Weights(self.log_weights + factors, self.log_carried)

    @checked
    def flatten(self, temperature: float) -> Weights:
        """`w^(1/T)`: to draw by, not to weigh with."""
        checks.positive(temperature=temperature)
        return Weights(self.log_weights / temperature, self.log_carried)

    def resample(
        self, ancestors: Sequence[int] | Ints, log_offspring: Floats | None = None
    ) -> Weights:
        """The weights of copies; their mean goes into the evidence.

        Args:
            ancestors: `[N]` who is copied.
            log_offspring: `[N]` log of the expected number of copies of every particle, where that
                is not N times its probability: a copy then keeps what was not spent, `w / (mean w *
                offspring)`.
        """
        copied = checks.numbers(ancestors=ancestors)
        if not np.isin(copied, np.arange(len(self))).all():
            raise ValueError(f"ancestors={shown(ancestors)}: numbers from 0 to {len(self) - 1}")
        carried = self.log_carried + self.log_mean
        if log_offspring is None:
            return Weights(np.zeros(len(ancestors)), carried)
        drawn = np.asarray(ancestors)
        return Weights(self.log_weights[drawn] - self.log_mean - log_offspring[drawn], carried)


def normalised(log_weights: Floats) -> Floats:
    """`[N]` probabilities from `[N]` log-weights.

    Raises:
        ValueError: a weight is NaN or infinite, or all are zero.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        raise ValueError("a log-weight is NaN or plus infinity")
    if log_weights.size == 0 or log_weights.max() == -np.inf:
        raise ValueError("all weights are zero: there is nothing to resample")
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


def ess(probabilities: Floats) -> float:
    """Effective sample size 1 / sum W_i^2, between 1 and N."""
    return float(1.0 / np.sum(probabilities**2))
