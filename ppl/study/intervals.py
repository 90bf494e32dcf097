"""Intervals of accuracies, and what two methods differ by on the same questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator

Z = 1.959963984540054  # 97.5% quantile of the normal law
RESAMPLED = 4000
"""Bootstrap samples of the questions."""
FLIPPED = 20_000
"""Random sign patterns, where all of them are too many."""
_MOST_FLIPS = 14  # differences whose 2^14 sign patterns are gone through


@checked
def wilson(right: float, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); (0, 1) of nothing.

    `right` may be a sum of chances: the spread of such a sum is no larger than that of a count, so
    that the interval is then wider than it need be, never too narrow.
    """
    checks.count(least=0, count=count)
    if not 0 <= right <= count * (1 + 1e-12):
        raise ArgumentError(f"right={right!r}: from 0 to count={count}")
    if count == 0:
        return 0.0, 1.0
    share = min(1.0, right / count)
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    spread = math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    half = Z / (1 + Z * Z / count) * spread
    # Rounding must not put the share outside of its interval.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@checked
def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so many wins and losses, if either was as likely (McNemar 1947).

    Questions that both methods answer alike say nothing. 1.0 without wins and losses.
    """
    checks.count(least=0, wins=wins, losses=losses)
    if wins + losses == 0:
        return 1.0
    return float(binomtest(wins, wins + losses).pvalue)


@dataclass(frozen=True)
class Paired:
    """What two methods differ by on the same questions.

    Attributes:
        difference: mean of the first's outcomes minus the second's.
        low, high: 95% interval, percentiles of the bootstrap over questions.
        wins, losses: questions on which the first does better, or worse.
        p: two-sided p-value of no difference.
        test: `"McNemar"`, exact, where all outcomes are 0 or 1; else `"sign flips"`, the same test
            for chances: the signs of the differences are as likely either way.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    test: str


@checked
def paired(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Paired:
    """Compares two methods on the same questions.

    Args:
        a, b: outcomes, `[Q]` each: 0, 1, or the chance to be right.
        seed: of the bootstrap, and of the sign flips where these are drawn.
    """
    first, second = checks.numbers(a=a), checks.numbers(b=b)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ArgumentError(f"b: outcomes of the same questions as a, {first.shape}")
    gaps = np.where(np.abs(first - second) < 1e-12, 0.0, first - second)
    means = _resamples(len(gaps), seed) @ gaps / len(gaps)
    low, high = np.quantile(means, [0.025, 0.975])
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    whole = bool(np.isin(gaps, (-1.0, 0.0, 1.0)).all())
    p = mcnemar(wins, losses) if whole else _sign_flips(gaps[gaps != 0].tolist(), seed)
    test = "McNemar" if whole else "sign flips"
    return Paired(float(gaps.mean()), float(low), float(high), wins, losses, p, test)


@lru_cache(maxsize=4)
def _resamples(count: int, seed: int) -> NDArray[np.float64]:
    """`[RESAMPLED, count]`: how often each question is drawn, shared by all comparisons."""
    rng = generator(seed, "bootstrap", count)
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLED).astype(np.float64)


def _sign_flips(gaps: Sequence[float], seed: int) -> float:
    """The chance that random signs make the sum at least as large; the observed ones count."""
    seen = abs(math.fsum(gaps)) * (1 - 1e-12)
    if len(gaps) <= _MOST_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(gaps))))
        return float(np.mean(np.abs(signs @ np.array(gaps)) >= seen))
    rng = generator(seed, "sign flips", len(gaps))
    signs = rng.choice((-1.0, 1.0), (FLIPPED, len(gaps)))
    hits = int((np.abs(signs @ np.array(gaps)) >= seen).sum())
    return (hits + 1) / (FLIPPED + 1)
