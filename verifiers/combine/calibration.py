"""Calibration: from what a verifier says to how often it is right.

PRMs overestimate success, most for weak policies and hard questions (Park et al. 2025, arXiv
2506.09338), and the likelihood in a program should be the calibrated one. Fit on prefixes that the
deployed policy wrote, on other questions than those one reports on.

A calibrator maps scores to log-probabilities, monotonically: the order of texts, and with it
best-of-N, stays. Scores are log-odds for verifiers (`log_odds`) and the raw number for rankers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, log_expit

from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.language.text import Text
from ppl.runtime.verdict import Aggregate, JudgeRequest, Meaning, Scorer, Verifier, check_declared
from ppl.verifiers.laws import prefix

Floats = NDArray[np.float64]


class Calibrator(Protocol):
    """A monotone map from scores `[n]` to log-probabilities `[n]`."""

    def __call__(self, scores: ArrayLike) -> Floats:
        """Log-probabilities of scores, of the same shape."""
        ...


class GroupCalibrator(Protocol):
    """A map that knows groups, monotone among scores of the same groups."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of those that it needs to know of."""
        ...

    def __call__(self, scores: ArrayLike, groups: Mapping[str, ArrayLike]) -> Floats:
        """Log-probabilities of scores `[n]`, given `[n]` truth values for each name."""
        ...


Groups = Mapping[str, Callable[[Text], bool]]
"""Questions by name, asked of a text as far as it has been judged."""


def log_odds(log_probs: ArrayLike) -> Floats:
    """log p - log(1 - p) from log p, kept within +-40 (a probability may be exactly 0 or 1)."""
    given = checks.numbers(log_probs=log_probs)
    if (given > 1e-6).any():  # sums in float32 may end a little above zero
        raise ValueError(f"log_probs={shown(log_probs)}: logarithms of probabilities, at most 0")
    log_p = np.minimum(given, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(log_p - np.log(-np.expm1(log_p)), -40.0, 40.0))


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope * score + intercept) (Platt 1999), fitted by maximum likelihood."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError(f"{self}: slope and intercept are finite")

    def __call__(self, scores: ArrayLike) -> Floats:
        """log sigmoid(slope * score + intercept), of the scores' shape."""
        return np.asarray(log_expit(self.slope * np.asarray(scores) + self.intercept))

    @classmethod
    def fit(cls, scores: ArrayLike, labels: ArrayLike) -> Self:
        """Fits to scores `[n]` and truth values `[n]`.

        The targets are smoothed, see `smoothed`: separable data would push the slope to infinity.

        Raises:
            ValueError: no example of one label, or the scores rank the wrong way round.
        """
        z, y = checked_labels(scores, labels)
        slope, intercept = least_log_loss(np.stack([z, np.ones_like(z)], 1), smoothed(y))
        _refuse_reversal(slope)
        return cls(float(slope), float(intercept))


@dataclass(frozen=True)
class Temperature:
    """sigmoid(score / temperature) (Guo et al. 2017): one number, so a few labels suffice."""

    temperature: float

    def __post_init__(self) -> None:
        checks.positive(temperature=self.temperature)

    def __call__(self, scores: ArrayLike) -> Floats:
        """log sigmoid(score / temperature), of the scores' shape."""
        return np.asarray(log_expit(np.asarray(scores, dtype=np.float64) / self.temperature))

    @classmethod
    def fit(cls, scores: ArrayLike, labels: ArrayLike) -> Self:
        """Fits to scores `[n]` and truth values `[n]`; errors as in `Platt.fit`.

        The targets are Platt's too. Guo et al. take the labels as they are, but then there is no
        optimum where the labels are separable by the sign of the score, as few labels often are.
        """
        z, y = checked_labels(scores, labels)
        (slope,) = least_log_loss(z[:, None], smoothed(y))
        _refuse_reversal(slope)
        return cls(1 / float(slope))


