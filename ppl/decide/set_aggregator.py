"""A small trainable aggregator: which class of answers is right, from features of the whole set.

The interface of sample set aggregators (Qi et al. 2025, arXiv 2506.09014) with a logistic scorer in
the place of a language model: it sees how many samples agree, what the verifier and the model think
of them, and how long they are. It cannot write an answer of its own, and knows no order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from ppl.decide.candidates import Candidates, answer_numbers
from ppl.decide.columns import Floats, Ints
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.posterior.posterior import Posterior
from ppl.posterior.votes import winner

FEATURES = ("count", "most", "score", "best score", "log-prob", "length")
"""Of a class: its share of the answers; whether no class has more; its mean and largest
log-likelihood, its mean log-probability a token and mean logarithm of tokens, each less the mean of
the question's candidates."""

_LEAST = -20.0  # a zero's logarithm, as a number: of a verifier's value, and of a token's chance


@dataclass(frozen=True)
class SampleSetAggregator:
    """Scores classes of equal answers; `fit` makes it.

    Attributes:
        weights: of `FEATURES`, in units of their spread.
        bias: of the logit.
        centres, spreads: of the features, on what it was fitted to.
    """

    weights: tuple[float, ...]
    bias: float
    centres: tuple[float, ...]
    spreads: tuple[float, ...]

    @classmethod
    @checked
    def fit(
        cls,
        candidates: Sequence[Any],
        correct: Sequence[Any],
        *,
        key: Callable[[Any], Hashable] | None = None,
        penalty: float = 1.0,
    ) -> SampleSetAggregator:
        """Logistic regression over all classes of all questions: is the class right?

        Args:
            candidates: for each question a posterior or candidates, with scores, log-probs and
                tokens. Take other questions than it is used on.
            correct: for each question, whether each candidate is right, `[N]`.
            key: as of `vote`.
            penalty: of the squared weights, as of one observation each.

        Raises:
            ArgumentError: no class is right, or all are.
        """
        checks.positive(penalty=penalty)
        if len(candidates) != len(correct):
            raise ArgumentError(
                f"correct: of {len(correct)} questions, candidates of {len(candidates)}"
            )
        tables, labels = [np.zeros((0, len(FEATURES)))], [np.zeros(0)]
        for each, right in zip(candidates, correct, strict=True):
            found = Candidates.of(each)
            numbers = answer_numbers(found.answers(key))
            tables.append(_features(found, numbers))
            labels.append(_majority(right, numbers))
        table, label = np.concatenate(tables), np.concatenate(labels)
        if not 0 < label.sum() < len(label):
            raise ArgumentError("correct: some class of answers must be right, and some wrong")
        centres, spreads = table.mean(axis=0), table.std(axis=0)
        spreads = np.where(spreads > 1e-9, spreads, 1.0)
        scaled = (table - centres) / spreads

        def loss(x: Floats) -> tuple[float, Floats]:
            logits = scaled @ x[:-1] + x[-1]
            value = np.logaddexp(0, logits).sum() - label @ logits + penalty / 2 * x[:-1] @ x[:-1]
            gap = expit(logits) - label
            return float(value), np.append(scaled.T @ gap + penalty * x[:-1], gap.sum())

        fitted = minimize(loss, np.zeros(len(FEATURES) + 1), jac=True, method="L-BFGS-B").x
        return cls(
            tuple(fitted[:-1].tolist()),
            float(fitted[-1]),
            tuple(centres.tolist()),
            tuple(spreads.tolist()),
        )

    @checked
    def probabilities(
        self,
        candidates: Posterior | Candidates | Sequence[Any],
        *,
        key: Callable[[Any], Hashable] | None = None,
    ) -> list[tuple[Any, float]]:
        """Answers, and the chance that the class of each is right by itself; the largest first."""
        found = Candidates.of(candidates)
        answers = found.answers(key)
        numbers = answer_numbers(answers)
        logits = self._logits(_features(found, numbers))
        rows = []
        for number, chance in enumerate(expit(logits).tolist()):
            members = np.flatnonzero(numbers == number).tolist()
            won = winner([answers[i] for i in members], np.zeros(len(members)))
            assert won is not None
            rows.append((found.values[members[won[0]]], chance))
        return sorted(rows, key=lambda row: -row[1])

    def __call__(self, candidates: Posterior | Candidates | Sequence[Any], **settings: Any) -> Any:
        """The answer of the best class, None without any; `key=` as of `vote`."""
        found = self.probabilities(candidates, **settings)
        return found[0][0] if found else None

    def _logits(self, table: Floats) -> Floats:
        scaled = (table - np.array(self.centres)) / np.array(self.spreads)
        return np.asarray(scaled @ np.array(self.weights) + self.bias)


def _features(found: Candidates, numbers: Ints) -> Floats:
    """`[C, F]`, the features of each class."""
    there = numbers >= 0
    size = int(numbers.max(initial=-1)) + 1
    if not size:
        return np.zeros((0, len(FEATURES)))
    own = numbers[there]
    counts = np.bincount(own, minlength=size)
    scores = np.maximum(found.columns["log_scores"][there], _LEAST)
    tokens = np.maximum(found.columns["tokens"][there], 1)
    rates = np.maximum(found.columns["log_probs"][there] / tokens, _LEAST)

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(own, values, minlength=size) / counts - values.mean())

    top = np.full(size, -np.inf)
    np.maximum.at(top, own, scores)
    return np.column_stack(
        [
            counts / counts.sum(),
            counts == counts.max(),
            mean(scores),
            top - scores.mean(),
            mean(rates),
            mean(np.log(tokens)),
        ]
    )


def _majority(correct: ArrayLike, numbers: Ints) -> Floats:
    """`[C]`, whether most of each class was judged right."""
    right = checks.truths(correct=correct)
    if right.shape != numbers.shape:
        raise ArgumentError(f"correct: {right.size} of them for {len(numbers)} candidates")
    there = numbers >= 0
    size = int(numbers.max(initial=-1)) + 1
    counts = np.bincount(numbers[there], minlength=size)
    return (2 * np.bincount(numbers[there], right[there], minlength=size) > counts).astype(float)
