"""Answering from a threshold on: what it is worth, and the risk-coverage curve.

Jurayj, Cheng, Van Durme 2025 (arXiv 2502.13962): a right answer is worth 1, a wrong one r <= 0, and
none 0. With a calibrated confidence c it pays to answer iff c >= -r / (1 - r): always in an exam
(r = 0), from one half where a wrong answer takes what a right one brings (r = -1), from .9524 where
it costs twenty times that. Choose thresholds on other questions than they are reported on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ppl.decide.columns import Floats
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked


@checked
def answering_threshold(wrong: float) -> float:
    """The confidence from which an answer pays: -r / (1 - r).

    Args:
        wrong: r, what a wrong answer is worth, zero or less, if a right one is worth 1.
    """
    checks.number(wrong=wrong)
    if not -np.inf < wrong <= 0:
        raise ArgumentError(f"wrong={wrong!r}: what a wrong answer is worth, zero or less")
    return max(0.0, -wrong / (1 - wrong))  # and no -0.0


class SelectiveScore(NamedTuple):
    """What a threshold does: accuracy never without the response rate.

    Attributes:
        threshold: of the confidence.
        response_rate: the share of questions that are answered.
        accuracy: of the answers given; NaN of none.
        utility: the mean over all questions.
    """

    threshold: float
    response_rate: float
    accuracy: float
    utility: float


@checked
def selective_score(
    confidences: ArrayLike, correct: ArrayLike, threshold: float, *, wrong: float = -1.0
) -> SelectiveScore:
    """What answering from a threshold on is worth.

    Args:
        confidences: `[Q]`.
        correct: `[Q]`, 0, 1, or the chance to be right.
        threshold: questions of at least this confidence are answered.
        wrong: what a wrong answer is worth, if a right one is worth 1.
    """
    answering_threshold(wrong)
    checks.number(threshold=threshold)
    sure, right = _pairs(confidences, correct)
    given = sure >= threshold
    rate = float(given.mean())
    accuracy = float(right[given].mean()) if given.any() else float("nan")
    utility = float(np.mean(np.where(given, right + (1 - right) * wrong, 0.0)))
    return SelectiveScore(threshold, rate, accuracy, utility)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Errors among the questions answered, from the surest on.

    Attributes:
        thresholds: `[M]`, the different confidences, falling.
        coverage: `[M]`, the share of questions answered from there on.
        risk: `[M]`, the share of wrong ones among them.
        area: AURC, the mean of the risk over all numbers of questions answered (Geifman and
            El-Yaniv 2017); equal confidences count by their expectation.
        best_area: what it would be if confidences put all right answers first.
    """

    thresholds: Floats
    coverage: Floats
    risk: Floats
    area: float
    best_area: float


@checked
def risk_coverage(confidences: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve, whatever the confidences' scale.

    Args:
        confidences: `[Q]`, larger is surer.
        correct: `[Q]`, 0, 1, or the chance to be right.
    """
    sure, right = _pairs(confidences, correct)
    levels, group = np.unique(-sure, return_inverse=True)
    size = np.bincount(group)
    errors = np.bincount(group, 1 - right)
    ends, wrong = np.cumsum(size), np.cumsum(errors)
    return RiskCoverage(
        -levels,
        ends / len(sure),
        wrong / ends,
        _area(np.repeat(errors / size, size)),
        _area(np.sort(1 - right)),
    )


def _area(errors: Floats) -> float:
    """The mean risk of the first 1, 2, ... questions."""
    return float(np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1)))


def _pairs(confidences: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    sure, right = checks.numbers(confidences=confidences), checks.numbers(correct=correct)
    if sure.ndim != 1 or not len(sure):
        raise ArgumentError("confidences: one axis, [Q], at least one question")
    if right.shape != sure.shape:
        raise ArgumentError(f"correct: {right.size} for {len(sure)} confidences")
    if ((right < 0) | (right > 1)).any():
        raise ArgumentError("correct: 0, 1, or the chance to be right")
    return sure, right