@dataclass(frozen=True)
class Isotonic:
    """The best monotone map (pool adjacent violators), linear between its knots.

    Attributes:
        scores: knots, increasing.
        probs: probabilities there, not decreasing, within (0, 1): a likelihood should not rule out
            what merely did not occur among n labels, so they stay 1 / (n + 2) away from 0 and 1.
    """

    scores: tuple[float, ...]
    probs: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.scores or list(self.scores) != sorted(set(self.scores)):
            raise ValueError(f"scores={shown(self.scores)}: at least one knot, increasing")
        for probability in self.probs:
            checks.probability(probs=probability)
        if len(self.probs) != len(self.scores) or list(self.probs) != sorted(self.probs):
            raise ValueError(f"probs={shown(self.probs)}: one per knot, not decreasing")

    def __call__(self, scores: ArrayLike) -> Floats:
        """Log of the map, which is constant outside its knots; of the scores' shape."""
        return np.asarray(np.log(np.interp(np.asarray(scores), self.scores, self.probs)))

    @classmethod
    def fit(cls, scores: ArrayLike, labels: ArrayLike) -> Self:
        """Fits to scores `[n]` and truth values `[n]`. A few hundred labels are needed."""
        z, y = checked_labels(scores, labels)
        knots, where, counts = np.unique(z, return_inverse=True, return_counts=True)
        means = np.bincount(where, weights=y) / counts
        fitted = isotonic_regression(means, weights=counts).x
        edge = 1 / (len(y) + 2)
        probs = np.clip(fitted, edge, 1 - edge)
        return cls(tuple(knots.tolist()), tuple(probs.tolist()))


class Calibrated(Verifier):
    """A verifier whose numbers went through a calibrator; or a ranker, made a likelihood by it.

    Args:
        scorer: the verifier or ranker. Its name gets a prefix.
        calibrator: fitted on scores as `step_scores` gives them.
        meaning: what the calibrated number says: that of the labels. A verifier's own by default;
            must be stated for a ranker and for a reward.
        aggregate: a verifier's own by default.
        floor: probabilities are clipped to [floor, 1 - floor].
        groups: by name, what the calibrator (`GroupPlatt`) wants to know of a text: functions of
            it up to the end of the step in question.
    """

    @checked
    def __init__(
        self,
        scorer: Scorer,
        calibrator: Calibrator | GroupCalibrator,
        *,
        meaning: Meaning | None = None,
        aggregate: Aggregate | None = None,
        floor: float = 1e-6,
        groups: Mapping[str, Callable[[Text], bool]] | None = None,
    ) -> None:
        checks.floor(floor=floor)
        self.name = f"calibrated {scorer.name}"
        self.groups = _asked(calibrator, groups)
        self.scorer, self.calibrator, self.floor = scorer, calibrator, floor
        self.meaning, self.aggregate = meaning or scorer.meaning, aggregate or scorer.aggregate
        if self.meaning == "reward":
            raise ValueError(
                f"{self.name} is a probability and no longer a reward: say of "
                "what, meaning='outcome'"
            )
        check_declared(self.name, self.meaning, self.aggregate)
        self.pseudo_marginal, self.asks_models = scorer.pseudo_marginal, scorer.asks_models

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """The inner scores, each through the calibrator."""
        inner = _scores(self.scorer, requests)
        pairs = zip(requests, inner, strict=True)
        return [self._mapped(r, s).tolist() if len(s) else [] for r, s in pairs]

    def _mapped(self, request: JudgeRequest, scores: Floats) -> Floats:
        mapping: Any = self.calibrator
        if self.groups is None:
            return np.asarray(mapping(scores))
        steps = range(request.since, len(request.text.step_ends))
        if len(steps) != len(scores):  # blank steps were left out, or the text was read as a whole
            spoken = [t for t in steps if request.text.steps[t].strip()]
            last = [len(request.text.step_ends) - 1]
            said = spoken if len(spoken) == len(scores) else last
            return np.asarray(mapping(scores, members(self.groups, request.text, said)))
        return np.asarray(mapping(scores, members(self.groups, request.text, steps)))


