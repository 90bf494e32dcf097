"""Is a sampler of posteriors right? Two tests for any of them, when no posterior is known.

Draw a truth from the prior and data from the truth; then truth and posterior draws are alike, given
the data. `sbc` compares by the ranks of statistics (simulation-based calibration: Talts et al.
2018, arXiv:1804.06788), `tarp` by distances from reference points (Lemos et al. 2023,
arXiv:2302.03026).

    sampler = draws_of(SMC(30), program)
    sbc(sampler, simulate, {"density": log_density}).p_values
    tarp(sampler, simulate, reference=guess, distance=distance).coverage

Statistics, and reference points, have to depend on the data: those that do not would let the prior
pass for the posterior, which is why they are warned of. The joint log-density is a good statistic.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from ppl.errors import ArgumentError, PPLError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.printed import Printed
from ppl.language.randomness import generator
from ppl.searchers.search import Searcher

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Simulate = Callable[[np.random.Generator], tuple[Any, Any]]
"""A truth from the prior, and data from the truth."""
Sampler = Callable[[Any, int, int], Sequence[Any]]
"""From data, a number of draws and a seed: draws from the posterior, of equal weight."""

_SETS = 2000  # of uniform ranks, that bands and p-values are simulated with


@dataclass(frozen=True)
class Ranks(Printed):
    """What simulation-based calibration found.

    Attributes:
        ranks: by statistic, `[n]` how many of the draws are below the truth, ties at random.
        draws: how many there were.
    """

    ranks: Mapping[str, Ints]
    draws: int

    def ecdf(self, statistic: str) -> Floats:
        """`[draws + 1]` share of simulations with a rank of at most 0, 1, ...; it should grow
        evenly."""
        ranks = self.ranks[statistic]
        counts = np.bincount(ranks, minlength=self.draws + 1)
        return np.cumsum(counts) / len(ranks)

    def band(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """`[draws + 1]` limits that the whole curve of a right sampler keeps with this probability
        (Säilynoja, Bürkner, Vehtari 2022, arXiv:2103.10522)."""
        n = len(next(iter(self.ranks.values())))
        return _band(n, self.draws, level)

    @property
    def p_values(self) -> dict[str, float]:
        """By statistic: how often ranks that are uniform leave as narrow a band."""
        return {name: _p_value(ranks, self.draws) for name, ranks in self.ranks.items()}

    def __str__(self) -> str:
        rows = (f"{name}: p = {p:.3g}" for name, p in self.p_values.items())
        return "; ".join(rows)


@dataclass(frozen=True)
class Coverage(Printed):
    """What TARP found.

    Attributes:
        inside: `[n]` of the draws, how many are nearer to the reference point than the truth is.
        draws: how many there were.
    """

    inside: Ints
    draws: int

    @property
    def levels(self) -> Floats:
        """`[draws + 1]` credibility levels."""
        return (np.arange(self.draws + 1) + 1) / (self.draws + 1)

    @property
    def coverage(self) -> Floats:
        """`[draws + 1]` how often regions of each level cover the truth; it should be the level.
        Above it regions are too wide, below it too narrow, if both halves are."""
        counts = np.bincount(self.inside, minlength=self.draws + 1)
        return np.cumsum(counts) / len(self.inside)

    def band(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """As of `Ranks`."""
        return _band(len(self.inside), self.draws, level)

    @property
    def p_value(self) -> float:
        """How often a right sampler is as far off."""
        return _p_value(self.inside, self.draws)

    def __str__(self) -> str:
        off = float(np.abs(self.coverage - self.levels).max())
        return f"coverage off by {off:.3f} at most, p = {self.p_value:.3g}"


@checked
def draws_of(searcher: Searcher[Any], program: Callable[..., Any]) -> Sampler:
    """Results of a search, drawn by their weights, as a sampler.

    Args:
        searcher: run once for all draws of one data set.
        program: called with the data; a tuple is several arguments.
    """

    def sampler(data: Any, draws: int, seed: int) -> list[Any]:
        given = data if isinstance(data, tuple) else (data,)
        posterior = searcher.run(program, *given, seed=seed)
        rng = generator(seed, "calibration draws")
        samples = posterior.samples
        chosen = rng.choice(len(samples), draws, p=posterior.probabilities)
        return [samples[i].value for i in chosen]

    return sampler


@checked
def sbc(
    sampler: Sampler,
    simulate: Simulate,
    statistics: Mapping[str, Callable[[Any, Any], float]],
    *,
    n: int = 400,
    draws: int = 99,
    seed: int = 0,
) -> Ranks:
    """Simulation-based calibration: ranks of truths among draws from their posteriors.

    Args:
        sampler: what is tested: `draws_of(searcher, program)`, or any function of data, a number of
            draws and a seed.
        simulate: from a generator, a truth of the prior and data.
        statistics: by name, numbers of a value (truth or draw) and the data; the joint log-density
            is one.
        n: truths.
        draws: from each posterior; dependent ones (of a chain) make ranks uneven by themselves.
        seed: of everything.

    Raises:
        PPLError: the sampler gives another number of draws, or a statistic is NaN.

    Warns:
        UserWarning: no statistic depends on the data.
    """
    checks.count(n=n, draws=draws)
    if not statistics:
        raise ValueError("statistics={}: at least one, such as the joint log-density")
    for name, f in statistics.items():
        _check_takes(f"statistics[{name!r}]", f, "a value (a truth or a draw), and the data")
    ranks: dict[str, list[int]] = {name: [] for name in statistics}
    problems = [simulate(generator(seed, "truth", i)) for i in range(n)]
    from_one_value = [partial(f, problems[0][0]) for f in statistics.values()]
    _warn_unless_dependent(from_one_value, [data for _, data in problems], "statistic")
    for i, (truth, data) in enumerate(problems):
        values = _drawn(sampler, data, draws, seed + i)
        rng = generator(seed, "ties", i)
        for name, f in statistics.items():
            own = float(f(truth, data))
            others = [float(f(v, data)) for v in values]
            ranks[name].append(_rank(f"statistics: {name!r}", others, own, rng))
    return Ranks({name: np.array(r) for name, r in ranks.items()}, draws)


@checked
def tarp(
    sampler: Sampler,
    simulate: Simulate,
    *,
    reference: Callable[[Any, np.random.Generator], Any],
    distance: Callable[[Any, Any], float],
    n: int = 400,
    draws: int = 99,
    seed: int = 0,
) -> Coverage:
    """Tests of accuracy with random points: how often balls around a point cover the truth.

    Args:
        sampler, simulate, n, draws, seed: as of `sbc`.
        reference: a point from the data and a generator, such as a guess with noise.
        distance: between a value and a point.

    Raises:
        PPLError: the sampler gives another number of draws, or a distance is NaN.

    Warns:
        UserWarning: reference points do not depend on the data.
    """
    checks.count(n=n, draws=draws)
    _check_takes("reference", reference, "the data, and a NumPy generator")
    _check_takes("distance", distance, "a value (a truth or a draw), and a reference point")
    problems = [simulate(generator(seed, "truth", i)) for i in range(n)]

    def from_one_value(data: Any) -> float:  # with the same noise for all data
        return distance(problems[0][0], reference(data, generator(seed, "reference")))

    _warn_unless_dependent([from_one_value], [data for _, data in problems], "reference point")
    inside = []
    for i, (truth, data) in enumerate(problems):
        values = _drawn(sampler, data, draws, seed + i)
        point = reference(data, generator(seed, "reference", i))
        own = float(distance(truth, point))
        near = [float(distance(v, point)) for v in values]
        inside.append(_rank("distance", near, own, generator(seed, "ties", i)))
    return Coverage(np.array(inside), draws)


def _check_takes(name: str, function: Callable[..., Any], two: str) -> None:
    """Raises ArgumentError for a function that does not take these two arguments."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ArgumentError(f"{name}: a function of two arguments, {two}; {error}") from None
    except ValueError:  # a built-in one, which does not say
        return


