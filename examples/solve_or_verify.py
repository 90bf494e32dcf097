"""More solutions, or more verifications of fewer? (Singhi et al. 2025, arXiv 2504.01005)

S solutions of which each is verified V times cost S (1 + lambda V), in units of one solution;
self-consistency has V = 0. A solution's score is the mean of its verdicts, and the answer is the
best one's or the weighted vote. At equal cost: which is better, and how do the best S and V grow?

Two runs. `--scripted`: made-up problems and a verifier of chosen rates, whose law is known. Else
the 64 samples of 120 problems kept in examples/records/stopping.jsonl, by the embedded model, and
verdicts, yes or no, drawn with the embedded reward model's probability of each. Every verdict
counts as one more reading of the solution, which takes 1.44 times the FLOPs of writing it: the
reward model has twice the parameters.

    python examples/solve_or_verify.py
    python examples/solve_or_verify.py --scripted --lam 1
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Floats = NDArray[np.float64]
RECORDS = Path(__file__).parent / "records" / "stopping.jsonl"
VERDICTS = (1, 2, 4, 8, 16, 32)
SUBSETS = 25  # random subsets of a problem's solutions, without replacement; as in the paper's code
RESAMPLED = 400
RULES = ("best", "weighted")


@dataclass(frozen=True)
class Pool:
    """Solutions of one problem.

    Attributes:
        classes: `[n]` class of each answer, -1 without one.
        right: `[n]` whether it is right.
        verdicts: `[n, V]` in [0, 1], or NaN where a verification came to no end. 0 is a verdict.
    """

    classes: NDArray[np.int64]
    right: NDArray[np.bool_]
    verdicts: Floats


@dataclass(frozen=True)
class Surface:
    """Accuracies of problems.

    Attributes:
        sizes: `[S]`, numbers of solutions.
        vote: `[P, S]`, self-consistency.
        verified: by rule, `[P, S, V]`.
    """

    sizes: tuple[int, ...]
    vote: Floats
    verified: dict[str, Floats]


def scores(verdicts: Floats, number: int) -> Floats:
    """`[n]` mean of the first verdicts of each solution. One that has none, as no verification of
    it came to its end, is neither good nor bad: it gets the mean of the others."""
    seen = verdicts[:, :number]
    known = ~np.isnan(seen)
    means = np.where(known, seen, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    any_known = known.any(axis=1)
    if not any_known.any():
        return np.full(len(verdicts), 0.5)
    return np.where(any_known, means, means[any_known].mean())


def accuracy(pool: Pool, sizes: Sequence[int], seed: int) -> tuple[Floats, dict[str, Floats]]:
    """`[S]` of the vote and `[S, V]` of the other rules: means over random subsets. Ties count by
    the share of what ties that is right."""
    rng = np.random.default_rng(seed)
    columns = np.stack([np.ones(len(pool.right)), *(scores(pool.verdicts, v) for v in VERDICTS)], 1)
    orders = rng.permuted(np.tile(np.arange(len(pool.right)), (SUBSETS, 1)), axis=1)
    weighted, best = [], []
    for size in sizes:
        members = orders[:, :size]
        value = columns[members]  # [R, S, 1 + V]
        there = pool.classes[members] >= 0
        weighted.append(_vote(pool, members, value))
        shown = np.where(there[..., None], value, -1.0).round(12)
        top = (shown == shown.max(axis=1, keepdims=True)) & there[..., None]
        hits = (top & pool.right[members][..., None]).sum(axis=1)
        best.append((hits / np.maximum(top.sum(axis=1), 1)).mean(axis=0))
    voted = np.array(weighted)
    return voted[:, 0], {"best": np.array(best)[:, 1:], "weighted": voted[:, 1:]}


def _vote(pool: Pool, members: NDArray[np.int64], value: Floats) -> Floats:
    """`[1 + V]` of the weighted vote; where all weights are zero they say nothing and each counts
    as one."""
    classes = pool.classes[members]
    many = int(pool.classes.max(initial=0)) + 1
    right = np.zeros(many, dtype=bool)
    right[pool.classes[pool.right]] = True
    held = classes[..., None] == np.arange(many)  # [R, S, C]
    totals = np.einsum("rsc,rsv->rcv", held, value)
    silent = totals.max(axis=1, keepdims=True) <= 0
    totals = np.where(silent, held.sum(axis=1)[..., None], totals).round(12)
    top = (totals == totals.max(axis=1, keepdims=True)) & (totals > 0)
    hits = (top & right[:, None]).sum(axis=1)
    return np.asarray((hits / np.maximum(top.sum(axis=1), 1)).mean(axis=0))


def surface(pools: Sequence[Pool], sizes: Sequence[int], seed: int = 0) -> Surface:
    """Accuracies of all problems."""
    found = [accuracy(pool, sizes, seed + i) for i, pool in enumerate(pools)]
    verified = {rule: np.array([by[rule] for _, by in found]) for rule in RULES}
    return Surface(tuple(sizes), np.array([vote for vote, _ in found]), verified)


# -- equal cost ------------------------------------------------------------------------------------


def cost(sizes: Sequence[int], lam: float) -> Floats:
    """`[S, V]`: S (1 + lambda V)."""
    return np.outer(np.array(sizes, dtype=float), 1 + lam * np.array(VERDICTS))


def optimum(mean: Floats, price: Floats, budget: float) -> tuple[int, int]:
    """Where accuracy `[S, V]` is highest within the budget; the cheapest among equals."""
    allowed = np.where(price <= budget * (1 + 1e-9), mean.round(9), -1.0)
    places = np.argwhere(allowed == allowed.max())
    s, v = min(places.tolist(), key=lambda at: float(price[at[0], at[1]]))
    return s, v


def exponents(
    mean: Floats, price: Floats, sizes: Sequence[int], budgets: Sequence[float]
) -> tuple[float, float]:
    """Slopes of log S and of log V of the optimum on the log of the budget, by least squares."""
    best = [optimum(mean, price, budget) for budget in budgets]
    x = np.log(np.array(budgets))
    solutions = np.log([sizes[s] for s, _ in best])
    verifications = np.log([VERDICTS[v] for _, v in best])
    return float(np.polyfit(x, solutions, 1)[0]), float(np.polyfit(x, verifications, 1)[0])


def intervals(
    found: Surface, rule: str, price: Floats, budgets: Sequence[float], seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95% of both exponents, by the bootstrap over problems."""
    many = len(found.vote)
    again = np.random.default_rng(seed).multinomial(many, np.full(many, 1 / many), RESAMPLED) / many
    slopes = [
        exponents(np.tensordot(row, found.verified[rule], 1), price, found.sizes, budgets)
        for row in again
    ]
    low, high = np.quantile(np.array(slopes), [0.025, 0.975], axis=0)
    return (low[0], high[0]), (low[1], high[1])


