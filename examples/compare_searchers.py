"""What search is worth: every searcher at about equal numbers of samples.

Runs the program of `search_gain.py` on held-out problems of the three line tasks with the embedded
pair `tiny-lines`, every searcher at the cost of 4, 16 and 64 samples a problem. Prints a table,
says how many samples best-of-N and beam search need for the accuracy of SMC, with an interval over
problems, and draws accuracy against tokens. Needs the extras `plots` and `cluster`. What a worse
verifier does to them is `scaling_flaws.py`.

    python examples/compare_searchers.py --problems 20 --records searchers.jsonl --out docs
    python examples/compare_searchers.py --records searchers.jsonl --show
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import search_gain
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from search_gain import Row, keep, pooled, records

from ppl import searchers as s
from ppl.study.intervals import wilson
from ppl.tasks.lines import LINE_TASKS, held_out_problems

STEPS = 8  # of a solution, about

# Settings whose cost is about that of n samples.
SEARCHERS: dict[str, Callable[[int], s.Searcher]] = {
    "BestOfN": s.BestOfN,
    "SMC": s.SMC,
    "ParticleFilter": s.ParticleFilter,
    "ParticleGibbs": lambda n: s.ParticleGibbs(max(2, n // 4), 4),
    "ParallelTempering": lambda n: s.ParallelTempering(
        max(2, n // 8), 4, inverse_temperatures=(1.0, 0.5)
    ),
    "ResampleMove": lambda n: s.ResampleMove(max(1, n // 2)),
    "SMCSteering": lambda n: s.SMCSteering(max(1, n // 2), 2),
    "BeamSearch": lambda n: s.BeamSearch(max(1, n // 4), 4),
    "StochasticBeamSearch": lambda n: s.StochasticBeamSearch(max(1, n // 4), 4),
    "LookaheadSearch": lambda n: s.LookaheadSearch(max(1, n // 8), 4),
    "DVTS": lambda n: s.DVTS(max(1, n // 4), 4),
    "REBASE": lambda n: s.REBASE(n, 0.2),
    "RolloverBudgetForcing": lambda n: s.RolloverBudgetForcing(STEPS * n, 4, "parent"),
    "BestFirst": lambda n: s.BestFirst(STEPS * n // 4, 4),
    "MultiPerspective": lambda n: s.MultiPerspective(STEPS * n // 4, 4),
    "AStar": lambda n: s.AStar(STEPS * n // 4, 4),
    "MCTS": s.MCTS,
    "GumbelMCTS": s.GumbelMCTS,
    "ABMCTSA": lambda n: s.ABMCTSA(STEPS * n),
    "ABMCTSM": lambda n: s.ABMCTSM(STEPS * n),
    "RAIN": lambda n: s.RAIN(math.isqrt(n), max(1, math.isqrt(n) // 2), math.isqrt(n)),
    "PhiDecoding": lambda n: s.PhiDecoding(max(1, math.isqrt(n) // 2), max(2, math.isqrt(n) - 3)),
}
BUDGETS = (4, 16, 64)


def measure(task: str, name: str, n: int, count: int, seed: int) -> Row:
    """One searcher at one budget on the problems of a task."""
    lm, prm = search_gain.load()
    for engine in (lm.engine, prm.engine):
        engine.pool.clear()
    chosen = held_out_problems(task, count, seed)
    return search_gain.run(task, name, n, chosen, lm, prm, SEARCHERS[name](n))


def show(rows: Sequence[Row], console: Console) -> None:
    """One line a searcher and budget: accuracies with 95% Wilson intervals, and costs."""
    table = Table(
        title=f"{len(rows[0].best)} held-out problems, tiny-lines", box=SIMPLE_HEAD, pad_edge=False
    )
    for i, heading in enumerate(
        ("searcher", "N", "best", "95% int.", "vote", "95% int.", "LM tok", "PRM tok", "s")
    ):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        cells = [row.searcher, str(row.n)]
        for rights in (row.best, row.vote):
            low, high = wilson(sum(rights), len(rights))
            cells += [f"{sum(rights) / len(rights):.0%}", f"{low:.0%}-{high:.0%}"]
        each = [f"{tokens / len(row.best):,.0f}" for tokens in (row.lm_tokens, row.prm_tokens)]
        table.add_row(*cells, *each, f"{row.seconds:.1f}")
    console.print(table)


def samples_needed(points: Sequence[tuple[int, float]], accuracy: float) -> float:
    """N at which an accuracy is reached, between measured `(N, accuracy)` on a log scale.

    Infinity if it is not reached, the smallest budget measured if that suffices.
    """
    points = sorted(points)
    if points[0][1] >= accuracy:
        return points[0][0]
    for (n, below), (m, above) in itertools.pairwise(points):
        if above >= accuracy:
            share = (accuracy - below) / (above - below)
            return float(np.exp(np.log(n) + share * np.log(m / n)))
    return float("inf")


def savings(rows: Sequence[Row], n: int, other: str, seed: int = 0) -> tuple[float, float, float]:
    """How many samples another searcher needs for the vote of SMC with `n`: the estimate and a 95%
    interval, by a bootstrap over problems that are drawn for both at once."""
    smc = np.array(next(r.vote for r in rows if (r.searcher, r.n) == ("SMC", n)), dtype=float)
    theirs = {r.n: np.array(r.vote, dtype=float) for r in rows if r.searcher == other}

    def needed(which: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        points = [(m, float(rights[which].mean())) for m, rights in theirs.items()]
        return samples_needed(points, float(smc[which].mean()))

    rng = np.random.default_rng(seed)
    draws = [needed(rng.integers(len(smc), size=len(smc))) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    return needed(np.arange(len(smc))), float(low), float(high)


def say_savings(rows: Sequence[Row], console: Console) -> None:
    """Prints what others need for what SMC reaches, at each of its budgets."""
    budgets = sorted({row.n for row in rows})

    def said(n: float) -> str:
        return f"more than {max(budgets)}" if math.isinf(n) else f"{n:.0f}"

    for n in budgets:
        for other in ("BestOfN", "BeamSearch"):
            needed, low, high = savings(rows, n, other)
            console.print(
                f"for the vote of SMC({n}), {other} needs {said(needed)} samples "
                f"[{said(low)}, {said(high)}]"
            )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of the vote and of the best answer against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    main = ("BestOfN", "SMC", "BeamSearch", "REBASE", "MCTS")
    colours = {name: ("black", "C0", "C1", "C3", "C2")[i] for i, name in enumerate(main)}
    others = 0
    for name in dict.fromkeys(row.searcher for row in rows):
        if name in main:  # as in search-gain.png, and no colour twice
            style = {"color": colours[name], "marker": "o", "linewidth": 2.5, "zorder": 3}
        else:
            style = {"color": f"C{4 + others % 6}", "marker": "s^D"[others // 6], "linewidth": 0.8}
            style |= {"alpha": 0.6, "markersize": 4}
            others += 1
        mine = [row for row in rows if row.searcher == name]
        tokens = [row.lm_tokens / len(row.best) for row in mine]
        for axes, rights in zip(panels, ("vote", "best"), strict=True):
            shares = [sum(getattr(row, rights)) / len(row.best) for row in mine]
            axes.plot(tokens, shares, label=name, **style)
    for axes, title in zip(panels, ("vote()", "best"), strict=True):
        axes.set(xscale="log", xlabel="LM tokens per problem", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("problems solved")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20, help="held-out problems a task")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    rows = records(args.records)
    known = {(row.task, row.searcher, row.n) for row in rows}
    jobs = [
        (task, name, n, args.problems, args.seed)
        for n in sorted(args.budgets, reverse=True)  # the longest first
        for task in LINE_TASKS
        for name in args.searchers
        if (task, name, n) not in known and not args.show
    ]
    for _, row in search_gain.spread(measure, jobs, args.workers):
        keep(row, args.records)
        rows.append(row)
    order = {name: i for i, name in enumerate([*LINE_TASKS, *SEARCHERS])}
    rows.sort(key=lambda row: (order[row.searcher], row.n, order[row.task]))
    together = pooled(rows)
    console = Console(width=100)
    show(together, console)
    if {"SMC", "BestOfN", "BeamSearch"} <= {row.searcher for row in together}:
        say_savings(together, console)
    draw(together, args.out / "compare-searchers.png")
    return rows


if __name__ == "__main__":
    main()
