"""Calibration in every group, not only overall (multicalibration: Hebert-Johnson, Kim, Reingold,
Rothblum 2018, arXiv:1711.08513).

A verifier whose numbers are true on the whole may be too sure of long texts and too shy of short
ones. Groups are questions asked of a text, and may overlap; they are fitted by boosting:

    z = what Platt's map makes of all scores
    as long as it pays: of the group that gains most, z <- slope z + intercept for its members
    p = sigmoid(z)

A round pays if it raises the log-likelihood of the labels by `least_gain`; 4.6 is what two numbers
that mean nothing exceed once in a hundred groups. At the end no group has errors that a shift or a
stretch would mend. The original counts in bins, for errors of any shape, and needs many more
labels; here slopes stay above zero, so that texts of the same groups keep their order. Texts of
other groups change places: that is the point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_expit

from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.language.text import Text
from ppl.verifiers.combine.calibration import (
    Platt,
    checked_labels,
    least_log_loss,
    members,
    smoothed,
)
from ppl.verifiers.combine.reliability import Reliability, reliability

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Refit:
    """One round: what is done to the log-odds of a group's members.

    Attributes:
        group: its name.
        slope: above zero.
        intercept: in nats.
    """

    group: str
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        check_fields(self)
        checks.positive(slope=self.slope)
        if not math.isfinite(self.intercept):
            raise ValueError(f"intercept={self.intercept!r}: a finite number")


@dataclass(frozen=True)
class GroupPlatt:
    """Platt's map, mended group by group.

    Attributes:
        overall: the map that all start from.
        refits: the rounds, in order.
    """

    overall: Platt
    refits: tuple[Refit, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that it needs to know of."""
        return tuple(dict.fromkeys(refit.group for refit in self.refits))

    def __call__(self, scores: ArrayLike, groups: Mapping[str, ArrayLike]) -> Floats:
        """Log-probabilities of scores.

        Args:
            scores: `[n]`.
            groups: for each name `[n]` whether it is a member.
        """
        z = self.overall.slope * np.asarray(scores, dtype=np.float64) + self.overall.intercept
        for refit in self.refits:
            if refit.group not in groups:
                raise ValueError(f"groups: {refit.group!r} is missing, of {list(self.groups)}")
            inside = np.asarray(groups[refit.group], dtype=bool)
            z = np.where(inside, refit.slope * z + refit.intercept, z)
        return np.asarray(log_expit(z))

    @classmethod
    @checked
    def fit(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        groups: Mapping[str, Any],
        *,
        rounds: int = 50,
        least_gain: float = 4.6,
    ) -> Self:
        """Fits to scores `[n]` and truth values `[n]`; see `step_scores` and `step_groups`.

        Args:
            scores, labels: as of `Platt.fit`.
            groups: for each name `[n]` whether it is a member; groups may overlap.
            rounds: most refits.
            least_gain: nats of log-likelihood that a refit has to bring.

        Raises:
            ValueError: as in `Platt.fit`; or a group has another number of members.
        """
        checks.count(least=0, rounds=rounds)
        checks.nonnegative(least_gain=least_gain)
        z, y = checked_labels(scores, labels)
        inside = {name: _mask(name, mask, len(y)) for name, mask in groups.items()}
        overall = Platt.fit(z, y)
        z = overall.slope * z + overall.intercept
        refits: list[Refit] = []
        while len(refits) < rounds:
            found = [_refit(name, z[m], y[m]) for name, m in inside.items()]
            gain, best = max(found, key=lambda one: one[0], default=(0.0, None))
            if best is None or gain < max(least_gain, 1e-9):
                break
            refits.append(best)
            z = np.where(inside[best.group], best.slope * z + best.intercept, z)
        return cls(overall, tuple(refits))


@checked
def step_groups(groups: Mapping[str, Any], texts: Sequence[Text]) -> dict[str, Mask]:
    """Who is a member, for the scores that `step_scores` gives: for each group all texts' steps
    that are not blank, one after another.

    Args:
        groups: by name, a function of the text up to the end of the step.
        texts: as given to `step_scores`.
    """
    spoken = [
        [t for t, step in enumerate(text.steps) if step.strip()] if text.steps else [-1]
        for text in texts
    ]
    each = [members(groups, text, steps) for text, steps in zip(texts, spoken, strict=True)]
    return {name: np.concatenate([own[name] for own in each]) for name in groups}


@checked
def reliability_by_group(
    log_probs: ArrayLike, labels: ArrayLike, groups: Mapping[str, Any], *, bins: int = 10
) -> dict[str, Reliability]:
    """`reliability` within every group that has members.

    Args:
        log_probs, labels, bins: as of `reliability`.
        groups: for each name `[n]` whether it is a member.
    """
    log_p, y = checks.numbers(log_probs=log_probs), checks.truths(labels=labels)
    inside = {name: _mask(name, mask, len(y)) for name, mask in groups.items()}
    return {n: reliability(log_p[m], y[m], bins=bins) for n, m in inside.items() if m.any()}


def _mask(name: str, given: Any, length: int) -> Mask:
    mask = checks.truths(groups=given)
    if mask.shape != (length,):
        raise ValueError(f"groups[{name!r}]={shown(given)}: one truth value for each of {length}")
    return mask


def _refit(name: str, z: Floats, y: Mask) -> tuple[float, Refit | None]:
    """The best stretch and shift of a group, and what it gains in nats."""
    if y.all() or not y.any():  # of one kind: no number says how sure to be
        return 0.0, None
    slope, intercept = least_log_loss(np.stack([z, np.ones_like(z)], 1), smoothed(y))
    if not slope > 0:  # it would turn the order round: shift alone
        slope, (intercept,) = 1.0, least_log_loss(np.ones((len(z), 1)), smoothed(y), offset=z)
    refit = Refit(name, float(slope), float(intercept))
    after = refit.slope * z + refit.intercept
    return float(_likelihood(after, y) - _likelihood(z, y)), refit


def _likelihood(z: Floats, y: Mask) -> float:
    return float(np.sum(log_expit(np.where(y, z, -z))))
