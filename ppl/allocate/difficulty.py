"""Compute-optimal allocation: another strategy for easy questions than for hard ones.

Snell, Lee, Xu and Kumar 2024 (arXiv 2408.03314): for a budget and a question, the best strategy

    theta*(x, N) = argmax over theta of E[right | x, theta, N]

is taken to depend on the question through its difficulty alone. Questions are put into bins of
equal size by the share of right ones among samples of their own (`"oracle"`) or by the mean of
their samples' final scores (`"predicted"`, which needs no answers), and the strategy that does best
in a bin is used for what falls into it.

What looks like a gain without being one is kept out in three ways:

* the strategy of a bin is chosen on other questions than those it is measured on (out of fold);
* the samples that say how difficult a question is are not those that strategies answered with: a
  question on which best-of-N was lucky looks easy, and best-of-N good at what looks easy;
* these samples are paid: a strategy has to fit into what they leave of the budget, while the single
  best strategy, which needs no estimate, has all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl.allocate.records import Record
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.randomness import key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AtBudget:
    """What allocation brings at one budget.

    Attributes:
        budget: of a question, the estimate of its difficulty included.
        choices: the strategy of each bin, from easy to hard, chosen on all questions.
        fixed: the single strategy that is best on all questions.
        accuracy: of the policy, out of fold.
        fixed_accuracy: of the single strategy, out of fold as well.
        gain: what the policy brings over it, out of fold.
        error: standard error of the gain, over questions.
        in_sample: the gain as it looks on the questions that strategies were chosen on: it is
            never below zero for a free estimate, and measures the leak.
        cost, fixed_cost: means of what a question really took, the estimate included.
    """

    budget: float
    choices: tuple[str, ...]
    fixed: str
    accuracy: float
    fixed_accuracy: float
    gain: float
    error: float
    in_sample: float
    cost: float
    fixed_cost: float


@dataclass(frozen=True)
class Policy:
    """Which strategy for which difficulty and budget.

    Attributes:
        difficulty: what it goes by, the share of right samples or the mean final score.
        edges: values between bins, falling: what is at least `edges[0]` is easiest.
        samples: of a question that its difficulty is estimated from, on average.
        price: their cost on average; 0 if they are free.
        at: what it chooses and brings, by budget.
        questions: that it was fitted to.
    """

    difficulty: Literal["oracle", "predicted"]
    edges: tuple[float, ...]
    samples: float
    price: float
    at: tuple[AtBudget, ...]
    questions: int
    names: tuple[str, ...] = field(repr=False)

    @checked
    def choose(self, value: float, budget: float) -> str:
        """The strategy for a question.

        Args:
            value: the share of right samples, or their mean final score.
            budget: that of the largest fitted budget up to this is taken.

        Raises:
            ArgumentError: the budget is below all that were fitted.
        """
        (checks.probability if self.difficulty == "oracle" else checks.number)(value=value)
        known = [line for line in self.at if line.budget <= budget]
        if not known:
            least = min(line.budget for line in self.at)
            raise ArgumentError(f"budget={budget!r}: the smallest that was fitted is {least:g}")
        return max(known, key=lambda line: line.budget).choices[int(_bins(value, self.edges))]

    @property
    def markdown(self) -> str:
        """A row a budget: choices from easy to hard, accuracies in percent, gain in points."""
        head = "| budget | " + " | ".join(f"bin {i + 1}" for i in range(len(self.edges) + 1))
        lines = [head + " | single best | right | single | gain | in sample | cost |"]
        lines.append("|---" * (len(self.edges) + 8) + "|")
        for line in self.at:
            cells = [f"{line.budget:g}", *line.choices, line.fixed]
            cells += [f"{100 * x:.1f}" for x in (line.accuracy, line.fixed_accuracy)]
            cells += [f"{100 * line.gain:+.1f} ± {100 * line.error:.1f}"]
            cells += [f"{100 * line.in_sample:+.1f}", f"{line.cost:.0f} / {line.fixed_cost:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


class _Table(NamedTuple):
    """`[Q, S]` outcomes and costs, `[Q]` values and prices of the estimate."""

    right: Floats
    cost: Floats
    value: Floats
    price: Floats


@checked
def by_difficulty(
    records: Sequence[Record],
    strategies: Sequence[str],
    budgets: Sequence[float],
    bins: int = 5,
    folds: int = 2,
    *,
    difficulty: Literal["oracle", "predicted"] = "oracle",
    estimate_seed: int | None = None,
    samples: int | None = None,
    paid: bool = True,
    margin: float = 0.0,
    seed: int = 0,
) -> Policy:
    """The best strategy for each bin of difficulty and each budget, and what that brings.

    A strategy is affordable if its mean cost over the questions it is chosen on is at most the
    budget, less the price of the estimate. Among equals the cheaper is taken. Costs nothing but
    arithmetic: no model is asked.

    Args:
        records: of every strategy on every question (several seeds are averaged), and of samples
            with a seed of their own, from which difficulty is estimated.
        strategies: to choose from, as they are called in the records.
        budgets: of a question, in the unit of the records' costs.
        bins: of equal size; fewer where the estimates are equal.
        folds: into how many parts questions are divided.
        difficulty: `"oracle"` by right samples, or `"predicted"` by their scores.
        estimate_seed: of the records whose samples estimate difficulty; by default the largest.
        samples: how many of them, the first; the estimate costs its share. By default all.
        paid: False leaves the estimate out of the costs, as the paper's oracle does.
        margin: a bin has a strategy of its own only if it beats the single one, among those that
            are affordable beside the estimate, by so many standard errors on the bin's questions. 0
            is as published; 1 or 2 forgo small gains and, with few questions, most of the noise.
        seed: of the division into folds.

    Raises:
        ArgumentError: a question lacks a strategy or samples; strategies have been run with the
            estimate's seed only; nothing is affordable at a budget; fewer questions than folds.
    """
    checks.count(bins=bins)
    checks.count(least=2, folds=folds)
    checks.seed(seed=seed)
    checks.nonnegative(margin=margin)
    if samples is not None:
        checks.count(samples=samples)
    if not strategies or len(set(strategies)) < len(strategies):
        raise ArgumentError(f"strategies={shown(list(strategies))}: different ones, one at least")
    if not budgets:
        raise ArgumentError("budgets: none given")
    for budget in budgets:
        checks.positive(budgets=budget)
    if not records:
        raise ArgumentError("records: none given")
    called = sorted({r.strategy for r in records})
    for strategy in strategies:
        if strategy not in called:
            raise ArgumentError(
                f"strategies: no record is of {strategy!r}; there are {', '.join(called[:12])}"
            )
    by = max(r.seed for r in records) if estimate_seed is None else estimate_seed
    problems = sorted({r.problem for r in records})
    if len(problems) < 2 * folds:
        raise ArgumentError(f"folds={folds}: {len(problems)} questions are too few for them")
    table, taken = _table(records, list(strategies), problems, by, difficulty, samples)
    if not paid:
        table = table._replace(price=np.zeros(len(problems)))
    order = sorted(range(len(problems)), key=lambda q: key(seed, "fold", problems[q]))
    fold = np.empty(len(problems), dtype=np.int64)
    fold[order] = np.arange(len(problems)) % folds
    edges = _edges(table.value, bins)
    lines = tuple(
        _line(table, list(strategies), float(budget), bins, fold, edges, margin)
        for budget in sorted(budgets)
    )
    price = float(table.price.mean())
    return Policy(difficulty, edges, taken, price, lines, len(problems), tuple(strategies))


def _table(
    records: Sequence[Record],
    strategies: list[str],
    problems: list[str],
    by: int,
    difficulty: str,
    samples: int | None,
) -> tuple[_Table, float]:
    """The records as arrays, and the mean number of samples behind the estimates."""
    place = {problem: q for q, problem in enumerate(problems)}
    column = {strategy: s for s, strategy in enumerate(strategies)}
    sums = np.zeros((3, len(problems), len(strategies)))
    estimates: dict[str, Record] = {}
    for r in records:
        if r.seed != by and r.strategy in column:
            sums[:, place[r.problem], column[r.strategy]] += (r.right, r.cost, 1.0)
        known = r.samples if difficulty == "oracle" else r.scores
        if r.seed == by and known:
            kept = estimates.get(r.problem)
            if kept is None or len(known) > max(len(kept.samples), len(kept.scores)):
                estimates[r.problem] = r
    missing = np.argwhere(sums[2] == 0)
    if len(missing):
        q, s = missing[0]
        raise ArgumentError(
            f"records: {strategies[s]!r} was not run on {problems[q]} with another seed than {by}, "
            "which is the estimate's: samples that say how difficult a question is must not be "
            "those that it is answered with; run the study with one more seed"
        )
    what = "samples" if difficulty == "oracle" else "scores"
    for problem in problems:
        if problem not in estimates:
            raise ArgumentError(
                f"records: {problem} has no {what} with seed {by}; run BestOfN with that seed, "
                "or name another estimate_seed"
            )
    value, price, taken = [], [], []
    for problem in problems:
        r = estimates[problem]
        own = r.samples if difficulty == "oracle" else r.scores
        if samples is not None and samples > len(own):
            raise ArgumentError(f"samples={samples}: {problem} has {len(own)}")
        k = len(own) if samples is None else samples
        value.append(math.fsum(own[:k]) / k)
        price.append(r.cost * k / len(own))
        taken.append(k)
    arrays = _Table(sums[0] / sums[2], sums[1] / sums[2], np.array(value), np.array(price))
    return arrays, float(np.mean(taken))


def _edges(value: Floats, bins: int) -> tuple[float, ...]:
    """Falling values at which a next bin ends; each bin holds at least one of `value`."""
    at = [i / bins for i in range(1, bins)]
    cuts = np.quantile(value, at, method="higher") if at else np.zeros(0)
    return tuple(sorted({float(c) for c in cuts if c > value.min()}, reverse=True))


def _bins(value: Floats | float, edges: Sequence[float]) -> Ints:
    """The bin of each value, 0 for the easiest."""
    rising = np.array(edges[::-1], dtype=np.float64)
    return np.asarray(len(edges) - np.searchsorted(rising, value, side="right"))


def _line(
    table: _Table,
    strategies: list[str],
    budget: float,
    bins: int,
    fold: Ints,
    edges: tuple[float, ...],
    margin: float,
) -> AtBudget:
    everyone = np.arange(len(fold))
    policy, single = np.empty(len(fold), dtype=np.int64), np.empty(len(fold), dtype=np.int64)
    for k in np.unique(fold):
        train, test = everyone[fold != k], everyone[fold == k]
        # Edges too are those of the training questions: nothing of the others is looked at.
        own = _edges(table.value[train], bins)
        chosen, fixed = _fit(table, strategies, budget, train, own, margin)
        policy[test] = chosen[_bins(table.value[test], own)]
        single[test] = fixed
    adapted, alone = table.right[everyone, policy], table.right[everyone, single]
    gains = adapted - alone
    chosen, fixed = _fit(table, strategies, budget, everyone, edges, margin)
    seen = table.right[everyone, chosen[_bins(table.value, edges)]] - table.right[:, fixed]
    return AtBudget(
        budget,
        tuple(strategies[s] for s in chosen),
        strategies[fixed],
        float(adapted.mean()),
        float(alone.mean()),
        float(gains.mean()),
        float(gains.std(ddof=1) / math.sqrt(len(gains))),
        float(seen.mean()),
        float((table.cost[everyone, policy] + table.price).mean()),
        float(table.cost[everyone, single].mean()),
    )


def _fit(
    table: _Table,
    strategies: list[str],
    budget: float,
    train: Ints,
    edges: tuple[float, ...],
    margin: float,
) -> tuple[Ints, int]:
    """The strategy of every bin, and the single one, by these questions."""
    cost = table.cost[train].mean(axis=0)
    price = float(table.price[train].mean())
    whole, left = cost <= budget + 1e-9, cost <= budget - price + 1e-9
    if not left.any():
        cheapest = int(cost.argmin())
        raise ArgumentError(
            f"budgets: {budget:g} pays for nothing: the estimate of difficulty takes {price:.4g} "
            f"and {strategies[cheapest]!r}, the cheapest, {cost[cheapest]:.4g}; take fewer samples="
        )
    right, where = table.right[train], _bins(table.value[train], edges)
    usual = _best(right, cost, left)
    chosen = [_own(right[where == b], cost, left, usual, margin) for b in range(len(edges) + 1)]
    return np.array(chosen), _best(right, cost, whole)


def _own(
    right: Floats, cost: Floats, affordable: NDArray[np.bool_], usual: int, margin: float
) -> int:
    """The bin's own best strategy, or the usual one if that is not clearly worse."""
    best = _best(right, cost, affordable)
    if not margin:
        return best
    gains = right[:, best] - right[:, usual]
    if len(gains) < 2:
        return usual
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return best if gains.mean() > margin * error else usual


def _best(right: Floats, cost: Floats, affordable: NDArray[np.bool_]) -> int:
    """The affordable strategy that is right most often; of equal ones the cheapest."""
    share = np.where(affordable, np.round(right.mean(axis=0), 12), -1.0)
    return int(np.lexsort((cost, -share))[0])
