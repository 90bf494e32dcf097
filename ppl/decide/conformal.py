"""Conformal answer sets: all answers that cannot be ruled out, right with a chance of 1 - alpha.

Split conformal prediction (Vovk, Gammerman, Shafer 2005) on shares of votes: on n questions with
known answers, how far the right answer's share is from 1 has a quantile, and a new question's set
is every answer within it. If questions are exchangeable, the right answer is in the set with a
chance of 1 - alpha at least, whatever the model; over all questions, not for each kind of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl.decide.candidates import Candidates, answer_numbers
from ppl.decide.voting import shares
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.posterior.posterior import Posterior
from ppl.posterior.votes import keyed

_ROUNDING = 1e-12


@dataclass(frozen=True)
class AnswerSet:
    """Answers that cannot be ruled out.

    Attributes:
        answers: those that were sampled, most weight first.
        everything: no answer can be ruled out, also none that was never sampled: alpha asks for
            more than samples can say.
    """

    answers: tuple[Any, ...]
    everything: bool = False

    def __len__(self) -> int:
        return len(self.answers)


@dataclass(frozen=True)
class ConformalSets:
    """Makes answer sets; `fit` calibrates it.

    Attributes:
        alpha: the chance that the right answer is missing, at most.
        threshold: how far from 1 an answer's share may be; 1 rules nothing out.
        questions: it was calibrated on.
        weights, key: as of `vote`.
    """

    alpha: float
    threshold: float
    questions: int
    weights: Any = "posterior"
    key: Callable[[Any], Hashable] | None = None

    @classmethod
    @checked
    def fit(
        cls,
        candidates: Sequence[Any],
        gold: Sequence[Any],
        alpha: float = 0.1,
        *,
        weights: Any = "posterior",
        key: Callable[[Any], Hashable] | None = None,
    ) -> ConformalSets:
        """Calibrates sets on questions whose answers are known, and which serve nothing else.

        Fewer than 1 / alpha - 1 questions rule nothing out.

        Args:
            candidates: for each question a posterior, candidates, or answers.
            gold: the right answer of each, equal to what votes (or to what `key` makes of it).
            alpha: the chance that the right answer is missing, at most.
            weights, key: as of `vote`.
        """
        checks.probability(alpha=alpha)
        if len(gold) != len(candidates):
            raise ArgumentError(f"gold: {len(gold)} for the candidates of {len(candidates)}")
        if not len(gold):
            raise ArgumentError("candidates: of one question at least")
        misses = sorted(
            1.0 - _share_of(each, right, weights, key)
            for each, right in zip(candidates, gold, strict=True)
        )
        # The rank that makes it exact for n + 1 exchangeable questions.
        rank = math.ceil((len(misses) + 1) * (1 - alpha) - _ROUNDING)
        threshold = 1.0 if rank > len(misses) else misses[max(rank, 1) - 1]
        return cls(alpha, threshold, len(misses), weights, key)

    def __call__(self, candidates: Posterior | Candidates | Sequence[Any]) -> AnswerSet:
        """The answers that cannot be ruled out for a question."""
        found = shares(candidates, self.weights, key=self.key)
        inside = [a for a, share in found if 1.0 - share <= self.threshold + _ROUNDING]
        return AnswerSet(tuple(inside), self.threshold >= 1.0 - _ROUNDING)


def _share_of(
    candidates: Any, right: Any, weights: Any, key: Callable[[Any], Hashable] | None
) -> float:
    """The share of the class of an answer, 0 if it was not sampled."""
    found = shares(candidates, weights, key=key)
    (asked,) = keyed([right], key)
    numbers = answer_numbers([asked, *keyed([answer for answer, _ in found], key)])
    if numbers[0] < 0:
        raise ArgumentError("gold: None is no answer; leave the question out")
    same = np.flatnonzero(numbers[1:] == numbers[0])
    return float(sum(found[i][1] for i in same))
