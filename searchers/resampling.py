"""Resampling: from normalised weights to ancestors, without bias.

Every scheme satisfies E[number of offspring of i] = N W_i; none ever chooses a weight of zero.
Douc, Cappe, Moulines 2005 (arXiv:cs/0507025) compare them; Chopin and Papaspiliopoulos 2020, ch. 9.
`optimal` is of another kind: it thins more atoms than N to N, without copies and with unequal
weights, so that E[new weight of i] = W_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks

Floats = NDArray[np.float64]
Ancestors = NDArray[np.int64]
Scheme = Literal["multinomial", "stratified", "systematic", "residual", "ssp"]


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


def ssp(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """Srinivasan sampling process: floor(N W_i) or ceil(N W_i) offspring each, as systematic, and
    negatively associated, so consistent in any order of the particles (Gerber, Chopin, Whiteley
    2019, Annals of Statistics 47(4))."""
    scaled = n * probabilities / probabilities.sum()
    copies = np.floor(scaled + 1e-12).astype(np.int64)
    fractions = np.clip(scaled - copies, 0.0, None)
    undecided = np.flatnonzero(fractions > 0)
    # Two fractions trade until one of them is 0 or 1; in expectation neither moves.
    i = int(undecided[0]) if len(undecided) else 0
    for j in map(int, undecided[1:]):
        rise = min(1 - fractions[i], fractions[j])
        fall = min(fractions[i], 1 - fractions[j])
        change = rise if rng.random() * (rise + fall) < fall else -fall
        fractions[i] += change
        fractions[j] -= change
        if fractions[i] > 1 - 1e-12:
            copies[i] += 1
            i = j
        elif fractions[i] < 1e-12:
            i = j
        elif fractions[j] > 1 - 1e-12:
            copies[j] += 1
    missing = n - int(copies.sum())
    if missing:  # the last fraction: 0 or 1 up to rounding
        assert missing == 1, missing
        copies[i] += 1
    return np.repeat(np.arange(len(copies)), copies)


def optimal(probabilities: Floats, n: int, rng: np.random.Generator) -> tuple[Ancestors, Floats]:
    """Thins M weighted atoms to at most n (Fearnhead and Clifford 2003, JRSS-B 65(4)).

    With the c that solves sum_i min(1, c W_i) = n, atoms with c W_i >= 1 are kept as they are; the
    others are kept with probability c W_i and then weigh 1 / c. Among all unbiased ways to do this
    it has the least expected squared error.

    Args:
        probabilities: `[M]` normalised weights.
        n: atoms to keep.

    Returns:
        Sorted indices of the survivors and their weights; where no more than n have weight, those,
        unchanged.
    """
    survivors = np.flatnonzero(probabilities)
    if len(survivors) <= n:
        return survivors, probabilities[survivors]
    order = survivors[np.argsort(-probabilities[survivors], kind="stable")]
    weights = probabilities[order]
    tails = np.cumsum(weights[::-1])[::-1]  # the k-th: mass left once the k heaviest are kept
    # Keep the fewest for which c W <= 1 holds for all others, with c = (n - k) / tail.
    kept = int(np.argmax((n - np.arange(n)) * weights[:n] <= tails[:n]))
    drawn = kept + systematic(weights[kept:] / tails[kept], n - kept, rng)
    weights[kept:] = tails[kept] / (n - kept)
    chosen = np.concatenate([np.arange(kept), drawn])
    chosen = chosen[np.argsort(order[chosen], kind="stable")]
    return order[chosen], weights[chosen]


def without_replacement(
    log_weights: Sequence[float], count: int, rng: np.random.Generator
) -> list[int]:
    """Indices drawn one after the other in proportion to their weights, none twice.

    By the largest of log-weight plus Gumbel noise, which is the same in one go (Vieira 2014).
    """
    keys = np.asarray(log_weights) + rng.gumbel(size=len(log_weights))
    chosen: list[int] = np.argsort(-keys, kind="stable")[:count].tolist()
    return chosen


SCHEMES: dict[Scheme, Callable[[Floats, int, np.random.Generator], Ancestors]] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}


def check_scheme(resampling: str) -> None:
    """Raises ValueError for a scheme that is not known."""
    checks.one_of(SCHEMES, resampling=resampling)
