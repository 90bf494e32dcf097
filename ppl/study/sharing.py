"""What k of n independent candidates have in common: equal beginnings are computed once.

An engine with a prefix cache computes the question once, and every beginning that several
candidates share once. Of short problems, where most candidates are alike, 32 candidates may cost a
verifier four times what one does. How many tokens of beginnings a subset of k holds, on average, is
known exactly: a beginning that m of n candidates share is in it with chance 1 - C(n-m, k)/C(n, k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ppl.study.runs import Candidate


@dataclass(frozen=True, eq=False)
class Beginnings:
    """The different beginnings of a pool's candidates, a step each.

    Attributes:
        n: candidates.
        shared: how many candidates have each beginning, `[B]`.
        tokens: of its last step, `[B]`; a candidate's tokens, divided by the lengths of its steps.
        inner: whether some candidate goes on after it, `[B]`.
    """

    n: int
    shared: NDArray[np.int64]
    tokens: NDArray[np.float64]
    inner: NDArray[np.bool_]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], n: int) -> Beginnings:
        """Those of a pool of n; candidates whose steps are not known share nothing."""
        found: dict[tuple[object, ...], list[float]] = {}  # shared, tokens, inner
        for i, candidate in enumerate(candidates):
            steps = candidate.steps or (i,)
            lengths = [max(1, len(step)) if isinstance(step, str) else 1 for step in steps]
            at: tuple[object, ...] = ()
            for step, length in zip(steps, lengths, strict=True):
                at = (hash(at), step)
                entry = found.setdefault(at, [0, 0.0, 0])
                entry[0] += 1
                entry[1] = max(entry[1], candidate.tokens * length / sum(lengths))
                entry[2] = max(entry[2], step is not steps[-1])
        table = np.array(list(found.values()), dtype=np.float64).reshape(-1, 3).T
        return cls(n, table[0].astype(np.int64), table[1], table[2] > 0)

    def kept(self, k: int) -> tuple[float, float]:
        """The share of all tokens of beginnings that k candidates hold, and that of inner ones."""
        chances = np.array([_hit(self.n, int(m), k) for m in self.shared])
        return _share(chances, self.tokens, k / self.n), _share(
            chances, self.inner.astype(np.float64), k / self.n
        )

    @property
    def total(self) -> float:
        """Tokens of all beginnings."""
        return float(self.tokens.sum())

    @property
    def joints(self) -> int:
        """Beginnings after which some candidate goes on: the model is given a token anew there."""
        return int(self.inner.sum())


def _share(chances: NDArray[np.float64], sizes: NDArray[np.float64], default: float) -> float:
    whole = float(sizes.sum())
    return float(chances @ sizes) / whole if whole else default


@lru_cache(maxsize=65536)
def _hit(n: int, m: int, k: int) -> float:
    """The chance that k of n hold at least one of m."""
    return 1.0 - math.comb(n - m, k) / math.comb(n, k)