def match(found: Surface, rule: str, price: Floats) -> float:
    """How many times the cost of the vote's best accuracy it takes to reach that by verifying:
    infinite if nothing does."""
    vote, verified = found.vote.mean(axis=0), found.verified[rule].mean(axis=0)
    at = int(np.argmax(vote.round(9)))
    enough = price[verified >= vote[at] - 1e-9]
    return float(enough.min() / found.sizes[at]) if len(enough) else math.inf


# -- the two runs ----------------------------------------------------------------------------------


def scripted(
    problems: int, solutions: int, rates: tuple[float, float], spread: float, seed: int
) -> list[Pool]:
    """Made-up problems of chance Beta(1, 1.5), with wrong answers of which some are common. A
    solution is accepted with chance TPR or FPR, or, with a spread, a chance of its own around it,
    so that more verdicts do not make the verifier perfect."""
    rng = np.random.default_rng(seed)
    pools = []
    for _ in range(problems):
        right = rng.random(solutions) < rng.beta(1.0, 1.5)
        wrong = 1 + rng.choice(8, solutions, p=rng.dirichlet([0.5] * 8))
        chance = np.where(right, *rates)
        if spread:
            chance = rng.beta(chance / spread, (1 - chance) / spread)
        verdicts = (rng.random((solutions, VERDICTS[-1])) < chance[:, None]).astype(float)
        pools.append(Pool(np.where(right, 0, wrong), right, verdicts))
    return pools


