"""RPC: perplexity consistency and reasoning pruning (Zhou et al. 2025, arXiv 2502.00511).

A vote estimates the chance of an answer by counting; perplexity consistency adds up the known
probabilities of the distinct texts that led to it, so that only what was never seen is missing.
Texts of low probability are pruned: a mixture of two Weibull laws is fitted to the probabilities,
and a text goes if it is more likely of the lower component, and below the mean.

The published code takes exp(mean log-probability of a token) for the probability; the theory is
about that of the whole text. Probabilities are divided by the largest before they are fitted, so
that the bounds on the scales mean the same for both. Those of long whole texts lie apart by many
powers of ten, which no Weibull law describes: then nothing is pruned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, gammaln

from ppl.decide.columns import Bools, Columns, Floats, dead
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked

_START = (
    0.5,
    1.0,
    1.0,
    1.5,
    2.0,
)  # share of the first component, its shape and scale, the second's
_SHARE = (0.2, 0.8)
_LEAST = 0.01
# Of equal probabilities the likelihood has no bound, as a shape goes to infinity.
_MOST_SHAPE = 100.0
_FEWEST = 4  # distinct values that five parameters are fitted to
# The largest probability is 1: a component whose mean is above this is of no law on such numbers.
_MOST_MEAN = 2.0
_APART = 0.01  # logarithms of means that are nearer than this are of one component


@dataclass(frozen=True)
class RPC:
    """Perplexity consistency: each distinct text weighs its own probability.

    Equal texts count once, whatever was drawn how often. Only texts with an answer are pruned. For
    a vote by the exact posterior of the texts that were seen, verifiers included, take
    `probability="joint"`.

    Args:
        probability: `"path"`, of the whole text; `"token_mean"`, the geometric mean over its
            tokens, as in the published code; `"joint"`, of the text times its observations.
        prune: leave out texts of low probability; without it, perplexity consistency alone.
    """

    probability: Literal["path", "token_mean", "joint"] = "path"
    prune: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, columns: Columns) -> Floats:
        """See `Weighting`."""
        logs = self._logs(columns) + dead(columns["log_weights"])
        counted = first_of_each(columns["texts"], np.isneginf(logs))
        logs = np.where(counted, logs, -np.inf)
        if self.prune:
            for place in np.ndindex(logs.shape[:-1]):
                row = logs[place]
                seen = np.flatnonzero(columns.there[place] & (row > -np.inf))
                row[seen[~kept(row[seen])]] = -np.inf
        return logs

    def _logs(self, columns: Columns) -> Floats:
        if self.probability == "joint":
            return columns["log_joints"]
        if self.probability == "path":
            return columns["log_probs"]
        return np.asarray(columns["log_probs"] / np.maximum(columns["tokens"], 1))


def first_of_each(texts: Floats, without: Bools) -> Bools:
    """`[..., N]`: which candidates are the first of their text; those `without` weight are none."""
    order = np.lexsort((texts, without), axis=-1)  # which leaves equal ones in their order
    sorted_texts = np.take_along_axis(texts, order, axis=-1)
    begins = np.ones(texts.shape, dtype=np.bool_)
    begins[..., 1:] = sorted_texts[..., 1:] != sorted_texts[..., :-1]
    found = np.empty_like(begins)
    np.put_along_axis(found, order, begins, axis=-1)
    return found & ~without


@checked
def kept(log_probs: ArrayLike) -> Bools:
    """Which of the distinct texts stay after pruning, `[N]`: never none; all if nothing is told.

    Nothing is pruned of fewer than four distinct probabilities, or where the fit fails: no optimum
    is found, a component has a mean far above the largest probability, or there is only one.

    Args:
        log_probs: `[N]`, of distinct texts; finite.
    """
    logs = checks.numbers(log_probs=log_probs)
    if logs.ndim != 1 or not np.isfinite(logs).all():
        raise ArgumentError("log_probs: finite, one axis, [N]")
    everything = np.ones(len(logs), dtype=np.bool_)
    if len(logs) < _FEWEST:
        return everything
    logs = np.minimum(logs - logs.max(), -1e-12)  # the largest is 1, and its logarithm no zero
    if len(np.unique(np.round(logs, 9))) < _FEWEST:
        return everything
    fitted = minimize(
        _loss,
        _START,
        args=(np.sort(logs),),  # whose order is nothing, to the last digit
        method="L-BFGS-B",
        jac=True,
        bounds=[_SHARE, *[(_LEAST, _MOST_SHAPE), (_LEAST, None)] * 2],
    )
    share, *laws = fitted.x.tolist()
    first, second = laws[:2], laws[2:]
    log_first = math.log(share) + _log_density(logs, *first)
    log_second = math.log1p(-share) + _log_density(logs, *second)
    means = _log_mean(*first), _log_mean(*second)
    fits = fitted.success and max(means) <= math.log(_MOST_MEAN)
    if not fits or abs(means[0] - means[1]) < _APART:
        return everything
    if means[0] > means[1]:
        bad, good = log_second, log_first
    else:
        bad, good = log_first, log_second
    probabilities = np.exp(logs)
    return np.asarray(~((bad > good) & (probabilities < probabilities.mean())))


def _log_density(logs: Floats, shape: float, scale: float) -> Floats:
    """Of the Weibull law at exp(logs)."""
    z = logs - math.log(scale)
    return math.log(shape) - math.log(scale) + (shape - 1) * z - np.exp(shape * z)


def _log_mean(shape: float, scale: float) -> float:
    return math.log(scale) + float(gammaln(1 + 1 / shape))


def _loss(parameters: Floats, logs: Floats) -> tuple[float, Floats]:
    """Mean of minus the log-likelihood, and its gradient."""
    share, *laws = parameters.tolist()
    first, second = laws[:2], laws[2:]
    a = math.log(share) + _log_density(logs, *first)
    b = math.log1p(-share) + _log_density(logs, *second)
    own = expit(a - b)  # the first component's part
    gradient = [np.mean(own / share - (1 - own) / (1 - share))]
    for part, (shape, scale) in ((own, first), (1 - own, second)):
        z = logs - math.log(scale)
        power = np.exp(shape * z)
        gradient.append(np.mean(part * (1 / shape + z - z * power)))
        gradient.append(np.mean(part * shape / scale * (power - 1)))
    return -float(np.mean(np.logaddexp(a, b))), -np.array(gradient)
