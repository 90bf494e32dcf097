"""What best-of-N and the vote make of a law of answers: exact, before a sample is drawn.

For plans and for tests: of a law that is known, or estimated from many samples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import poisson

from ppl.decide.columns import Floats
from ppl.decide.scaling.estimators import modal
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked


@checked
def best_of_n_law(probabilities: ArrayLike, scores: ArrayLike, n: int) -> Floats:
    """The law of the best of n independent samples.

    Of a score with distribution function F, F(s)^n - F(s-)^n; equal scores share theirs in
    proportion to their probabilities. For scores without ties it tends to n p(y) F(s(y))^(n-1).

    Args:
        probabilities: `[K]` of the outcomes, which sum to one.
        scores: `[K]`, larger is better.
        n: samples.

    Returns:
        `[K]`.
    """
    p, s = _law(probabilities), checks.numbers(scores=scores)
    if s.shape != p.shape or abs(p.sum() - 1) > 1e-6:
        raise ArgumentError("scores: one for each of probabilities, which sum to one")
    checks.count(n=n)
    _, level = np.unique(s, return_inverse=True)
    mass = np.bincount(level, p)
    below = np.concatenate([[0.0], np.cumsum(mass) / mass.sum()])
    chances = np.diff(below**n)
    return np.where(p > 0, p * chances[level] / np.where(mass > 0, mass, 1.0)[level], 0.0)


@checked
def best_of_n_divergence(n: int) -> float:
    """log n - (n - 1) / n: the most that KL(best-of-n law || sampled law) can be, in nats.

    It is reached where no two scores are equal (Beirami et al. 2024, arXiv 2401.01879).
    """
    checks.count(n=n)
    return math.log(n) - (n - 1) / n


@checked
def vote_law(probabilities: ArrayLike, n: int) -> Floats:
    """The chance that each answer wins the vote of n independent samples; ties are split.

    Counts are multinomial: independent Poisson counts, given that they add up to n.

    Args:
        probabilities: `[A]` of the answers; what is missing to one is that of no answer.
        n: samples. Takes some n^3 steps for each answer.

    Returns:
        `[A]`; sums to one less the chance that no sample has an answer.
    """
    p = _law(probabilities)
    checks.count(n=n)
    counts = np.arange(n + 1)
    laws = [poisson.pmf(counts, n * q) for q in p.tolist()]
    start = poisson.pmf(counts, n * max(0.0, 1.0 - float(p.sum())))
    whole = float(poisson.pmf(n, n))
    one = np.eye(len(p), dtype=np.bool_)
    return np.array([modal(start, laws, one[answer]) / whole for answer in range(len(p))])


def _law(probabilities: ArrayLike) -> Floats:
    p = checks.numbers(probabilities=probabilities)
    if p.ndim != 1 or not len(p) or (p < 0).any() or p.sum() > 1 + 1e-6:
        raise ArgumentError("probabilities: one axis, none below zero, one in sum at most")
    return p
