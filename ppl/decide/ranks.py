"""Rules that need no more than the order of candidates: they mean the same on any rising scale.

    MajorityOfTheBests(draws)    the answer that is most often the best of a few (2511.18630)
    Borda(power)                 votes by rank (with self-certainty: Kang et al. 2025, 2502.18581)

Both go from the vote to best-of-N as their setting grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppl.decide.columns import COLUMNS, Bools, Columns, Floats, Ints
from ppl.language import checks
from ppl.language.arguments import check_fields


@dataclass(frozen=True)
class MajorityOfTheBests:
    """Weights of the majority of the bests (arXiv 2511.18630).

    The best of m candidates that are drawn with replacement from N has rank r = 0, 1, ... with the
    chance ((N-r)^m - (N-r-1)^m) / N^m, which is the weight; equal candidates share theirs. N counts
    candidates with an answer. One draw is the vote, and infinitely many are best-of-N.

    Args:
        draws: m; by default the root of N, rounded (choose it on other questions than it is
            reported on).
        by: what ranks the candidates.
    """

    draws: int | None = None
    by: str = "log_scores"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draws is not None:
            checks.count(draws=self.draws)
        checks.one_of(COLUMNS, by=self.by)

    def __call__(self, columns: Columns) -> Floats:
        """See `Weighting`."""
        there = columns.there
        better, alike = _ranks(columns[self.by], there)
        total = np.maximum(there.sum(axis=-1, keepdims=True), 1)
        draws = np.round(np.sqrt(total)) if self.draws is None else self.draws
        below, above = (total - better) / total, (total - better - alike) / total
        chances = (below**draws - np.maximum(above, 0.0) ** draws) / np.maximum(alike, 1)
        with np.errstate(divide="ignore"):
            return np.log(np.where(there, chances, 0.0))


@dataclass(frozen=True)
class Borda:
    """Votes by rank: (N - r + 1)^p for rank r = 1, ..., N, the mean of them among equals.

    The rule of self-certainty (Kang et al. 2025, arXiv 2502.18581), which ranks by it. p = 0 is the
    vote, and p to infinity is best-of-N.

    Args:
        power: p; zero or more. There is no default: choose it on other questions.
        by: what ranks the candidates.
    """

    power: float
    by: str = "certainties"

    def __post_init__(self) -> None:
        check_fields(self)
        checks.nonnegative(power=self.power)
        checks.one_of(COLUMNS, by=self.by)

    def __call__(self, columns: Columns) -> Floats:
        """See `Weighting`."""
        there = columns.there
        better, alike = _ranks(columns[self.by], there)
        total = there.sum(axis=-1, keepdims=True)
        # (place / N)^p of all places, so that the largest vote is 1; sums of equals by differences.
        places = np.arange(1, there.shape[-1] + 1)
        votes = (np.minimum(places, np.maximum(total, 1)) / np.maximum(total, 1)) ** self.power
        sums = np.concatenate([np.zeros((*votes.shape[:-1], 1)), np.cumsum(votes, axis=-1)], -1)
        upper = np.clip(total - better, 0, None)
        lower = np.clip(total - better - alike, 0, None)
        one = np.take_along_axis(votes, np.maximum(upper - 1, 0), -1)
        group = np.take_along_axis(sums, upper, -1) - np.take_along_axis(sums, lower, -1)
        mean = np.where(alike == 1, one, group / np.maximum(alike, 1))
        with np.errstate(divide="ignore"):
            return np.log(np.where(there, np.maximum(mean, 0.0), 0.0))


class _Ranks(NamedTuple):
    """Of each candidate, `[..., N]`: how many are better, and how many equal with itself."""

    better: Ints
    alike: Ints


def _ranks(values: Floats, there: Bools) -> _Ranks:
    """Ranks among the candidates with an answer; the others are last, and not counted."""
    order = np.lexsort((-values, ~there), axis=-1)
    sorted_values = np.take_along_axis(values, order, axis=-1)
    sorted_there = np.take_along_axis(there, order, axis=-1)
    begins = np.ones_like(sorted_there)
    changed = sorted_values[..., 1:] != sorted_values[..., :-1]
    begins[..., 1:] = changed | (sorted_there[..., 1:] != sorted_there[..., :-1])
    size = values.shape[-1]
    places = np.arange(size)
    # Places [better, better + alike) are those of one value.
    better = np.maximum.accumulate(np.where(begins, places, 0), axis=-1)
    next_begin = np.where(begins, places, size)
    after = np.minimum.accumulate(next_begin[..., ::-1], axis=-1)[..., ::-1]
    after = np.concatenate([after[..., 1:], np.full((*after.shape[:-1], 1), size)], axis=-1)
    found = np.empty_like(better), np.empty_like(better)
    np.put_along_axis(found[0], order, better, axis=-1)
    np.put_along_axis(found[1], order, after - better, axis=-1)
    return _Ranks(*found)
