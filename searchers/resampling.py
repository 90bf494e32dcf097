"""Resampling: from normalised weights to ancestors, without bias.

Every scheme satisfies E[number of offspring of i] = N W_i; none ever chooses a weight of zero.
Douc, Cappe, Moulines 2005 (arXiv:cs/0507025) compare them; Chopin and Papaspiliopoulos 2020, ch. 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ancestors = NDArray[np.int64]
Scheme = Literal["multinomial", "stratified", "systematic", "residual"]


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


def _invert(points: Floats, probabilities: Floats) -> Ancestors:
    """For sorted or unsorted points in [0, 1), the index whose share of [0, 1) holds each."""
    edges = np.cumsum(probabilities)
    # Dividing by the last edge undoes rounding; weights of zero own no share, also at the end.
    edges /= edges[-1]
    indices = np.searchsorted(edges, points, side="right")
    last = int(np.flatnonzero(probabilities)[-1])
    return np.asarray(np.minimum(indices, last), dtype=np.int64)


def multinomial(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """N independent draws. The only scheme valid unchanged in conditional SMC."""
    return _invert(np.sort(rng.random(n)), probabilities)


def stratified(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform in each of N equal strata; variance never above multinomial."""
    return _invert((np.arange(n) + rng.random(n)) / n, probabilities)


def systematic(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform for all strata: floor(N W_i) or ceil(N W_i) offspring each."""
    return _invert((np.arange(n) + rng.random()) / n, probabilities)


def residual(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """floor(N W_i) offspring for sure, the rest multinomially by the fractional parts."""
    scaled = n * probabilities / probabilities.sum()
    # N W_i that is an integer up to rounding is meant to be one.
    copies = np.floor(scaled + 1e-12).astype(np.int64)
    sure = np.repeat(np.arange(len(probabilities)), copies)
    rest = n - len(sure)
    if rest == 0:
        return sure
    fractions = np.clip(scaled - copies, 0.0, None)
    return np.sort(np.concatenate([sure, multinomial(fractions / fractions.sum(), rest, rng)]))


SCHEMES: dict[Scheme, Callable[[Floats, int, np.random.Generator], Ancestors]] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}