def _drawn(sampler: Sampler, data: Any, draws: int, seed: int) -> Sequence[Any]:
    values = sampler(data, draws, seed)
    if len(values) != draws:
        raise PPLError(f"sampler gave {len(values)} draws where {draws} were asked for")
    return values


def _rank(what: str, values: Sequence[float], truth: float, rng: np.random.Generator) -> int:
    """How many are below; those that are equal up to rounding, whatever their unit, are below with
    a rank at random."""
    found = np.asarray(values)
    if math.isnan(truth) or np.isnan(found).any():
        raise PPLError(f"{what} is NaN for a value: it has no rank; make it a number")
    ties = np.isclose(found, truth, rtol=1e-9, atol=0.0)
    return int(((found < truth) & ~ties).sum()) + int(rng.integers(ties.sum() + 1))


def _warn_unless_dependent(
    functions: Sequence[Callable[[Any], float]], data: Sequence[Any], what: str
) -> None:
    few = data[:20]
    for f in functions:
        if len({float(f(each)) for each in few}) > 1:
            return
    if len(few) > 1:
        warnings.warn(
            f"no {what} depends on the data: a sampler that ignores them, and draws from the "
            "prior, would pass. The joint log-density of value and data is one that does",
            UserWarning,
            stacklevel=3,
        )


# -- uniform ranks -------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _widths(n: int, draws: int) -> Floats:
    """Sorted, for sets of n uniform ranks: the least tail probability along their curves."""
    rng = generator("uniform ranks", n, draws)
    sets = rng.integers(draws + 1, size=(_SETS, n))
    return np.sort([_width(ranks, draws) for ranks in sets])


def _width(ranks: Ints, draws: int) -> float:
    counts = np.cumsum(np.bincount(ranks, minlength=draws + 1))[:-1]
    shares = np.arange(1, draws + 1) / (draws + 1)
    low, high = binom.cdf(counts, len(ranks), shares), binom.sf(counts - 1, len(ranks), shares)
    return float(min(1.0, 2 * np.minimum(low, high).min()))


def _p_value(ranks: Ints, draws: int) -> float:
    widths = _widths(len(ranks), draws)
    found = _width(ranks, draws)
    return float((1 + np.searchsorted(widths, found * (1 + 1e-12), side="right")) / (1 + _SETS))


def _band(n: int, draws: int, level: float) -> tuple[Floats, Floats]:
    checks.probability(level=level)
    gamma = float(np.quantile(_widths(n, draws), 1 - level, method="lower"))
    shares = np.arange(1, draws + 2) / (draws + 1)
    low, high = (np.asarray(binom.ppf(q, n, shares)) / n for q in (gamma / 2, 1 - gamma / 2))
    return low, high
