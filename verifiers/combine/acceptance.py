"""How often a verifier accepts what is wrong, and what kinds of problems its verdicts tell of.

Stroebl, Kapoor and Narayanan 2024 (arXiv 2411.17501): unit tests accept wrong programs, and more
often where programs are mostly wrong. `false_positive_rate` counts them with stronger tests;
`fit_types` finds types of problems in what was accepted, for `ImperfectVerifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, xlog1py, xlogy
from scipy.stats import binomtest

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.verifiers.combine.imperfect import ImperfectVerifier

Floats = NDArray[np.float64]

_MOST_TYPES = 4  # that BIC chooses among
_STARTS, _ROUNDS, _TOLERANCE = 6, 2000, 1e-10


@dataclass(frozen=True)
class FalsePositives:
    """What some checks accept, by what stronger checks say.

    Attributes:
        drawn: candidates.
        right: of these, accepted by the stronger checks.
        accepted: accepted by the checks.
        false: accepted by the checks, and wrong.
    """

    drawn: int
    right: int
    accepted: int
    false: int

    @property
    def rate(self) -> float:
        """P(accepted | wrong), 1 - soundness; NaN if nothing is wrong."""
        return _share(self.false, self.drawn - self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the rate (Wilson); (0, 1) if nothing is wrong."""
        if self.drawn == self.right:
            return 0.0, 1.0
        found = binomtest(self.false, self.drawn - self.right).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    @property
    def soundness(self) -> float:
        """P(rejected | wrong)."""
        return 1 - self.rate

    @property
    def completeness(self) -> float:
        """P(accepted | right); NaN if nothing is right."""
        return _share(self.accepted - self.false, self.right)

    @property
    def wrong_share(self) -> float:
        """P(wrong | accepted), what resampling until acceptance is left with."""
        return _share(self.false, self.accepted)


@checked
def false_positive_rate(
    candidates: Sequence[Any],
    checks: Callable[[Any], bool],
    stronger_checks: Callable[[Any], bool],
) -> FalsePositives:
    """How often checks accept what stronger ones reject.

    It is only as good as the stronger checks: what these let pass as well counts as right, so the
    rate is a lower bound. Every candidate counts, also those that are the same.

    Args:
        candidates: to be checked, such as programs.
        checks: whether the verifier accepts one.
        stronger_checks: whether it is right.

    Raises:
        ArgumentError: no candidates; or checks have no verdict (None) on one.
    """
    if not len(candidates):
        raise ArgumentError("candidates: none given")
    weak = _verdicts("checks", map(checks, candidates))
    strong = _verdicts("stronger_checks", map(stronger_checks, candidates))
    return FalsePositives(
        len(candidates), int(strong.sum()), int(weak.sum()), int((weak & ~strong).sum())
    )


@checked
def fit_types(
    accepted: ArrayLike,
    draws: ArrayLike,
    *,
    completeness: float,
    soundness: float,
    types: int | None = None,
    seed: int = 0,
) -> ImperfectVerifier:
    """Types of problems, from how many of a problem's draws were accepted.

    A problem of type i has its draws accepted with chance a_i = r_i c + (1 - r_i)(1 - s); counts
    are a mixture of binomials, fitted by expectation and maximisation, the best of several starts.
    c and s are not told by counts of accepted draws: measure them on labelled ones
    (`false_positive_rate`).

    Args:
        accepted: `[P]`, accepted draws of each problem.
        draws: `[P]`, or one number for all.
        completeness, soundness: of the verifier; it has to tell something, c > 1 - s.
        types: how many; by default as many as BIC finds, up to 4, and to as many as there are
            different counts: more bring nothing.
        seed: of the starts.

    Raises:
        ArgumentError: a mixture of so many types is not told by so few draws: it takes 2 types - 1
            of a problem at least.
    """
    checks.probability(completeness=completeness, soundness=soundness)
    if completeness <= 1 - soundness:
        raise ArgumentError(
            f"completeness={completeness!r}: a verifier that accepts right ones no more often than "
            f"wrong ones ({1 - soundness:g}) tells nothing of the types"
        )
    k, n = _counts(accepted, draws)
    told = (int(n.max()) + 1) // 2
    if types is not None:
        checks.count(types=types)
        if types > told:
            raise ArgumentError(
                f"types={types}: {int(n.max())} draws of a problem tell {told} apart at most"
            )
    different = len(set(zip(k.tolist(), n.tolist(), strict=True)))
    most = min(_MOST_TYPES, told, different)
    tried = [types] if types is not None else list(range(1, most + 1))
    span = 1 - soundness, completeness
    fits = [_fit(k, n, many, span, seed) for many in tried]
    _, prior, accepts = min(fits, key=lambda fit: _bic(fit[0], len(fit[1]), len(k)))
    success = np.clip((accepts - span[0]) / (span[1] - span[0]), 0.0, 1.0)
    order = np.argsort(-success, kind="stable")
    shares = prior[order] / prior.sum()
    return ImperfectVerifier(
        tuple(success[order].tolist()), completeness, soundness, tuple(shares.tolist())
    )


