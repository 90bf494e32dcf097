"""Votes with weights on subsets of k among n samples.

No closed form is known for their mean over all subsets. Where these are few all are gone through,
and the mean is exact; else it is the mean over seeded random ones, and `Subsets.exact` says so.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.study.estimators import _sizes

MOST_ENUMERATED = 5000
"""Subsets that are gone through one by one: all of any size of 14, all pairs of 100. Where there
are more, some are sampled."""
DRAWN = 1000
"""Random subsets: a question's estimate is off by 0.016 at most (one standard error), and the mean
of 100 questions by 0.0016, a thirtieth of what the choice of questions does."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subsets:
    """Subsets of size k of n things.

    Attributes:
        members: `[S, k]`, each row rising.
        exact: whether these are all subsets.
    """

    members: Ints
    exact: bool


@checked
def subsets(n: int, k: int, *, seed: int | str = 0) -> Subsets:
    """All subsets of size k, or `DRAWN` random ones where there are more than `MOST_ENUMERATED`."""
    _sizes(n, k)
    count = math.comb(n, k)
    if count <= MOST_ENUMERATED:
        flat = itertools.chain.from_iterable(itertools.combinations(range(n), k))
        return Subsets(np.fromiter(flat, np.int64, count * k).reshape(count, k), True)
    keys = generator(seed, "subsets", n, k).random((DRAWN, n))
    members = np.argpartition(keys, k - 1, axis=1)[:, :k]
    return Subsets(np.sort(members, axis=1), False)


def weighted_vote(
    chosen: Ints, classes: Ints, log_weights: Floats, right: NDArray[np.bool_]
) -> float:
    """Mean over subsets of the weighted vote's score: 1 right, 0 wrong, ties by their share.

    Args:
        chosen: members of each subset, `[S, k]`.
        classes: of each sample, `[n]`, -1 without an answer.
        log_weights: `[n]`, unnormalised. Where all of a subset are minus infinity they count alike.
        right: of each class, `[C]`.
    """
    found = classes[chosen]  # [S, k]
    logs = np.where(found >= 0, log_weights[chosen], -np.inf)
    top = logs.max(axis=1, keepdims=True)
    flat = (found >= 0).astype(np.float64)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where the flat weights are taken
        weights = np.where(np.isneginf(top), flat, np.exp(logs - top))
    return _winners(found, weights, right)


def bests_vote(
    chosen: Ints, classes: Ints, scores: Floats, right: NDArray[np.bool_], *, draws: int
) -> float:
    """Mean over subsets of the majority of the bests (arXiv 2511.18630).

    The best of `draws` samples, drawn with replacement from the N answers of a subset, has rank r
    with the chance ((N-r)^m - (N-r-1)^m) / N^m; the answer with the largest chance is chosen.
    `draws = 1` is the vote, and infinitely many are best-of-N.

    Args:
        chosen, classes, right: as of `weighted_vote`.
        scores: `[n]`, the larger the better.
        draws: m.
    """
    found, values = classes[chosen], np.where(classes >= 0, scores, -np.inf)[chosen]
    order = np.lexsort((-values, found < 0), axis=1)  # the best first, those without answer last
    found = np.take_along_axis(found, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    there = found >= 0
    # Ranks [better, better + alike) are those of one score.
    begins = np.ones_like(there)
    begins[:, 1:] = (values[:, 1:] != values[:, :-1]) | (there[:, 1:] != there[:, :-1])
    places = np.arange(found.shape[1])
    better = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    ends = np.where(begins, places, found.shape[1])[:, ::-1]
    after = np.minimum.accumulate(ends, axis=1)[:, ::-1]  # where the next one begins, or this one
    after = np.concatenate([after[:, 1:], np.full((len(found), 1), found.shape[1])], axis=1)
    alike = after - better
    total = np.maximum(there.sum(axis=1, keepdims=True), 1)
    below, above = (total - better) / total, (total - better - alike) / total
    weights = (below**draws - np.maximum(above, 0.0) ** draws) / np.maximum(alike, 1)
    return _winners(found, np.where(there, weights, 0.0), right)


def _winners(found: Ints, weights: Floats, right: NDArray[np.bool_]) -> float:
    """`found` [S, k] classes with `weights` [S, k]: the mean share of right ones at the top."""
    rows, width = len(found), len(right) + 1
    cells = np.arange(rows)[:, None] * width + found + 1  # column 0: no answer
    totals = np.bincount(cells.ravel(), weights.ravel(), rows * width).reshape(rows, width)[:, 1:]
    seen = np.bincount(cells.ravel(), minlength=rows * width).reshape(rows, width)[:, 1:] > 0
    if not width - 1:
        return 0.0
    # Sums of equal weights in another order differ in their last digits, and are ties still.
    top = totals.max(axis=1, keepdims=True)
    tied = seen & (totals >= top * (1 - 1e-12))
    count = tied.sum(axis=1)
    return float(np.mean((tied & right).sum(axis=1) / np.maximum(count, 1)))
