"""Rules that choose among independent samples, and what each would score at any smaller number.

A `Pool` is what `BestOfN(n)` left behind for one question: candidates that are independent, so that
every subset of k is a run of `BestOfN(k)`. A candidate without an answer, or one that is dead, is
never chosen while another is there; where there is none, the question counts as not right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl.decide.certainty import DeepConf
from ppl.decide.columns import Columns, Weighting
from ppl.decide.perplexity import RPC
from ppl.decide.pessimism import Pessimistic
from ppl.decide.ranks import Borda, MajorityOfTheBests
from ppl.decide.scaling import estimators
from ppl.decide.scaling.subsets import Subsets, draw_from_sets, subsets, vote_on_sets
from ppl.language.cached import cached_property
from ppl.study.runs import Candidate, Row
from ppl.study.sharing import Beginnings

Value = Literal[
    "likelihood", "weight", "log_prob", "last", "min", "prod", "confidence", "certainty"
]

FITTED = 50
"""Random subsets for rules that fit something to each: a question's estimate is off by 0.07 at most
(one standard error), and the mean of 100 questions by 0.007."""


@dataclass(frozen=True)
class Rule:
    """How one answer is chosen.

    Attributes:
        name: as reports say it.
        choice: `oracle` is right if any candidate is, `blind` draws one, `best` takes the highest
            value, `vote` the most frequent answer, `weighted` the answer of largest total weight,
            `bests` the answer that is most often the best of a few, `drawn` draws by the weights.
        value: of a candidate, where the choice needs one. `likelihood`, `weight`, `log_prob`,
            `confidence` and `certainty` are the candidate's own; `last`, `min` and `prod` aggregate
            the verifier's values of steps.
        draws: m of `bests`; by default the root of the answers among k, rounded.
        weights: of `weighted` and `drawn`, a rule of `ppl.decide`; by default the value is the
            logarithm of the weight.
        texts: whether it has to tell texts apart.
    """

    name: str
    choice: Literal["oracle", "blind", "best", "vote", "weighted", "bests", "drawn"]
    value: Value | None = None
    draws: int | None = None
    weights: Weighting | None = None
    texts: bool = False

    @property
    def verified(self) -> bool:
        """Whether a verifier has to read the candidates for it."""
        return self.value not in (None, "log_prob", "confidence", "certainty")

    @property
    def real(self) -> bool:
        """Whether it can be used without knowing what is right, and uses what is known."""
        return self.choice not in ("oracle", "blind")

    @property
    def fitted(self) -> bool:
        """Whether it fits a law to each set of candidates, which takes milliseconds."""
        return isinstance(self.weights, RPC) and self.weights.prune


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

MORE = (
    Rule("perplexity consistency", "weighted", "log_prob", weights=RPC(prune=False), texts=True),
    Rule("RPC", "weighted", "log_prob", weights=RPC(), texts=True),
    Rule("RPC (token mean)", "weighted", "log_prob", weights=RPC("token_mean"), texts=True),
    Rule("Borda (p=1)", "weighted", "likelihood", weights=Borda(1.0, "log_scores")),
    Rule("pessimistic (beta=0.1)", "drawn", "likelihood", weights=Pessimistic(0.1)),
    Rule("confidence vote", "weighted", "confidence"),
    Rule("most certain", "best", "certainty"),
    Rule("Borda of certainties (p=0.5)", "weighted", "certainty", weights=Borda(0.5)),
    Rule("DeepConf (10%)", "weighted", "certainty", weights=DeepConf(0.1)),
    Rule("DeepConf (90%)", "weighted", "certainty", weights=DeepConf(0.9)),
)
"""What a report has if it is asked for by name."""


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
        tokens: of candidates, `[n]`.
        texts: what tells the candidates' texts apart, `[n]`; None where steps were not kept.
        pruned: whether a verifier has ended candidates, so that every rule depends on it.
        beginnings: what the candidates share.
    """

    cell: str
    n: int
    classes: NDArray[np.int64]
    right: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    values: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.float64]
    texts: NDArray[np.int64] | None
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
        tokens = np.array([0.0 if c is None else float(c.tokens) for c in alive])
        steps = [None if c is None else c.steps for c in alive]
        texts = None if () in steps else _numbers(steps)
        return cls(row.cell, n, classes, right, correct, values, tokens, texts, pruned, shared)

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
    def _subsets(self) -> dict[tuple[int, bool], Subsets]:
        return {}

    def subsets(self, k: int, *, few: bool = False) -> Subsets:
        """The same for every rule, so that rules are compared on the same ones; `FITTED` if few."""
        if (k, few) not in self._subsets:
            limits = {"most": FITTED, "drawn": FITTED} if few else {}
            self._subsets[k, few] = subsets(self.n, k, seed=self.cell, **limits)
        return self._subsets[k, few]

    def usable(self, rule: Rule) -> bool:
        """Whether the candidates have what the rule asks for."""
        return not self.missing(rule)

    def missing(self, rule: Rule) -> list[str]:
        """What the rule asks for and the candidates lack."""
        lacking = [rule.value] if rule.value is not None and rule.value not in self.values else []
        return [*map(str, lacking), *(["steps"] if rule.texts and self.texts is None else [])]

    def columns(self, value: str) -> Columns:
        """What rules of `ppl.decide` are given: with `value` as scores and rewards."""
        here = self.values[value]
        known = {
            "log_weights": np.where(self.answered, 0.0, -np.inf),
            "log_scores": here,
            "rewards": np.exp(here) if value not in ("confidence", "certainty") else here,
            "log_probs": self.values.get("log_prob"),
            "tokens": self.tokens,
            "texts": self.texts,
            "certainties": self.values.get("certainty"),
        }
        there = {name: column for name, column in known.items() if column is not None}
        return Columns(self.answered, {name: partial(np.asarray, c) for name, c in there.items()})

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
        chosen = self.subsets(k, few=rule.fitted)
        classes = self.classes[chosen.members]
        weights = rule.weights
        if rule.choice == "bests":
            weights = MajorityOfTheBests(rule.draws)
        if weights is None:
            logs = values[chosen.members]
        else:
            logs = weights(self.columns(str(rule.value)).take(chosen.members))
        score = draw_from_sets if rule.choice == "drawn" else vote_on_sets
        return Estimate(score(classes, logs, self.right), chosen.exact)


def _answered(candidate: Candidate) -> bool:
    return candidate.answer is not None and candidate.log_weight > -math.inf


def _logs(candidate: Candidate) -> list[float]:
    """Logarithms of the verifier's values; NaN where they are none of probabilities."""
    return [_log(score) for score in candidate.scores]


def _log(p: float) -> float:
    return math.log(p) if 0 < p <= 1 else -math.inf if p == 0 else math.nan


def _numbers(texts: Sequence[object]) -> NDArray[np.int64]:
    known: dict[object, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


# As logarithms, which rank as the numbers do and can be used as weights.
_VALUES: dict[str, Callable[[Candidate], float]] = {
    "likelihood": lambda c: c.log_likelihood,
    "weight": lambda c: c.log_weight,
    "log_prob": lambda c: c.log_prob,
    "last": lambda c: _logs(c)[-1] if c.scores else math.nan,
    "min": lambda c: float(np.min(_logs(c))) if c.scores else math.nan,  # NaN if any is
    "prod": lambda c: math.fsum(_logs(c)) if c.scores else math.nan,
    "confidence": lambda c: _log(c.confidence),
    "certainty": lambda c: c.certainty,  # on its own scale
}
