r"""How many samples of which configuration: OSCA (Zhang et al. 2024, arXiv 2410.22480).

Configurations (models, temperatures, prompts) j solve problem i with chance p_ij. Of N samples, n_j
are drawn with j, so as to solve as many problems as possible:

    maximise over n    mean over i of  1 - prod_j (1 - p_ij)^n_j    with  sum_j c_j n_j <= budget

Where right ones of some draws were counted, (1 - p)^n is estimated without bias by the chance that
n of these draws, without replacement, are all wrong (one minus pass@n). Up to as many samples as
were drawn that is best: the plug-in (1 - c/n)^n undervalues samples of one configuration, most of
all where n is near to what was drawn, and so buys diversity; an average over independent posteriors
of the chances does even more so, as it credits each configuration with luck of its own. Beyond it a
prior is needed. All of these are monotone and submodular: one more sample brings less the more
there are, so that adding the best sample again and again comes within 1 - 1/e of the optimum for
equal costs.

The objective is coverage: with a weak selector it buys diversity that selection cannot use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl.decide.scaling import pass_at_k
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator

Floats = NDArray[np.float64]
_MOST = 200_000  # allocations that "exact" goes through


@checked
def mix(
    success: ArrayLike,
    budget: float,
    cost: ArrayLike = 1.0,
    *,
    draws: ArrayLike | None = None,
    prior: tuple[float, float] | None = None,
    method: Literal["greedy", "climb", "exact"] = "greedy",
    starts: int = 10,
    seed: int = 0,
) -> tuple[int, ...]:
    """Samples of each configuration; `BestOfN(sum(counts), mix=counts)` draws them.

    `"greedy"` adds samples by what they bring for their cost, and by what they bring whatever they
    cost, and takes the better of the two; for equal costs a larger budget then only adds.
    `"climb"` is as published: N random samples, each changed to whatever is strictly better until
    none is; the best of several starts. `"exact"` tries everything.

    Args:
        success: `[P, J]`, chances to be right; with `draws`, how many of them were right.
        budget: in the unit of `cost`; for cost 1 the number of samples.
        cost: of a sample, `[J]`, or one for all.
        draws: `[P, J]`, or one number for all: samples that were counted.
        prior: Beta(a, b) of the chances where they were counted: their posterior means (c + a) /
            (draws + a + b) are used then, and any number of samples may be asked for. None takes
            the estimate without bias, and as many of a configuration as were drawn at most.
        method: how it is found.
        starts, seed: of `"climb"`.

    Raises:
        ArgumentError: shapes that do not fit; a budget below the cheapest sample; `"climb"` with
            unequal costs; too many possibilities for `"exact"`.
    """
    checks.count(starts=starts)
    checks.positive(budget=budget)
    failures, limits = _failures(success, draws, prior)
    many = failures.shape[2]
    prices = checks.numbers(cost=cost)
    if prices.shape not in ((), (many,)) or not (np.isfinite(prices) & (prices > 0)).all():
        raise ArgumentError(f"cost: above zero and finite, one for all or {many} of them")
    prices = np.broadcast_to(prices, many)
    if budget < prices.min() * (1 - 1e-12):
        raise ArgumentError(f"budget={budget!r}: the cheapest sample costs {prices.min():g}")
    if method == "greedy":
        # Gains are rounded, to find equal ones: by relative prices, whatever the unit is.
        each = (prices / prices.min(), np.ones(many))
        found = [_greedy(failures, prices, budget, limits, by) for by in each]
        return max(found, key=lambda counts: _coverage(failures, counts))
    if method == "climb":
        if np.ptp(prices) > 0:
            raise ArgumentError("method='climb' changes one sample for another: equal costs only")
        size = min(int(budget / prices[0] * (1 + 1e-12)), int(min(limits.sum(), 1e9)))
        rng = generator(seed, "mix", size)
        found = [_climb(failures, size, limits, rng) for _ in range(starts)]
        return max(found, key=lambda counts: _coverage(failures, counts))
    return _exact(failures, prices, budget, limits)


@checked
def mix_coverage(counts: Sequence[int], right: ArrayLike, draws: ArrayLike) -> Floats:
    """`[P]`, the chance that such a mix solves each problem, without bias.

    1 - prod_j (1 - pass@n_j), with pass@n_j from the draws of configuration j: use problems that
    the mix was not chosen on.

    Args:
        counts: n_j, none above the draws.
        right: `[P, J]`, right ones.
        draws: `[P, J]`, or one number for all.
    """
    hits = checks.numbers(right=right)
    if hits.ndim != 2 or hits.shape[1] != len(counts):
        raise ArgumentError(f"right: of shape [P, {len(counts)}], one column for each of counts")
    of = _draws(draws, hits)
    for n in counts:
        checks.count(least=0, counts=n)
    if (np.array(counts) > of).any():
        raise ArgumentError(f"counts={tuple(counts)}: more than were drawn")
    missed = [
        math.prod(
            1 - pass_at_k(int(of[i, j]), int(hits[i, j]), n) for j, n in enumerate(counts) if n
        )
        for i in range(len(hits))
    ]
    return 1 - np.array(missed)


def _failures(
    success: ArrayLike, draws: ArrayLike | None, prior: tuple[float, float] | None
) -> tuple[Floats, Floats]:
    """`[3, P, J]` a, b, d: sample n + 1 multiplies the chance of failure by (b + d n) /
    (a + b + d n); d is -1 for draws without replacement. And `[J]`, how many there may be."""
    values = checks.numbers(success=success)
    if values.ndim != 2 or not values.size:
        raise ArgumentError("success: of shape [P, J], problems and configurations")
    endless = np.full(values.shape[1], np.inf)
    if draws is None:
        if ((values < 0) | (values > 1)).any():
            raise ArgumentError(
                "success: chances in [0, 1]; for counts of right samples give draws= as well"
            )
        return np.stack([values, 1 - values, np.zeros_like(values)]), endless
    of = _draws(draws, values)
    if (values < 0).any() or (values > of).any() or (values != np.round(values)).any():
        raise ArgumentError("success: right samples, whole numbers from 0 to draws")
    if prior is None:
        return np.stack([values, of - values, -np.ones_like(values)]), of.min(axis=0)
    if len(prior) != 2:
        raise ArgumentError(f"prior={prior!r}: two numbers, Beta(a, b)")
    for number in prior:
        checks.positive(prior=number)
    chances = (values + prior[0]) / (of + prior[0] + prior[1])
    return np.stack([chances, 1 - chances, np.zeros_like(values)]), endless


def _draws(draws: ArrayLike, like: Floats) -> Floats:
    of = checks.numbers(draws=draws)
    if of.shape not in ((), like.shape):
        raise ArgumentError(f"draws: one number for all, or of shape {list(like.shape)}")
    of = np.broadcast_to(of, like.shape)
    if (of < 1).any() or (of != np.round(of)).any():
        raise ArgumentError("draws: whole numbers, 1 or more")
    return of


def _left(failures: Floats, counts: Sequence[int]) -> Floats:
    """`[P]`: the chance that all of these fail."""
    a, b, d = failures
    left = np.ones(len(a))
    for j, n in enumerate(counts):
        steps = np.arange(n)[:, None] * d[:, j]  # [n, P]
        left *= np.prod(np.maximum(b[:, j] + steps, 0) / (a[:, j] + b[:, j] + steps), axis=0)
    return left


def _coverage(failures: Floats, counts: Sequence[int]) -> float:
    return float(1 - _left(failures, counts).mean())


def _greedy(
    failures: Floats, prices: Floats, budget: float, limits: Floats, by: Floats
) -> tuple[int, ...]:
    """Adds the sample that brings most for `by`, as long as one fits; the first among equals."""
    a, b, d = failures
    counts = np.zeros(len(prices), dtype=np.int64)
    left, free = np.ones(len(a)), budget * (1 + 1e-12)
    while (fits := (prices <= free) & (counts < limits)).any():
        steps = np.where(fits, counts, 0) * d
        gains = left @ (a / (a + b + steps)) / by
        j = int(np.argmax(np.where(fits, np.round(gains, 15), -1.0)))
        left *= np.maximum(b + steps, 0)[:, j] / (a + b + steps)[:, j]
        counts[j] += 1
        free -= prices[j]
    return tuple(counts.tolist())


def _climb(
    failures: Floats, size: int, limits: Floats, rng: np.random.Generator
) -> tuple[int, ...]:
    many = failures.shape[2]
    held = np.repeat(np.arange(many), np.minimum(limits, size).astype(np.int64))
    slots = rng.choice(held, size, replace=False).tolist()
    counts = [slots.count(j) for j in range(many)]
    best, better = _coverage(failures, counts), True
    while better:
        better = False
        for slot, j in itertools.product(range(size), range(many)):
            now = slots[slot]
            if j == now or counts[j] >= limits[j]:
                continue
            counts[now], counts[j] = counts[now] - 1, counts[j] + 1
            value = _coverage(failures, counts)
            if value > best + 1e-12:
                best, slots[slot], better = value, j, True
            else:
                counts[now], counts[j] = counts[now] + 1, counts[j] - 1
    return tuple(counts)


def _exact(failures: Floats, prices: Floats, budget: float, limits: Floats) -> tuple[int, ...]:
    most = [
        int(min(budget / price * (1 + 1e-12), limit))
        for price, limit in zip(prices, limits, strict=True)
    ]
    if (size := math.prod(m + 1 for m in most)) > _MOST:
        raise ArgumentError(f"method='exact': {size:,} possibilities, more than {_MOST:,}")
    return max(
        (
            counts
            for counts in itertools.product(*(range(m + 1) for m in most))
            if np.dot(counts, prices) <= budget * (1 + 1e-12)
        ),
        key=lambda counts: _coverage(failures, counts),
    )
