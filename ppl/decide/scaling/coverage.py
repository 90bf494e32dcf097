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
from collections.abc import Callable
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

_Z = 1.959963984540054  # 97.5% quantile of the normal law
# Above it, problems differ no more than chance has it: a Beta law of one point.
_MOST_CONCENTRATION = 1e6
_RESAMPLED = 1000


@dataclass(frozen=True)
class BetaBinomial:
    """Chances to solve a problem follow Beta(alpha, beta) over problems.

    Attributes:
        alpha, beta: maximum-likelihood values; coverage falls short of 1 as k^-alpha in the end.
        alpha_interval, beta_interval: 95%, from the curvature of the likelihood.
        problems: fitted to; 0 if the law was given.
        covariance: of the logit of the mean and the logarithm of alpha + beta, `[2, 2]` by rows.
    """

    alpha: float
    beta: float
    alpha_interval: Interval = (math.nan, math.nan)
    beta_interval: Interval = (math.nan, math.nan)
    problems: int = 0
    covariance: tuple[tuple[float, float], ...] = field(
        default=((math.nan, math.nan), (math.nan, math.nan)), repr=False
    )

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
        """95% interval of the coverage of all problems like these, by the delta method.

        It says how well the law is known, if it is a Beta law; not how far a set of problems lies
        from its mean.
        """
        checks.count(k=k)
        low, high = _delta(
            lambda a, b: _cloglog(_log_failure(a, b, k)), self.alpha, self.beta, self.covariance
        )
        return -math.expm1(-math.exp(low)), -math.expm1(-math.exp(high))

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
    limit = math.log(_MOST_CONCENTRATION)
    fitted = min(
        (
            minimize(
                _loss,
                (logit(share), start),
                args=(counts, right),
                jac=True,
                method="L-BFGS-B",
                bounds=[(-40.0, 40.0), (-20.0, limit)],
            )
            for start in (-1.0, 1.0, 4.0)
        ),
        key=lambda result: float(result.fun),
    )
    place = np.asarray(fitted.x, dtype=np.float64)
    covariance = _covariance(place, counts, right, at_limit=place[1] > limit - 1e-3)
    alpha, beta = _law(place)
    rows = tuple(map(tuple, covariance.tolist()))
    low_a, high_a = _delta(lambda a, _: math.log(a), alpha, beta, rows)
    low_b, high_b = _delta(lambda _, b: math.log(b), alpha, beta, rows)
    return BetaBinomial(
        alpha,
        beta,
        (math.exp(low_a), math.exp(high_a)),
        (math.exp(low_b), math.exp(high_b)),
        len(counts),
        rows,
    )


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


def _cloglog(log_failure: float) -> float:
    """log of -log(1 - coverage): it has no bounds, so that an interval stays inside of [0, 1]."""
    return math.log(-log_failure)


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


def _covariance(place: Floats, counts: Floats, right: Floats, *, at_limit: bool) -> Floats:
    """Inverse of the observed information; nothing is known to vary along a limit."""
    step = 1e-4
    information = np.empty((2, 2))
    for i in range(2):
        more, less = place.copy(), place.copy()
        more[i] += step
        less[i] -= step
        gradients = _loss(more, counts, right)[1] - _loss(less, counts, right)[1]
        information[i] = gradients / (2 * step) * len(counts)
    information = (information + information.T) / 2
    if at_limit:
        return np.array([[1 / information[0, 0], 0.0], [0.0, 0.0]])
    return np.asarray(np.linalg.inv(information))


def _delta(
    f: Callable[[float, float], float],
    alpha: float,
    beta: float,
    covariance: tuple[tuple[float, ...], ...],
) -> Interval:
    """95% interval of a function of the law, linear around it."""
    place = np.array([math.log(alpha / beta), math.log(alpha + beta)])
    step = 1e-5
    slopes = np.array(
        [(f(*_law(place + d)) - f(*_law(place - d))) / (2 * step) for d in np.eye(2) * step]
    )
    error = math.sqrt(max(0.0, float(slopes @ np.array(covariance) @ slopes)))
    middle = f(alpha, beta)
    return middle - _Z * error, middle + _Z * error


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