def embedded(path: Path, seed: int) -> list[Pool]:
    """The samples that were kept, and verdicts drawn with what the reward model says of each."""
    rng, pools = np.random.default_rng(seed), []
    for line in path.read_text().splitlines():
        kept = json.loads(line)
        if kept["method"] != "samples":
            continue
        classes = np.array(kept["classes"])
        right = np.array([c >= 0 and kept["right"][c] for c in kept["classes"]])
        chance = np.array(kept["scores"])[:, None]
        verdicts = (rng.random((len(classes), VERDICTS[-1])) < chance).astype(float)
        pools.append(Pool(classes, right, verdicts))
    return pools


def show(found: Surface, lam: float, budgets: Sequence[float], console: Console) -> list[str]:
    """The table and the sentences below it; the latter are returned."""
    price = cost(found.sizes, lam)
    table = Table(title=f"right at equal cost, lambda = {lam:g}", box=SIMPLE_HEAD, pad_edge=False)
    headings = ("cost", "vote", *(c for rule in RULES for c in (rule, "S", "V")))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    vote = found.vote.mean(axis=0)
    for budget in budgets:
        most = max(i for i, size in enumerate(found.sizes) if size <= budget)
        cells = [f"{budget:g}", f"{100 * vote[most]:.1f}"]
        for rule in RULES:
            mean = found.verified[rule].mean(axis=0)
            s, v = optimum(mean, price, budget)
            cells += [f"{100 * mean[s, v]:.1f}", str(found.sizes[s]), str(VERDICTS[v])]
        table.add_row(*cells)
    console.print(table)
    said = []
    for rule in RULES:
        slopes = exponents(found.verified[rule].mean(axis=0), price, found.sizes, budgets)
        ranges = intervals(found, rule, price, budgets)
        told = " and ".join(
            f"{name} ~ C^{slope:.2f} ({low:.2f} to {high:.2f})"
            for name, slope, (low, high) in zip("SV", slopes, ranges, strict=True)
        )
        times = match(found, rule, price)
        reached = f"{times:.1f} times the vote's cost" if times < math.inf else "no cost here"
        said.append(f"{rule}: {told}; reaches the vote's best at {reached}")
    console.print("\n".join(said))
    return said


def draw(found: Surface, lam: float, path: Path) -> None:
    """Accuracy against cost: the vote, and both rules for every V."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    price = cost(found.sizes, lam)
    for axes, rule in zip(panels, RULES, strict=True):
        mean = found.verified[rule].mean(axis=0)
        axes.plot(found.sizes, found.vote.mean(axis=0), "k-o", ms=3, label="vote, V = 0")
        for v, number in enumerate(VERDICTS):
            axes.plot(price[:, v], mean[:, v], "-", lw=1.3, color=f"C{v}", label=f"V = {number}")
        axes.set_xscale("log", base=2)
        axes.set_title(rule, fontsize=10)
        axes.set_xlabel("cost, in solutions")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("right")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def main(argv: Sequence[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scripted", action="store_true", help="made-up problems and verifier")
    parser.add_argument("--problems", type=int, default=200, help="made up")
    parser.add_argument("--rates", type=float, nargs=2, default=(0.8, 0.3), metavar=("TPR", "FPR"))
    parser.add_argument("--spread", type=float, default=0.3, help="of a solution's own rate")
    parser.add_argument("--lam", type=float, default=1.44, help="cost of a verification")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    if args.scripted:
        pools = scripted(args.problems, 256, tuple(args.rates), args.spread, args.seed)
    else:
        pools = embedded(args.records, args.seed)
    most = len(pools[0].right)
    sizes = sorted({round(2 ** (k / 2)) for k in range(2 * int(math.log2(most)) + 1)})
    found = surface(pools, sizes, args.seed)
    least = 1 + args.lam
    # Up to where the solutions at hand are not what limits.
    highest = int(math.log2(most * least))
    budgets = [2.0**k for k in range(math.ceil(math.log2(least)), highest + 1)]
    said = show(found, args.lam, budgets, Console(width=100))
    draw(found, args.lam, args.out / "solve-or-verify.png")
    return said


if __name__ == "__main__":
    main()
