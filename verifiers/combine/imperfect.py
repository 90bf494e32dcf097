"""When does one more sample hurt? Resampling until an imperfect verifier accepts.

Stroebl, Kapoor and Narayanan 2024 (arXiv 2411.17501). For one type of problem the best number of
attempts is none or infinite; a finite one comes from mixing types, because what is accepted late
comes from hard problems and is mostly wrong. `fit_types` finds the types in counts of what was
accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks
from ppl.language.arguments import check_fields, checked

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ValueCurve:
    """What "at most K attempts" comes to, for K = 0 .. most.

    Attributes:
        attempts: `[most + 1]`, K.
        right, wrong, none: `[most + 1]`, probabilities of the three outcomes.
        value: `[most + 1]`, expected utility.
    """

    attempts: NDArray[np.int64]
    right: Floats
    wrong: Floats
    none: Floats
    value: Floats

    @property
    def best(self) -> int:
        """K of highest value; the smallest among equals."""
        return int(self.attempts[np.argmax(self.value)])


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

    @property
    def ceiling(self) -> float:
        """Share of right ones among the accepted with attempts without end: r c / (r c + (1 - r)
        (1 - s)) of one type. No budget leads beyond it. NaN if nothing is ever accepted."""
        p, good, bad, _ = self._rates()
        accepts = good + bad > 0
        if not (p[accepts] > 0).any():
            return float("nan")
        shares = good[accepts] / (good + bad)[accepts]
        return float(p[accepts] @ shares / p[accepts].sum())

    @checked
    def value(
        self,
        attempts: int,
        *,
        right: float,
        wrong: float,
        price: float = 0.0,
        abstain: float = 0.0,
    ) -> float:
        """Expected utility of at most so many attempts.

        Args:
            attempts: K.
            right, wrong: utility of an accepted right and wrong result.
            price: of every draw.
            abstain: utility of no result at all, where nothing was accepted.

        Raises:
            ValueError: fewer than no attempts.
        """
        # To abstain is what every acceptance forgoes.
        gains = self._gains(attempts, right - abstain, wrong - abstain, price)
        return abstain + float(gains.sum())

    @checked
    def best_budget(
        self,
        *,
        right: float,
        wrong: float,
        price: float = 0.0,
        abstain: float = 0.0,
        most: int = 1000,
    ) -> int:
        """The number of attempts of highest value, up to `most`; the smallest among equals.

        Raises:
            ValueError: `most` is below zero.
        """
        checks.count(least=0, most=most)
        totals = np.cumsum(self._gains(most, right - abstain, wrong - abstain, price))
        return int(np.argmax(np.concatenate([[0.0], totals])))

    @checked
    def curve(
        self,
        most: int,
        *,
        right: float,
        wrong: float,
        price: float = 0.0,
        abstain: float = 0.0,
    ) -> ValueCurve:
        """Outcomes and value of at most K attempts, for every K up to `most`.

        Raises:
            ValueError: `most` is below zero.
        """
        checks.count(least=0, most=most)
        p, good, bad, reject = self._rates()
        ks = np.arange(most + 1)
        reached = np.vstack([np.zeros(len(p)), np.cumsum(reject ** ks[:-1, None], axis=0)])
        gains = self._gains(most, right - abstain, wrong - abstain, price)
        return ValueCurve(
            ks,
            reached @ (p * good),
            reached @ (p * bad),
            np.asarray((reject ** ks[:, None]) @ p),
            abstain + np.concatenate([[0.0], np.cumsum(gains)]),
        )

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
