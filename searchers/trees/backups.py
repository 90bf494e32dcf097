"""What MCTS makes of the values below a node: the rules that look at simulations alone.

    mean   (1/n) sum of v                     UCT
    max    max of v                           luck counts as skill
    soft   ((1/n) sum of v^lambda)^(1/lambda)   Power-UCT (Dam et al. 2019, 1911.00384)

With v = exp(R), R the sum of what a run observed, `soft` is exp of (1/lambda) log mean exp(lambda
R): a log-mean-exp of R at the inverse temperature lambda. At 1 it is `mean`, towards infinity
`max`, and at 0 it is exp of the mean of R. All three follow the simulations, which follow the
search: what it visits more counts more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ppl.runtime.node import Node


@dataclass(frozen=True)
class Mean:
    """The total is the sum of values."""

    start: float = 0.0

    def add(self, total: float, leaf: Node) -> float:
        """The total with one simulation more."""
        return total + leaf.value

    def log_value(self, total: float, visits: int) -> float:
        """log Q of a node that has been visited."""
        return math.log(total / visits) if total > 0 else -math.inf

    def value(self, total: float, visits: int) -> float:
        """Q."""
        return total / visits


@dataclass(frozen=True)
class Max:
    """The total is the largest R."""

    start: float = -math.inf

    def add(self, total: float, leaf: Node) -> float:
        """The total with one simulation more."""
        return max(total, leaf.log_likelihood)

    def log_value(self, total: float, visits: int) -> float:
        """log Q of a node that has been visited."""
        return total

    def value(self, total: float, visits: int) -> float:
        """Q."""
        return bounded_exp(total)


@dataclass(frozen=True)
class Soft:
    """The total is log sum exp(lambda R); at lambda = 0 the sum of R."""

    temperature: float

    @property
    def start(self) -> float:
        """The total of nothing."""
        return -math.inf if self.temperature else 0.0

    def add(self, total: float, leaf: Node) -> float:
        """The total with one simulation more."""
        if self.temperature == 0:
            return total + leaf.log_likelihood
        return float(np.logaddexp(total, self.temperature * leaf.log_likelihood))

    def log_value(self, total: float, visits: int) -> float:
        """log Q of a node that has been visited."""
        if self.temperature == 0:
            return total / visits
        return (total - math.log(visits)) / self.temperature

    def value(self, total: float, visits: int) -> float:
        """Q."""
        return bounded_exp(self.log_value(total, visits))


def bounded_exp(log_value: float) -> float:
    """exp, without overflow."""
    return math.exp(min(log_value, 700.0))