def _verdicts(name: str, said: Iterable[bool | None]) -> NDArray[np.bool_]:
    found = list(said)
    if any(each is None for each in found):
        raise ArgumentError(
            f"{name}: no verdict on candidate {found.index(None)}, which is neither right nor "
            "wrong; leave such candidates out, or say what they are"
        )
    return np.array(found, dtype=bool)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _counts(accepted: ArrayLike, draws: ArrayLike) -> tuple[Floats, Floats]:
    k = checks.numbers(accepted=accepted)
    if k.ndim != 1 or not len(k):
        raise ArgumentError("accepted: one axis, [P], at least one problem")
    n = checks.numbers(draws=draws)
    if n.shape not in ((), k.shape):
        raise ArgumentError(f"draws: one number for all, or {len(k)} of them")
    n = np.broadcast_to(n, k.shape).astype(np.float64)
    if (n < 1).any() or (n != np.round(n)).any():
        raise ArgumentError("draws: whole numbers, 1 or more")
    if (k < 0).any() or (k > n).any() or (k != np.round(k)).any():
        raise ArgumentError("accepted: whole numbers, from 0 to draws")
    return k, n


def _bic(log_likelihood: float, types: int, problems: int) -> float:
    return (2 * types - 1) * math.log(problems) - 2 * log_likelihood


def _fit(
    k: Floats, n: Floats, types: int, span: tuple[float, float], seed: int
) -> tuple[float, Floats, Floats]:
    """Log-likelihood (without binomial coefficients), priors, chances to be accepted."""
    share = np.clip(k / n, *span)
    pairs, times = np.unique(np.stack([k, n]), axis=1, return_counts=True)
    found = []
    for start in range(_STARTS):
        if start == 0:
            accepts = np.quantile(share, (np.arange(types) + 0.5) / types)
        else:
            accepts = generator(seed, "types", types, start).uniform(*span, types)
        # Two types in one place would stay there; at an end a type may rule out what was seen.
        inside = 1e-3 * (span[1] - span[0])
        accepts = accepts + inside * np.arange(types)
        accepts = np.clip(accepts, span[0] + inside, span[1] - inside)
        found.append(_climb(pairs[0], pairs[1], times, accepts, span))
    return max(found, key=lambda fit: fit[0])


def _climb(
    k: Floats, n: Floats, times: NDArray[np.int64], accepts: Floats, span: tuple[float, float]
) -> tuple[float, Floats, Floats]:
    """Expectation and maximisation over counts (k, n) that were seen `times` times."""
    prior, before = np.full(len(accepts), 1 / len(accepts)), -math.inf
    for _ in range(_ROUNDS):
        with np.errstate(divide="ignore"):
            logs = np.log(prior) + xlogy(k[:, None], accepts)  # [P, types]
        logs = logs + xlog1py((n - k)[:, None], -accepts)
        totals = logsumexp(logs, axis=1)
        now = float(times @ totals)
        if now - before < _TOLERANCE * max(1.0, abs(now)):
            break
        before = now
        shares = np.exp(logs - totals[:, None]) * times[:, None]
        prior = shares.sum(axis=0) / times.sum()
        # The likelihood of one chance has one peak: the nearest point of the span is its best.
        weight = np.maximum(shares.T @ n, 1e-300)
        accepts = np.clip(shares.T @ k / weight, *span)
    return before, prior, accepts
