r"""How coverage grows with samples, beyond those that were drawn.

A problem that one sample solves with chance p is solved by k with 1 - (1-p)^k. Over problems whose
p follow Beta(alpha, beta), coverage is 1 - B(alpha, beta + k) / B(alpha, beta), whose failures fall
as k^-alpha: the power law of Brown et al. 2024 ("Large Language Monkeys", arXiv 2407.21787),
explained by Schaeffer et al. 2025. It is reached slowly: for Beta(.3, 2) the local slope of
log(-log coverage) is -.375 between 10 and 100 samples, and -.317 between 1,000 and 10,000. So
forecasts are made by the likelihood of the counts (`fit_beta_binomial`); the line (`fit_power_law`)
stands beside it as published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaln, digamma, expit, logit

from ppl.decide.scaling.estimators import pass_at_k
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_DROP = 1.920729410347062  # of the log-likelihood: half of the 95% quantile of chi-squared(1)
_DIRECTIONS = 64
# Of the logit of the mean and of log(alpha + beta). At the upper end problems differ no more than
# chance has it, at the lower one each is always solved or never.
_BOX = [(-40.0, 40.0), (-20.0, math.log(1e6))]
_RESAMPLED = 1000


@dataclass(frozen=True)
class BetaBinomial:
    """Chances to solve a problem follow Beta(alpha, beta) over problems.

    Attributes:
        alpha, beta: maximum-likelihood values; coverage falls short of 1 as k^-alpha in the end.
        alpha_interval, beta_interval: 95%, by the profile of the likelihood; up to infinity where
            problems may not differ at all, from zero where each may be always solved or never.
        problems: fitted to; 0 if the law was given.
        region: laws (alpha, beta) on the edge of those that are as likely as that.
    """

    alpha: float
    beta: float
    alpha_interval: Interval = (math.nan, math.nan)
    beta_interval: Interval = (math.nan, math.nan)
    problems: int = 0
    region: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        checks.positive(alpha=self.alpha, beta=self.beta)

    @property
    def mean(self) -> float:
        """Coverage of one sample."""
        return self.alpha / (self.alpha + self.beta)

    @checked
    def coverage(self, k: int) -> float:
        """Expected pass@k: 1 - B(alpha, beta + k) / B(alpha, beta)."""
        checks.count(k=k)
        return -math.expm1(_log_failure(self.alpha, self.beta, k))

    @checked
    def interval(self, k: int) -> Interval:
        """95% interval of the coverage of all problems like these, by the profile likelihood.

        It says how well the law is known, if it is a Beta law; not how far a set of problems lies
        from its mean. NaN for a law that was given.
        """
        checks.count(k=k)
        found = [-math.expm1(_log_failure(alpha, beta, k)) for alpha, beta in self.region]
        return (min(found), max(found)) if found else (math.nan, math.nan)

    @checked
    def gain(self, k: int) -> float:
        """What sample k + 1 adds to coverage; k may be 0."""
        checks.count(least=0, k=k)
        left = math.exp(_log_failure(self.alpha, self.beta, k))
        return left * self.alpha / (self.alpha + self.beta + k)

    @checked
    def saturation(self, eps: float) -> int:
        """The fewest samples after which one more adds less than or exactly `eps` to coverage."""
        checks.positive(eps=eps)
        if self.gain(0) <= eps:
            return 0
        high = 1
        while self.gain(high) > eps:
            high *= 2
        low = high // 2  # gain(low) > eps >= gain(high), and gains fall
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.gain(middle) <= eps else (middle, high)
        return high


@dataclass(frozen=True)
class PowerLaw:
    """coverage(k) = exp(a k^b).

    Attributes:
        a, b: below zero, where coverage rises.
        a_interval, b_interval: 95%, percentiles of the bootstrap over problems.
    """

    a: float
    b: float
    a_interval: Interval = (math.nan, math.nan)
    b_interval: Interval = (math.nan, math.nan)

    @checked
    def coverage(self, k: int) -> float:
        """exp(a k^b)."""
        checks.count(k=k)
        return math.exp(self.a * k**self.b)


@checked
def coverage_curve(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Floats:
    """Mean unbiased pass@k over problems, `[K]`; see `pass_at_k`.

    Args:
        n: samples of each problem, `[P]`, or one number for all.
        c: of these, right ones, `[P]`.
        k: sizes, `[K]`, none above the smallest n.
    """
    counts, right = _counts(n, c)
    sizes = [_whole(k=size) for size in np.atleast_1d(checks.numbers(k=k)).tolist()]
    return np.asarray(_curves(counts, right, sizes).mean(axis=0))


@checked
def fit_beta_binomial(n: ArrayLike, c: ArrayLike) -> BetaBinomial:
    """The Beta law under which right samples of problems are most likely as they were counted.

    Args:
        n: samples of each problem, `[P]`, or one number for all.
        c: of these, right ones, `[P]`.

    Raises:
        ArgumentError: every sample is right, or none; or no problem has more than one sample: the
            counts then say nothing of how problems differ.
    """
    counts, right = _counts(n, c)
    if right.sum() == 0 or (right == counts).all():
        said = "none" if right.sum() == 0 else "all"
        raise ArgumentError(f"c: {said} of the samples are right; a law cannot be fitted to that")
    if counts.max() < 2:
        raise ArgumentError("n: one sample a problem; how problems differ takes two at least")
    share = float(right.sum() / counts.sum())
    fitted = min(
        (
            minimize(
                _loss,
                (logit(share), start),
                args=(counts, right),
                jac=True,
                method="L-BFGS-B",
                bounds=_BOX,
            )
            for start in (-1.0, 1.0, 4.0)
        ),
        key=lambda result: float(result.fun),
    )
    place = np.asarray(fitted.x, dtype=np.float64)
    alpha, beta = _law(place)
    edge = _edge(place, counts, right)
    region = tuple(_law(point) for point in edge)
    most, least = (bool((edge[:, 1] == bound).any()) for bound in _BOX[1][::-1])
    intervals = [
        (0.0 if least else min(found), math.inf if most else max(found))
        for found in zip(*region, strict=True)
    ]
    return BetaBinomial(alpha, beta, intervals[0], intervals[1], len(counts), region)


@checked
def fit_power_law(n: ArrayLike, c: ArrayLike, *, seed: int = 0) -> PowerLaw:
    """The line of log(-log coverage) on log k, by least squares over k = 1, 2, 4, ... and n.

    Args:
        n: samples of each problem, `[P]`, or one number for all.
        c: of these, right ones, `[P]`.
        seed: of the bootstrap.

    Raises:
        ArgumentError: fewer than two sizes have a coverage between 0 and 1.
    """
    counts, right = _counts(n, c)
    smallest = int(counts.min())
    sizes = sorted({2**i for i in range(smallest.bit_length())} | {smallest})
    curves = _curves(counts, right, sizes)
    found = _line(sizes, curves.mean(axis=0))
    if found is None:
        raise ArgumentError("c: fewer than two sizes have a coverage between 0 and 1 to fit to")
    rng = generator(seed, "coverage", len(counts))
    again = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLED)
    lines = [_line(sizes, row) for row in again @ curves / len(counts)]
    table = np.array([line for line in lines if line is not None])
    (low_a, low_b), (high_a, high_b) = np.quantile(table, [0.025, 0.975], axis=0).tolist()
    return PowerLaw(*found, (low_a, high_a), (low_b, high_b))


def _line(sizes: list[int], coverage: Floats) -> tuple[float, float] | None:
    usable = (coverage > 0) & (coverage < 1 - 1e-12)
    if usable.sum() < 2:
        return None
    x = np.log(np.array(sizes, dtype=np.float64)[usable])
    y = np.log(-np.log(coverage[usable]))
    b, log_a = np.polyfit(x, y, 1).tolist()
    return -math.exp(log_a), b


def _curves(counts: Floats, right: Floats, sizes: list[int]) -> Floats:
    """`[P, K]`, pass@k of each problem."""
    known: dict[tuple[float, float], list[float]] = {}
    pairs = list(zip(counts.tolist(), right.tolist(), strict=True))
    for n, c in pairs:
        if (n, c) not in known:
            known[n, c] = [pass_at_k(int(n), int(c), k) for k in sizes]
    return np.array([known[pair] for pair in pairs])


def _log_failure(alpha: float, beta: float, k: int) -> float:
    return float(betaln(alpha, beta + k) - betaln(alpha, beta))


def _law(place: Floats) -> tuple[float, float]:
    mean, concentration = float(expit(place[0])), math.exp(float(place[1]))
    return mean * concentration, float(expit(-place[0])) * concentration


def _loss(place: Floats, counts: Floats, right: Floats) -> tuple[float, Floats]:
    """Minus the mean log-likelihood, without what does not depend on the law; its gradient."""
    alpha, beta = _law(place)
    value = betaln(alpha + right, beta + counts - right) - betaln(alpha, beta)
    whole = digamma(alpha + beta + counts) - digamma(alpha + beta)
    by_alpha = digamma(alpha + right) - digamma(alpha) - whole
    by_beta = digamma(beta + counts - right) - digamma(beta) - whole
    mean = expit(place[0])
    slope = alpha * (1 - mean)  # alpha rises with the logit of the mean as beta falls
    gradient = [
        -np.mean(slope * (by_alpha - by_beta)),
        -np.mean(alpha * by_alpha + beta * by_beta),
    ]
    return -float(np.mean(value)), np.array(gradient)


def _edge(place: Floats, counts: Floats, right: Floats) -> Floats:
    """`[D, 2]`: where the likelihood has fallen as far as 95% allow, in all directions.

    In coordinates in which the likelihood's peak is round, so that few directions see all of it.
    Where it does not fall so far within the box, the edge of the box.
    """
    pairs, repeated = np.unique(np.stack([counts, right]), axis=1, return_counts=True)
    low, high = np.array(_BOX).T

    def fallen(point: Floats) -> float:
        alpha, beta = _law(point)
        value = betaln(alpha + pairs[1], beta + pairs[0] - pairs[1]) - betaln(alpha, beta)
        return top - float(repeated @ value)

    top = 0.0
    top = -fallen(place)
    axes = _axes(place, counts, right)
    edge = []
    for angle in np.linspace(0.0, 2 * np.pi, _DIRECTIONS, endpoint=False).tolist():
        way = axes @ np.array([math.cos(angle), math.sin(angle)])
        with np.errstate(divide="ignore"):
            room = np.where(way > 0, (high - place) / way, (low - place) / way)
        most = float(np.min(np.where(way == 0, np.inf, room)))
        reach = min(1.0, most)
        while reach < most and fallen(place + reach * way) < _DROP:
            reach = min(2 * reach, most)
        inside = 0.0
        if fallen(place + reach * way) > _DROP:
            for _ in range(40):
                middle = (inside + reach) / 2
                if fallen(place + middle * way) > _DROP:
                    reach = middle
                else:
                    inside = middle
        edge.append(np.clip(place + reach * way, low, high))
    return np.array(edge)


def _axes(place: Floats, counts: Floats, right: Floats) -> Floats:
    """`[2, 2]`: steps that change the likelihood alike, as far as its curvature tells."""
    step = 1e-4
    information = np.empty((2, 2))
    for i in range(2):
        change = np.eye(2)[i] * step
        gradients = (
            _loss(place + change, counts, right)[1] - _loss(place - change, counts, right)[1]
        )
        information[i] = gradients / (2 * step) * len(counts)
    sizes, axes = np.linalg.eigh((information + information.T) / 2)
    return np.asarray(axes / np.sqrt(np.clip(sizes, 1e-2, None)))


def _counts(n: ArrayLike, c: ArrayLike) -> tuple[Floats, Floats]:
    right = checks.numbers(c=c)
    if right.ndim != 1 or not len(right):
        raise ArgumentError("c: one axis, [P], at least one problem")
    counts = checks.numbers(n=n)
    if counts.ndim and counts.shape != right.shape:
        raise ArgumentError(f"n: of shape {list(counts.shape)} for {len(right)} problems")
    counts = np.broadcast_to(counts, right.shape).astype(np.float64)
    if (counts < 1).any() or (counts != np.round(counts)).any():
        raise ArgumentError("n: whole numbers of samples, one at least")
    if (right < 0).any() or (right > counts).any() or (right != np.round(right)).any():
        raise ArgumentError("c: whole numbers of right samples, from 0 to n")
    return counts, right


def _whole(**numbers: float) -> int:
    ((name, value),) = numbers.items()
    if value != round(value):
        raise ArgumentError(f"{name}={value!r}: whole numbers")
    return int(value)
