"""What search is worth: every searcher at equal numbers of samples, and with worse verifiers.

Runs the program of `accuracy_vs_budget.py` on held-out problems of both embedded tasks: first every
searcher at the cost of 4, 16 and 64 samples a problem, then the main ones at 16 while the reward
model gets worse (Gaussian noise on its log-odds). Prints two tables, says how many samples one
method needs for another's accuracy, and draws both. Needs the extras `tasks`, `plots`, `cluster`.

    python examples/compare_searchers.py --problems 100 --out docs
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy_vs_budget import Row, run
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import ppl
from ppl import searchers as s
from ppl.tasks import TASKS, Judge, problems
from ppl.verifiers import PRM, LogitNoise

# Settings whose cost is about that of n samples; a solution has about four steps.
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
    "RolloverBudgetForcing": lambda n: s.RolloverBudgetForcing(4 * n, 4, "parent"),
    "BestFirst": lambda n: s.BestFirst(n, 4),
    "MultiPerspective": lambda n: s.MultiPerspective(n, 4),
    "AStar": lambda n: s.AStar(n, 4),
    "MCTS": s.MCTS,
    "GumbelMCTS": s.GumbelMCTS,
    "ABMCTSA": lambda n: s.ABMCTSA(4 * n),
    "ABMCTSM": lambda n: s.ABMCTSM(4 * n),
    "RAIN": lambda n: s.RAIN(math.isqrt(n), max(1, math.isqrt(n) // 2), math.isqrt(n)),
    "PhiDecoding": lambda n: s.PhiDecoding(max(1, math.isqrt(n) // 2), max(2, math.isqrt(n) - 3)),
}
BUDGETS = (4, 16, 64)
NOISY = ("BestOfN", "SMC", "BeamSearch", "MCTS")
NOISE = (0.0, 1.0, 2.0, 4.0)  # standard deviation of the reward model's log-odds
NOISE_BUDGET = 16


def measure(
    names: Sequence[str], budgets: Sequence[int], noises: Sequence[float], count: int, seed: int
) -> list[tuple[float, Row]]:
    """A row for every searcher, budget and noise, with the noise it was measured at."""
    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    chosen = [p for task in TASKS for p in problems(task, count, seed=seed)]
    cases = [(sd, name, n) for sd in noises for name in names for n in budgets]
    rows = []
    with Judge() as judge, Progress(console=Console(stderr=True), transient=True) as bar:
        work = bar.add_task("searching", total=sum(n for *_, n in cases))
        for sd, name, n in cases:
            bar.update(work, description=f"{name} N={n} noise {sd:g}")
            for engine in (lm.engine, prm.engine):
                engine.pool.clear()
            verifier = LogitNoise(prm, sd=sd, seed=seed) if sd else prm
            rows.append(
                (sd, run(name, n, SEARCHERS[name](n), chosen, lm, verifier, seed, judge)[0])
            )
            bar.advance(work, n)
    return rows


def show(rows: Sequence[tuple[float, Row]], title: str, console: Console) -> None:
    """One line per row: accuracies with 95% Wilson intervals, and costs."""
    table = Table(title=title)
    headings = ("searcher", "N", "noise", "best", "95% int.", "vote", "95% int.", "LM tok", "s")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for sd, row in rows:
        cells = [row.searcher, str(row.n), f"{sd:g}"]
        for right in (row.right_best, row.right_vote):
            low, high = row.interval(right)
            cells += [f"{right / row.problems:.1%}", f"{low:.0%}-{high:.0%}"]
        table.add_row(*cells, f"{row.lm_tokens:,}", f"{row.seconds:.1f}")
    console.print(table)


def samples_needed(rows: Sequence[Row], accuracy: float) -> float:
    """N at which the accuracy of the vote is reached, between measured budgets on a log scale.

    Infinity if it is not reached, the smallest budget measured if that suffices.
    """
    points = sorted((row.n, row.right_vote / row.problems) for row in rows)
    if points[0][1] >= accuracy:
        return points[0][0]
    for (n, below), (m, above) in itertools.pairwise(points):
        if above >= accuracy:
            share = (accuracy - below) / (above - below)
            return float(np.exp(np.log(n) + share * np.log(m / n)))
    return float("inf")


def savings(rows: Sequence[Row], console: Console) -> None:
    """How many samples others need for what SMC reaches, at each of its budgets."""
    mine = [row for row in rows if row.searcher == "SMC"]
    for row in mine:
        accuracy = row.right_vote / row.problems
        others = {
            name: samples_needed([r for r in rows if r.searcher == name], accuracy)
            for name in ("BestOfN", "BeamSearch")
        }
        said = ", ".join(
            f"{name} needs {'more than the largest budget' if n == float('inf') else f'{n:.0f}'}"
            for name, n in others.items()
        )
        console.print(f"vote of SMC with {row.n} samples: {accuracy:.1%}; {said}")


def draw(rows: Sequence[Row], noisy: Sequence[tuple[float, Row]], path: Path) -> None:
    """Left: accuracy of the vote by tokens; right: of `best` by noise."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.5), layout="constrained")
    names = list(dict.fromkeys(row.searcher for row in rows))
    colours, markers = plt.get_cmap("tab10"), "os^Dv"
    for i, name in enumerate(names):
        style = {"color": colours(i % 10), "marker": markers[i // 10], "markersize": 5}
        # Those of the right plot stand out in the left one.
        style |= {"linewidth": 2.5} if name in NOISY else {"linewidth": 1, "alpha": 0.8}
        mine = [row for row in rows if row.searcher == name]
        tokens = [row.lm_tokens / row.problems for row in mine]
        share = [row.right_vote / row.problems for row in mine]
        left.plot(tokens, share, label=name, **style)
        worse = [(sd, row) for sd, row in noisy if row.searcher == name]
        if worse:
            share = [row.right_best / row.problems for _, row in worse]
            right.plot([sd for sd, _ in worse], share, label=name, **style)
    left.set(xscale="log", xlabel="LM tokens per problem", ylabel="accuracy of vote()")
    right.set(xlabel="noise on the reward model's log-odds (sd)", ylabel="accuracy of best")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=100, help="problems per task")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as quick for a model this small
    console = Console(width=100)
    plain = measure(list(SEARCHERS), options.budgets, [0.0], options.problems, options.seed)
    show(plain, f"{2 * options.problems} held-out problems, tiny model", console)
    savings([row for _, row in plain], console)
    at = NOISE_BUDGET if NOISE_BUDGET in options.budgets else max(options.budgets)
    noisy = [(sd, row) for sd, row in plain if row.searcher in NOISY and row.n == at]
    noisy += measure(NOISY, [at], NOISE[1:], options.problems, options.seed)
    show(noisy, f"the same with a noisy reward model, N = {at}", console)
    options.out.mkdir(parents=True, exist_ok=True)
    draw([row for _, row in plain], noisy, options.out / "compare-searchers.png")
    console.print(f"wrote {options.out / 'compare-searchers.png'}")


if __name__ == "__main__":
    main()
