"""Several verifiers as one: log-odds add up, except where errors are shared.

Conditionally independent verifiers combine as log-odds = prior log-odds + sum_j (log-odds_j - prior
log-odds). Members that err together (two heads of one base model, two prompts of one judge) must be
declared as a group, or the same evidence is counted twice; a group speaks with the mean of its
members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from ppl.language import checks
from ppl.language.arguments import check_fields, checked
from ppl.runtime.verdict import Aggregate, JudgeRequest, Meaning, Verifier, check_declared
from ppl.verifiers.combine.calibration import check_probabilities, log_odds

Floats = NDArray[np.float64]


class Ensemble(Verifier):
    """Weighted sum of the members' log-odds.

    log-odds = intercept + sum_g weight_g * mean over j in g of (log-odds_j - prior log-odds)

    Args:
        verifiers: the members.
        groups: indices of members whose errors are correlated; members in no group stand alone.
        weights: one for each group and then each single member, in order; 1 by default.
        prior: the base rate that the members' probabilities include.
        intercept: prior log-odds by default.
        name: shown in messages.
        meaning, aggregate: the first member's by default. If members disagree on what is a step,
            only the latest number of each is used, which suits `"last"`.
        floor: probabilities are clipped to [floor, 1 - floor].

    Raises:
        ValueError: a group names a member twice or none, weights do not fit, or a member gives no
            probabilities (a ranker or a reward).
    """

    @checked
    def __init__(
        self,
        verifiers: Sequence[Verifier],
        *,
        groups: Sequence[Sequence[int]] = (),
        weights: Sequence[float] | None = None,
        prior: float = 0.5,
        intercept: float | None = None,
        name: str | None = None,
        meaning: Meaning | None = None,
        aggregate: Aggregate | None = None,
        floor: float = 1e-6,
    ) -> None:
        checks.floor(floor=floor)
        if not verifiers:
            raise ValueError("verifiers=[]: an ensemble needs members")
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}: must be a probability above 0 and below 1")
        check_probabilities("an ensemble", verifiers)
        self.verifiers = list(verifiers)
        self.name = name or f"Ensemble({', '.join(v.name for v in verifiers)})"
        self.meaning = meaning or verifiers[0].meaning
        self.aggregate, self.floor = aggregate or verifiers[0].aggregate, floor
        check_declared(self.name, self.meaning, self.aggregate)
        self.pseudo_marginal = any(v.pseudo_marginal for v in verifiers)
        self.asks_models = any(v.asks_models for v in verifiers)
        self.groups = _all_groups(len(verifiers), groups)
        self.weights = np.ones(len(self.groups)) if weights is None else np.asarray(weights)
        if self.weights.shape != (len(self.groups),):
            raise ValueError(f"{len(self.weights)} weights for {len(self.groups)} groups")
        self.prior_log_odds = float(logit(prior))
        if intercept is not None and not np.isfinite(intercept):
            raise ValueError(f"intercept={intercept}: finite log-odds")
        self.intercept = self.prior_log_odds if intercept is None else intercept

    @classmethod
    @checked
    def fit(
        cls,
        verifiers: Sequence[Verifier],
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        groups: Sequence[Sequence[int]] = (),
        penalty: float = 1.0,
        floor: float = 1e-6,
    ) -> Self:
        """Weights and intercept by logistic regression on labelled texts.

        Args:
            verifiers: the members.
            scores: `[n, members]` log-odds, as `step_scores` gives them.
            labels: `[n]` truth values.
            groups: as in the class.
            penalty: weight of the squared coefficients (one label's worth of pull towards zero).
            floor: as in the class.

        Raises:
            ValueError: shapes do not fit.
        """
        checks.nonnegative(penalty=penalty)
        z, y = checks.numbers(scores=scores), checks.truths(labels=labels)
        if z.shape != (len(y), len(verifiers)):
            raise ValueError(f"scores {z.shape} for {len(y)} labels, {len(verifiers)} verifiers")
        parts = _all_groups(len(verifiers), groups)
        features = np.stack([z[:, list(g)].mean(1) for g in parts], 1)

        def loss(w: Floats) -> tuple[float, Floats]:
            odds = features @ w[:-1] + w[-1]
            value = -log_expit(np.where(y, odds, -odds)).sum() + 0.5 * penalty * w[:-1] @ w[:-1]
            slope = expit(odds) - y
            gradient = np.append(features.T @ slope + penalty * w[:-1], slope.sum())
            return float(value), gradient

        # A verifier that is worse than chance is ignored, not believed the other way round.
        bounds = [(0.0, None)] * len(parts) + [(None, None)]
        w = minimize(loss, np.zeros(len(parts) + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
        return cls(
            verifiers,
            groups=groups,
            weights=w[:-1].tolist(),
            intercept=float(w[-1]),
            floor=floor,
        )

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """All verifiers are asked at once; their log-probabilities are combined step by step."""
        return [self._combined(answers) for answers in _ask_all(self.verifiers, requests)]

    def _combined(self, log_probs: list[tuple[float, ...]]) -> list[float]:
        if len({len(member) for member in log_probs}) > 1:
            silent = (float(log_expit(self.prior_log_odds)),)
            log_probs = [member[-1:] or silent for member in log_probs]
        odds = np.stack([log_odds(member) for member in log_probs]) - self.prior_log_odds
        grouped = np.stack([odds[list(g)].mean(0) for g in self.groups])  # [groups, steps]
        out: list[float] = log_expit(self.intercept + self.weights @ grouped).tolist()
        return out


def _ask_all(
    verifiers: Sequence[Verifier], requests: Sequence[JudgeRequest]
) -> list[list[tuple[float, ...]]]:
    """Per request the answers of all members.

    A member that has nothing to say about the new steps, as they are blank, while others do, stays
    with what it said last; only where it has never spoken its answer is empty.
    """
    answers = [v.judge_checked([replace(r, verifier=v) for r in requests]) for v in verifiers]
    for v, mine in zip(verifiers, answers, strict=True):
        silent = [i for i, a in enumerate(mine) if not a and any(other[i] for other in answers)]
        again = v.judge_checked([replace(requests[i], verifier=v, since=0) for i in silent])
        for i, said in zip(silent, again, strict=True):
            mine[i] = said[-1:]
    return [list(member) for member in zip(*answers, strict=True)]


def _all_groups(members: int, groups: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    named = [j for group in groups for j in group]
    if len(set(named)) != len(named) or not set(named) <= set(range(members)) or not all(groups):
        raise ValueError(f"groups {groups}: name each of {members} members at most once")
    return [*map(tuple, groups), *((j,) for j in range(members) if j not in named)]


def _votes(votes: ArrayLike) -> Floats:
    v = checks.numbers(nan=True, votes=votes)
    if not (np.isin(v, (0, 1)) | np.isnan(v)).all():
        raise ValueError("votes: 0 or 1, or NaN to abstain")
    return v


@dataclass(frozen=True)
class DawidSkene:
    """Error rates of voters, estimated without any label (Dawid and Skene 1979).

    Assumes that voters are independent given the truth, and better than chance on the whole.

    Attributes:
        prior: share of right texts.
        tpr: `[voters]` probability that a voter passes a right text.
        fpr: `[voters]` probability that it passes a wrong one.
    """

    prior: float
    tpr: tuple[float, ...]
    fpr: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        checks.probability(prior=self.prior)
        for tpr, fpr in zip(self.tpr, self.fpr, strict=False):
            checks.probability(tpr=tpr, fpr=fpr)
        if len(self.tpr) != len(self.fpr):
            raise ValueError(f"tpr of {len(self.tpr)} voters, fpr of {len(self.fpr)}")

    def log_odds(self, votes: ArrayLike) -> Floats:
        """`[n]` log-odds that texts are right, from votes `[n, voters]` (0 or 1; NaN abstains)."""
        v = _votes(votes)
        if v.ndim != 2 or v.shape[1] != len(self.tpr):
            raise ValueError(f"votes of shape {list(v.shape)}: [n, {len(self.tpr)}], as the voters")
        t, f = np.asarray(self.tpr), np.asarray(self.fpr)
        with np.errstate(divide="ignore"):  # a checker that never errs is certain
            passed, failed = np.log(t) - np.log(f), np.log1p(-t) - np.log1p(-f)
        ratios = np.where(np.isnan(v), 0.0, np.where(v > 0.5, passed, failed))
        return np.asarray(logit(self.prior) + ratios.sum(1))

    @classmethod
    @checked
    def fit(cls, votes: ArrayLike, *, rounds: int = 500) -> Self:
        """Expectation maximisation from the majority vote.

        Args:
            votes: `[n, voters]` of 0 and 1, at least three voters (two leave it undetermined).
            rounds: most rounds; it stops when nothing moves by more than 1e-8.

        Raises:
            ValueError: fewer than three voters, or no votes.
        """
        v = _votes(votes)
        checks.count(rounds=rounds)
        if v.ndim != 2 or v.shape[1] < 3 or not len(v):
            raise ValueError(f"votes {v.shape}: error rates need at least three voters")
        good = v.mean(1)
        old = np.zeros(2 * v.shape[1] + 1)
        for _ in range(rounds):
            # One made-up pass and fail each keeps the rates off 0 and 1.
            tpr = (good @ v + 1) / (good.sum() + 2)
            fpr = ((1 - good) @ v + 1) / ((1 - good).sum() + 2)
            prior = (good.sum() + 1) / (len(v) + 2)
            model = cls(float(prior), tuple(tpr.tolist()), tuple(fpr.tolist()))
            good = expit(model.log_odds(v))
            new = np.array([prior, *tpr, *fpr])
            if np.abs(new - old).max() < 1e-8:
                break
            old = new
        return model


class Votes(Verifier):
    """Members vote (their probability above one half), a Dawid-Skene model weighs the votes.

    Args:
        verifiers: the voters, in the order in which the model was fitted.
        model: their error rates.
        meaning: what the vote is about; the first voter's by default.
        floor: probabilities are clipped to [floor, 1 - floor].

    Raises:
        ValueError: the model has other voters, or a voter gives no probabilities.
    """

    @checked
    def __init__(
        self,
        verifiers: Sequence[Verifier],
        model: DawidSkene,
        *,
        meaning: Meaning | None = None,
        floor: float = 1e-6,
    ) -> None:
        checks.floor(floor=floor)
        if len(verifiers) != len(model.tpr):
            raise ValueError(f"{len(verifiers)} verifiers, but rates of {len(model.tpr)} voters")
        check_probabilities("a vote", verifiers)
        self.verifiers, self.model, self.floor = list(verifiers), model, floor
        self.name = f"Votes({', '.join(v.name for v in verifiers)})"
        self.meaning = meaning or verifiers[0].meaning
        self.pseudo_marginal = any(v.pseudo_marginal for v in verifiers)
        self.asks_models = any(v.asks_models for v in verifiers)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Log-posterior of "right" under the model; a vote is a last probability above 1/2."""
        results: list[Sequence[float]] = []
        for answers in _ask_all(self.verifiers, requests):
            votes = [float(a[-1] > np.log(0.5)) if a else np.nan for a in answers]
            # Only blank steps are new, and nobody speaks about them.
            nothing = not any(answers)
            results.append([] if nothing else log_expit(self.model.log_odds([votes])).tolist())
        return results
