"""Pessimistic selection: best-of-N that does not trust a reward more than it should.

Huang et al. 2025, "Is best-of-N the best of them?" (arXiv 2503.21878). Best-of-N over-optimises an
imperfect reward as N grows. Regularised by the chi-squared divergence from the sampled law, the
optimum is p(y) relu((r(y) - lambda) / beta), with lambda such that it is a law. Its answer is
drawn; a large beta is the sampled law, a small one best-of-N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ppl.decide.columns import Columns, Floats
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked


class PessimisticLaw(NamedTuple):
    """The regularised law and its threshold.

    Attributes:
        probabilities: `[N]`.
        threshold: lambda; what has a lower reward is never drawn.
    """

    probabilities: Floats
    threshold: float


@checked
def pessimistic_law(
    rewards: ArrayLike, beta: float, probabilities: ArrayLike | None = None
) -> PessimisticLaw:
    """p_i relu((r_i - lambda) / beta), which sum to one.

    Args:
        rewards: `[N]`, on any scale; a shift changes nothing but lambda.
        beta: above zero, in units of the rewards.
        probabilities: `[N]` of the sampled law; by default equal, as of samples.
    """
    checks.positive(beta=beta)
    r = checks.numbers(rewards=rewards)
    if r.ndim != 1 or not len(r) or not np.isfinite(r).all():
        raise ArgumentError("rewards: finite, one axis, [N], at least one")
    p = np.full(len(r), 1 / len(r))
    if probabilities is not None:
        p = checks.numbers(probabilities=probabilities)
        if p.shape != r.shape or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
            raise ArgumentError(f"probabilities: {len(r)} that sum to one, none below zero")
    threshold = float(_threshold(r, p, beta))
    found = p * np.maximum(r - threshold, 0.0) / beta
    return PessimisticLaw(found / found.sum(), threshold)


@dataclass(frozen=True)
class Pessimistic:
    """Weights of pessimistic selection over equal samples.

    `draw(candidates, Pessimistic(beta), seed=...)` is the published rule, whose answer is drawn;
    `vote` takes the most probable one.

    Args:
        beta: in units of the rewards, see `pessimistic_law`.
    """

    beta: float

    def __post_init__(self) -> None:
        check_fields(self)
        checks.positive(beta=self.beta)

    def __call__(self, columns: Columns) -> Floats:
        """See `Weighting`."""
        there = columns.there
        base = there / np.maximum(there.sum(axis=-1, keepdims=True), 1)
        rewards = np.where(there, columns["rewards"], 0.0)
        threshold = _threshold(rewards, base, self.beta)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(base * np.maximum(rewards - threshold[..., None], 0.0)))


def _threshold(rewards: Floats, base: Floats, beta: float) -> Floats:
    """`[...]`: lambda with sum of base * relu(rewards - lambda) = beta, along the last axis.

    Of the j best, lambda is (sum of base * rewards - beta) / sum of base; the right j is that whose
    lambda lies below its worst reward and not below the next.
    """
    order = np.argsort(-np.where(base > 0, rewards, -np.inf), axis=-1)
    r = np.take_along_axis(rewards, order, axis=-1)
    p = np.take_along_axis(base, order, axis=-1)
    mass = np.cumsum(p, axis=-1)
    found = (np.cumsum(p * r, axis=-1) - beta) / np.where(mass > 0, mass, 1.0)
    inside = (r > found) & (p > 0)
    last = np.maximum(inside.sum(axis=-1, keepdims=True) - 1, 0)
    return np.take_along_axis(found, last, axis=-1)[..., 0]
