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

from ppl.decide.scaling.estimators import check_sizes
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.posterior.votes import leading, pooled

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
def subsets(
    n: int, k: int, *, seed: int | str = 0, most: int = MOST_ENUMERATED, drawn: int = DRAWN
) -> Subsets:
    """All subsets of size k, or `drawn` random ones where there are more than `most`."""
    checks.count(most=most, drawn=drawn)
    check_sizes(n, k)
    count = math.comb(n, k)
    if count <= most:
        flat = itertools.chain.from_iterable(itertools.combinations(range(n), k))
        return Subsets(np.fromiter(flat, np.int64, count * k).reshape(count, k), True)
    keys = generator(seed, "subsets", n, k).random((drawn, n))
    members = np.argpartition(keys, k - 1, axis=1)[:, :k]
    return Subsets(np.sort(members, axis=1), False)


def vote_on_sets(classes: Ints, log_weights: Floats, right: NDArray[np.bool_]) -> float:
    """Mean over sets of the vote's score: 1 right, 0 wrong, ties by their share.

    Args:
        classes: of each member of each set, `[S, k]`, -1 without an answer.
        log_weights: `[S, k]`, not normalised. Where all of a set are minus infinity they count
            alike.
        right: of each class, `[C]`.
    """
    totals, seen = pooled(classes, log_weights, len(right))
    tied = leading(totals, seen)
    return float(np.mean((tied & right).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)))


def draw_from_sets(classes: Ints, log_weights: Floats, right: NDArray[np.bool_]) -> float:
    """Mean over sets of the chance that an answer drawn with the weights is right.

    Args:
        classes, log_weights, right: as of `vote_on_sets`.
    """
    totals, _ = pooled(classes, log_weights, len(right))
    whole = totals.sum(axis=1)
    return float(np.mean((totals * right).sum(axis=1) / np.where(whole > 0, whole, 1.0)))
