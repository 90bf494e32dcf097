"""Rules that choose among independent samples, and what each would score at any smaller number.

A `Pool` is what `BestOfN(n)` left behind for one question: candidates that are independent, so that
every subset of k is a run of `BestOfN(k)`. A candidate without an answer, or one that is dead, is
never chosen while another is there; where there is none, the question counts as not right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl.study import estimators
from ppl.study.runs import Candidate, Row
from ppl.study.sharing import Beginnings
from ppl.study.subsets import Subsets, bests_vote, subsets, weighted_vote

Value = Literal["likelihood", "weight", "log_prob", "last", "min", "prod"]


@dataclass(frozen=True)
class Rule:
    """How one answer is chosen.

    Attributes:
        name: as reports say it.
        choice: `oracle` is right if any candidate is, `blind` draws one, `best` takes the highest
            value, `vote` the most frequent answer, `weighted` the answer of largest total weight,
            `bests` the answer that is most often the best of a few.
        value: of a candidate, where the choice needs one. `likelihood`, `weight` and `log_prob` are
            the candidate's own; `last`, `min` and `prod` aggregate the verifier's values of steps.
        draws: m of `bests`; by default the root of k, rounded.
    """

    name: str
    choice: Literal["oracle", "blind", "best", "vote", "weighted", "bests"]
    value: Value | None = None
    draws: int | None = None

    @property
    def verified(self) -> bool:
        """Whether a verifier has to read the candidates for it."""
        return self.value is not None and self.value != "log_prob"

    @property
    def real(self) -> bool:
        """Whether it can be used without knowing what is right, and uses what is known."""
        return self.choice not in ("oracle", "blind")


RULES = (
    Rule("oracle", "oracle"),
    Rule("best", "best", "likelihood"),
    Rule("best (last)", "best", "last"),
    Rule("best (min)", "best", "min"),
    Rule("best (prod)", "best", "prod"),
    Rule("weighted vote", "weighted", "weight"),
    Rule("weighted vote (last)", "weighted", "last"),
    Rule("weighted vote (min)", "weighted", "min"),
    Rule("weighted vote (prod)", "weighted", "prod"),
    Rule("majority of the bests", "bests", "likelihood"),
    Rule("vote", "vote"),
    Rule("log-prob", "best", "log_prob"),
    Rule("random", "blind"),
)
"""What every report has, where the candidates have what it takes."""


class Estimate(NamedTuple):
    """A chance to be right, and whether it is exact (the mean over all subsets)."""

    chance: float
    exact: bool


@dataclass(frozen=True, eq=False)
class Pool:
    """Independent candidates of one question.

    Attributes:
        cell: names it; keys the random subsets.
        n: candidates, also those without an answer.
        classes: of equal answers, `[n]`; -1 without an answer.
        right: of each class, `[C]`.
        correct: of each candidate, `[n]`.
        values: of candidates by name, `[n]` each, larger is better. A name is missing where any
            candidate with an answer lacks the value.
        pruned: whether a verifier has ended candidates, so that every rule depends on it.
        beginnings: what the candidates share.
    """

    cell: str
    n: int
    classes: NDArray[np.int64]
    right: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    values: dict[str, NDArray[np.float64]]
    pruned: bool
    beginnings: Beginnings

    @classmethod
    def of(cls, row: Row, candidates: Sequence[Candidate]) -> Pool:
        """The pool of a row of `BestOfN`; without candidates, one without answers."""
        n = max(1, len(candidates) or row.n)
        padded: list[Candidate | None] = [*candidates, *[None] * (n - len(candidates))]
        alive = [c if c is not None and _answered(c) else None for c in padded]
        correct = np.array([c is not None and c.right is True for c in alive])
        answers = [None if c is None else c.answer for c in alive]
        classes, right = estimators.answer_classes(answers, correct.tolist())
        values = {}
        for name, take in _VALUES.items():
            known = np.array([-math.inf if c is None else take(c) for c in alive])
            if not np.isnan(known).any():
                values[name] = known
        pruned = any(c.log_weight == -math.inf for c in candidates)
        shared = Beginnings.of(candidates, n)
        return cls(row.cell, n, classes, right, correct, values, pruned, shared)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Which candidates can be chosen, `[n]`."""
        return self.classes >= 0

    @cached_property
    def mixed(self) -> bool:
        """Whether answers that are equal were judged differently."""
        there = self.answered
        return bool((self.correct[there] != self.right[self.classes[there]]).any())

    @cached_property
    def _subsets(self) -> dict[int, Subsets]:
        return {}

    def subsets(self, k: int) -> Subsets:
        """The same for every rule, so that rules are compared on the same ones."""
        if k not in self._subsets:
            self._subsets[k] = subsets(self.n, k, seed=self.cell)
        return self._subsets[k]

    def usable(self, rule: Rule) -> bool:
        """Whether the candidates have what the rule asks for."""
        return rule.value is None or rule.value in self.values

    def estimate(self, rule: Rule, k: int) -> Estimate:
        """The chance that the rule is right on k of the candidates."""
        there = self.answered
        correct = self.correct[there]
        if not there.any():
            return Estimate(0.0, True)
        match rule.choice:
            case "oracle":
                return Estimate(estimators.pass_at_k(self.n, int(correct.sum()), k), True)
            case "blind":
                count = int(there.sum())
                chance = estimators.random_of_k(self.n, count, int(correct.sum()), k)
                return Estimate(chance, True)
            case "vote":
                counts = np.bincount(self.classes[there], minlength=len(self.right))
                return Estimate(estimators.vote_at_k(counts, self.right, k, self.n), True)
        values = self.values[str(rule.value)]
        if rule.choice == "best":
            return Estimate(estimators.best_of_k(values[there], correct, k, n=self.n), True)
        chosen = self.subsets(k)
        if rule.choice == "weighted":
            chance = weighted_vote(chosen.members, self.classes, values, self.right)
        else:
            draws = rule.draws or max(1, round(math.sqrt(k)))
            chance = bests_vote(chosen.members, self.classes, values, self.right, draws=draws)
        return Estimate(chance, chosen.exact)


def _answered(candidate: Candidate) -> bool:
    return candidate.answer is not None and candidate.log_weight > -math.inf


def _logs(candidate: Candidate) -> list[float]:
    """Logarithms of the verifier's values; NaN where they are none of probabilities."""
    return [
        math.log(s) if 0 < s <= 1 else -math.inf if s == 0 else math.nan for s in candidate.scores
    ]


# As logarithms, which rank as the numbers do and can be used as weights.
_VALUES: dict[str, Callable[[Candidate], float]] = {
    "likelihood": lambda c: c.log_likelihood,
    "weight": lambda c: c.log_weight,
    "log_prob": lambda c: c.log_prob,
    "last": lambda c: _logs(c)[-1] if c.scores else math.nan,
    "min": lambda c: float(np.min(_logs(c))) if c.scores else math.nan,  # NaN if any is
    "prod": lambda c: math.fsum(_logs(c)) if c.scores else math.nan,
}