def members(groups: Groups, text: Text, steps: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """For each group, whether the text up to the end of each step is one; step -1: the prompt."""
    seen = [prefix(text, 1 + t) for t in steps]
    return {name: np.array([bool(f(s)) for s in seen], dtype=bool) for name, f in groups.items()}


def _asked(calibrator: Any, groups: Groups | None) -> Groups | None:
    """The groups that are asked for.

    Raises:
        ValueError: a calibrator with groups was given none, or the other way round.
    """
    needed = getattr(calibrator, "groups", None)
    if needed is None and groups is not None:
        raise ValueError(
            f"groups={sorted(groups)}: {type(calibrator).__name__} knows no groups; fit "
            "GroupPlatt.fit(scores, labels, step_groups(groups, texts))"
        )
    missing = sorted(set(needed or ()) - set(groups or {}))
    if missing:
        raise ValueError(
            f"groups: the calibrator was fitted on {missing} too; give "
            "groups={name: function of a text}"
        )
    return None if needed is None else {name: (groups or {})[name] for name in needed}


@checked
def step_scores(scorer: Scorer, texts: Sequence[Text]) -> list[Floats]:
    """What a calibrator is fitted on: for every text one score per step that is not blank.

    A scorer that reads whole texts is asked about every prefix; where one numbers blank steps too,
    those numbers are left out. So labels fit every scorer. Verifiers give log-odds, rankers and
    rewards their raw number.
    """
    requests = [JudgeRequest(scorer, text) for text in texts]
    scores = _scores(scorer, requests)
    for i, text in enumerate(texts):
        spoken = np.flatnonzero([step.strip() != "" for step in text.steps])
        if len(scores[i]) == 1 < len(text.step_ends):
            prefixes = [prefix(text, t + 1) for t in spoken.tolist()]
            asked = _scores(scorer, [JudgeRequest(scorer, p) for p in prefixes])
            scores[i] = np.array([numbers[-1] for numbers in asked])
        elif len(scores[i]) == len(text.step_ends):
            scores[i] = scores[i][spoken]
    return scores


def check_probabilities(what: str, scorers: Sequence[Scorer]) -> None:
    """Raises ValueError if a scorer's number is no probability, so that `what` makes no sense."""
    for scorer in scorers:
        if not isinstance(scorer, Verifier) or scorer.meaning in ("rank", "reward"):
            raise ValueError(
                f"{what} is for probabilities, but {scorer.name}'s number means "
                f"{scorer.meaning!r}: calibrate it first, "
                "ppl.verifiers.Calibrated(ranker, Platt.fit(scores, labels), meaning='outcome')"
            )


def _scores(scorer: Scorer, requests: Sequence[JudgeRequest]) -> list[Floats]:
    numbers = scorer.judge_checked([replace(r, verifier=scorer) for r in requests])
    raw = scorer.meaning in ("rank", "reward")
    return [np.asarray(n, dtype=np.float64) if raw else log_odds(n) for n in numbers]


def checked_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores `[n]` and truth values `[n]` that something can be fitted to.

    Raises:
        ValueError: they do not fit each other, or all labels are the same.
    """
    z, y = checks.numbers(scores=scores), checks.truths(labels=labels)
    if z.ndim != 1 or z.shape != y.shape or not np.isfinite(z).all():
        raise ValueError(f"scores {z.shape} and labels {y.shape}: give one finite score per label")
    if y.all() or not y.any():
        raise ValueError(f"all {len(y)} labels are {bool(y.any())}: calibration needs both")
    return z, y


def smoothed(labels: NDArray[np.bool_]) -> Floats:
    """(n_good + 1) / (n_good + 2) for the good, 1 / (n_bad + 2) for the bad (Platt 1999, section
    2.2): the expected rate of each, after its labels, under a uniform prior."""
    good = labels.sum()
    return np.asarray(np.where(labels, (good + 1) / (good + 2), 1 / (len(labels) - good + 2)))


def least_log_loss(features: Floats, target: Floats, *, offset: Floats | float = 0.0) -> Any:
    """Coefficients `[d]` of logistic regression of targets `[n]` in [0, 1] on features `[n, d]`;
    `offset`, `[n]`, is added to the log-odds."""

    def loss(w: Floats) -> tuple[float, Floats]:
        z = features @ w + offset
        value = -np.mean(target * log_expit(z) + (1 - target) * log_expit(-z))
        return float(value), features.T @ (expit(z) - target) / len(target)

    return minimize(loss, np.zeros(features.shape[1]), jac=True, method="BFGS").x


def _refuse_reversal(slope: float) -> None:
    if not slope > 0:
        raise ValueError(
            f"the fitted slope is {slope:.3g}: good steps do not score higher than bad ones, so "
            "calibration would turn the order round; is it the right verifier, are labels swapped?"
        )
