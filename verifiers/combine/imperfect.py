"""When does one more sample hurt? Resampling until an imperfect verifier accepts.

Stroebl, Kapoor and Narayanan 2024 (arXiv 2411.17501). For one type of problem the best number of
attempts is none or infinite; a finite one comes from mixing types, because what is accepted late
comes from hard problems and is mostly wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks
from ppl.language.arguments import check_fields, checked

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImperfectVerifier:
    """Closed forms for "draw until accepted, at most K times".

    Attributes:
        success: per problem type, the probability that one draw is right.
        prior: share of each type; one type by default.
        completeness: probability that a right draw is accepted (true positive rate).
        soundness: probability that a wrong draw is rejected (1 - false positive rate).
    """

    success: tuple[float, ...]
    completeness: float
    soundness: float
    prior: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_fields(self)
        numbers = (*self.success, *self.prior, self.completeness, self.soundness)
        if not all(0 <= x <= 1 for x in numbers) or len(self.success) != len(self.prior):
            raise ValueError(f"{self}: all numbers are probabilities, one prior per success")
        if abs(sum(self.prior) - 1) > 1e-9:
            raise ValueError(f"prior {self.prior} does not sum to one")

    @checked
    def outcome(self, attempts: int) -> tuple[float, float, float]:
        """Probabilities that the result is right, wrong but accepted, or missing.

        Raises:
            ValueError: fewer than no attempts.
        """
        _check_attempts(attempts)
        p, good, bad, reject = self._rates()
        rounds = reject ** np.arange(attempts)[:, None]  # [attempts, types]
        reached = rounds.sum(0)
        none = float(p @ reject**attempts)
        return float(p @ (good * reached)), float(p @ (bad * reached)), none

    @checked
    def precision(self, attempts: int) -> float:
        """Share of right ones among the accepted; NaN if nothing is ever accepted."""
        right, wrong, _ = self.outcome(attempts)
        return right / (right + wrong) if right + wrong > 0 else float("nan")

    @checked
    def value(self, attempts: int, *, right: float, wrong: float, price: float = 0.0) -> float:
        """Expected utility of at most so many attempts.

        Args:
            attempts: K.
            right, wrong: utility of an accepted right and wrong result; none at all is worth 0.
            price: of every draw.

        Raises:
            ValueError: fewer than no attempts.
        """
        return float(self._gains(attempts, right, wrong, price).sum())

    @checked
    def best_budget(
        self, *, right: float, wrong: float, price: float = 0.0, most: int = 1000
    ) -> int:
        """The number of attempts of highest value, up to `most`; the smallest among equals.

        Raises:
            ValueError: `most` is below zero.
        """
        checks.count(least=0, most=most)
        totals = np.cumsum(self._gains(most, right, wrong, price))
        return int(np.argmax(np.concatenate([[0.0], totals])))

    def _rates(self) -> tuple[Floats, Floats, Floats, Floats]:
        r = np.asarray(self.success)
        good, bad = r * self.completeness, (1 - r) * (1 - self.soundness)
        return np.asarray(self.prior), good, bad, 1 - good - bad

    def _gains(self, attempts: int, right: float, wrong: float, price: float) -> Floats:
        """`[attempts]` what attempt k adds: it happens if all before it were rejected."""
        _check_attempts(attempts)
        p, good, bad, reject = self._rates()
        rounds = reject ** np.arange(attempts)[:, None]
        return np.asarray(rounds @ (p * (good * right + bad * wrong - price)))


def _check_attempts(attempts: int) -> None:
    if attempts < 0:
        raise ValueError(f"attempts={attempts}: must be at least 0")
