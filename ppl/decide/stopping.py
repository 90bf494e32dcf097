"""When to stop paying for samples: rules as values, `BestOfN(64, stop=Settled("beta", 0.95))`.

    Settled("beta")         the leader leads the runner-up: P(Beta(v1+1, v2+1) > 1/2) >= level
    Settled("dirichlet")    the leader leads all: P(p_1 = max p | Dirichlet(v + 1)) >= level
    Settled("exact")        the vote can no longer change: v1 - v2 > samples left
    Settled("confidence")   the leader's share of all confidence >= level
    EarlyStop(confidence)   one sample is good enough: its confidence >= tau

v are the counts of answers, the largest first (Aggarwal, Madaan, Yang, Mausam 2023, "Let's Sample
Step by Step", arXiv:2305.11860; with confidence Huang et al. 2025, arXiv:2503.00031). All but the
exact rule are looked at again and again, and so promise less than their level says: they are
statements of a posterior under a flat prior, not bounds on an error rate.

A rule sees answers alone. It never sees which is right, and a search that one has ended claims no
evidence: it has stopped because of what it saw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammainc, gammaincinv

from ppl.decide.seen import Seen
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields

_NODES = 256  # of the quadrature: its error is below 1e-6 for counts up to some thousands
# Levels are compared with sums of floats: one that is met exactly is met.
_ROUNDING = 1e-12


class StoppingRule(ABC):
    """When to stop. Subclasses are frozen dataclasses of their settings.

    Attributes:
        probes: how many checkpoints of every sample the rule looks back at; above zero samples go
            side by side, and what unfinished ones have said (`ppl.answer`) counts.
        weights: `"flat"` if every sample counts once, `"posterior"` if by its weight.
        confidence: a function of a node, from 0 to 1; None for what verifiers say of it.
        drop: None for a rule that has no `dissenters`.
    """

    probes: int = 0
    weights: str = "flat"
    confidence: Callable[[Any], float] | None = None
    drop: int | None = None

    @abstractmethod
    def stops(self, seen: Seen) -> bool:
        """True if no more samples are worth their price."""

    def batch(self, seen: Seen) -> int:
        """How many samples to draw before the rule is asked again: as many as there are, which
        makes batches of 1, 1, 2, 4, ..."""
        return max(1, len(seen))

    def dissenters(self, seen: Seen) -> tuple[int, ...]:
        """Which samples, by their place, go no further and have no vote; those of them that have
        ended stay."""
        return ()

    def first(self, seen: Seen, after: int = 0) -> int | None:
        """How many samples of those seen would have been enough; None if not all are.

        What came later was in flight when the rule came true: it is paid for, and votes.

        Args:
            seen: the samples.
            after: so many had come when the rule was asked last.
        """
        if self.probes:  # all were under way
            return len(seen) if self.stops(seen) else None
        return next((n for n in range(after + 1, len(seen) + 1) if self.stops(seen.first(n))), None)


@dataclass(frozen=True)
class Settled(StoppingRule):
    """The vote is as good as over.

    * `"beta"`: as above; unanimous answers are settled at .95 by the fourth, at .99 by the sixth.
    * `"dirichlet"`: asks more where there are three classes or more; with two it is `"beta"`.
    * `"exact"`: the winner of all samples is known, whatever the rest says. Saves less than half,
      and never changes a vote. It needs to know how many may still come, as `BestOfN` does, and
      never asks for more than may settle it: towards the end that is one at a time.
    * `"confidence"`: from the second answer on. Where all are equally confident, this is the
      leader's share of the answers.

    Samples without an answer are for nobody.

    Attributes:
        rule: which.
        level: how sure, below 1; the exact rule has none.
        weights: `"flat"`: every answer counts once, as in `vote(weights="flat")`; `"posterior"`: by
            its weight, so that all together count as their effective sample size.
        confidence: for that rule: how sure a finished node is, from 0 to 1 (a function at the top
            level of a module); by default what verifiers say of it.
    """

    rule: Literal["beta", "dirichlet", "exact", "confidence"] = "beta"
    level: float = 0.95
    weights: Literal["flat", "posterior"] = "flat"
    confidence: Callable[[Any], float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _level(level=self.level)
        if self.rule in ("exact", "confidence") and self.weights != "flat":
            raise ArgumentError(
                f"weights={self.weights!r}: the rule {self.rule!r} counts flat: nobody knows what "
                "the samples to come will weigh"
            )
        if self.confidence is not None and self.rule != "confidence":
            raise ArgumentError(
                f"confidence: the rule {self.rule!r} asks for none; Settled('confidence', ...) does"
            )

    def stops(self, seen: Seen) -> bool:
        """True once it is settled."""
        counts = seen.weighted if self.weights == "posterior" else seen.votes
        first, second = leaders(counts)
        if first == 0:
            return False
        if self.rule == "exact":
            return first - second > seen.left
        return self.chance(seen) >= self.level - _ROUNDING

    def batch(self, seen: Seen) -> int:
        """As many as there are; for the exact rule no more than could settle it."""
        if self.rule != "exact" or seen.left == math.inf:
            return super().batch(seen)
        first, second = leaders(seen.votes)
        return min(super().batch(seen), int(seen.left - (first - second)) // 2 + 1)

    def chance(self, seen: Seen) -> float:
        """What is compared with the level; for the exact rule 1 or 0."""
        counts = seen.weighted if self.weights == "posterior" else seen.votes
        first, second = leaders(counts)
        match self.rule:
            case "beta":
                return leads(first, second)
            case "dirichlet":
                return leads_all(counts)
            case "exact":
                return float(first - second > seen.left)
            case "confidence":
                mass = seen.counts(seen.confidences)
                if seen.votes.sum() < 2 or mass.sum() == 0:
                    return 0.0
                return float(mass.max() / mass.sum())


@dataclass(frozen=True)
class EarlyStop(StoppingRule):
    """One sample that is sure enough ends the search (Huang et al. 2025, arXiv:2503.00031).

    With a calibrated confidence, answers that are accepted are right with probability `tau` or
    more. If none reaches it, the answer is the most confident sample, not the last.

    Attributes:
        confidence: of a finished node, from 0 to 1 (a function at the top level of a module); by
            default what verifiers say of it, so that `posterior.best` is the answer.
        tau: how sure is sure enough.
    """

    confidence: Callable[[Any], float] | None = None
    tau: float = 0.8

    def __post_init__(self) -> None:
        check_fields(self)
        checks.probability(tau=self.tau)

    def stops(self, seen: Seen) -> bool:
        """True once an answer is sure enough."""
        chosen = self.choice(seen)
        return chosen is not None and _sure(seen)[chosen] >= self.tau - _ROUNDING

    def choice(self, seen: Seen) -> int | None:
        """Which sample is the answer: the first that is sure enough, else the most confident; None
        without answers."""
        sure = _sure(seen)
        known = [i for i, c in enumerate(seen.classes) if c >= 0]
        enough = (i for i in known if sure[i] >= self.tau - _ROUNDING)
        return next(enough, max(known, key=lambda i: sure[i], default=None))


def leaders(counts: NDArray[np.float64]) -> tuple[float, float]:
    """The two largest counts; zero for classes that are not there."""
    ordered = np.sort(np.append(counts, [0.0, 0.0]))
    return float(ordered[-1]), float(ordered[-2])


def leads(first: float, second: float) -> float:
    """P(Beta(first + 1, second + 1) > 1/2).

    For whole numbers this is P(Binomial(first + second + 1, 1/2) <= first); of n unanimous answers
    it is 1 - 2^-(n+1). The incomplete Beta function underflows for no counts, as quadrature does.
    """
    return float(betainc(second + 1.0, first + 1.0, 0.5))


def leads_all(counts: NDArray[np.float64]) -> float:
    """P(the largest class has the largest probability) under Dirichlet(counts + 1).

    A Dirichlet is Gammas over their sum: with F_j their distribution functions this is the mean of
    prod_{j > 1} F_j(x) over x of the first, by Gauss-Legendre quadrature in F_1(x); nothing is
    drawn. A single class has an unseen one beside it, as in the Beta rule.
    """
    shapes = np.sort(np.append(counts, [0.0] * max(0, 2 - len(counts))))[::-1] + 1.0
    if len(shapes) == 2:
        return leads(shapes[0] - 1.0, shapes[1] - 1.0)
    points, weights = _quadrature()
    x = gammaincinv(shapes[0], (points + 1.0) / 2.0)  # [_NODES]
    others, times = np.unique(shapes[1:], return_counts=True)  # rare answers have few counts
    below = np.prod(gammainc(others[:, None], x[None, :]) ** times[:, None], axis=0)
    return float(np.sum(weights * below) / 2.0)


@cache
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    return points, weights


def _sure(seen: Seen) -> tuple[float, ...]:
    if seen.confidences is None:
        raise ArgumentError("seen: has no confidences, which this rule compares with tau")
    return seen.confidences


def _level(**levels: Any) -> None:
    ((name, level),) = levels.items()
    if not 0.0 < level < 1.0:
        raise ArgumentError(
            f"{name}={level!r}: above 0 and below 1; no finite number of samples "
            "makes anything certain, but Settled('exact') waits until it is"
        )
