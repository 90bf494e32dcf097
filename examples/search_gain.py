"""What search gains where it can gain: long problems, and a reward model that reads the steps.

Runs one program on held-out problems of the three line tasks (chain arithmetic, eight queens, mini
sudoku) with the embedded pair `tiny-lines`, for every searcher and number of completions. Prints
the share of problems whose answer is right, by the best answer and by the vote, with 95% Wilson
intervals, tokens of both models, and the paired difference from best-of-N at the same N with the
p-value of the exact McNemar test; writes `search-gain.png`.

    python examples/search_gain.py --problems 67
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
from accuracy_vs_budget import SEARCHERS as COMMON
from intervals import wilson
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

import ppl
from ppl.searchers import REBASE, Searcher
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems
from ppl.verifiers import PRM

SEARCHERS: dict[str, Callable[[int], Searcher]] = {**COMMON, "REBASE": REBASE}


@dataclass(frozen=True)
class Row:
    """One searcher at one budget on one task: what was right, problem by problem."""

    task: str
    searcher: str
    n: int
    best: tuple[bool, ...]
    vote: tuple[bool, ...]
    lm_tokens: int
    prm_tokens: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of problems whose best answer is right."""
        return sum(self.best) / len(self.best)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(sum(self.best), len(self.best))


def solve(problem: LineProblem, lm: ppl.LanguageModel, prm: ppl.Verifier) -> str | None:
    """Solve line by line; the reward model is a likelihood of every line."""
    text = lm.chat(problem.question)
    for t in range(16):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=8))
        text = text + step
        pyro.sample(f"ok_{t}", prm(text), obs=True)
        if step.finished:
            return problem.answer(text.text)
    return None


def measure(
    count: int, budgets: Sequence[int], seed: int = 0, searchers: Sequence[str] = tuple(SEARCHERS)
) -> list[Row]:
    """Runs everything; a row a task, searcher and budget."""
    lm, prm = ppl.load("tiny-lines"), PRM.load("tiny-lines")
    rows = []
    for task in LINE_TASKS:
        chosen = held_out_problems(task, count, seed)
        for name in searchers:
            for n in budgets:
                for engine in (lm.engine, prm.engine):
                    engine.pool.clear()  # nobody profits from what another computed
                rows.append(run(task, name, n, chosen, lm, prm))
    return rows


def run(
    task: str,
    name: str,
    n: int,
    chosen: Sequence[LineProblem],
    lm: ppl.LanguageModel,
    prm: ppl.Verifier,
) -> Row:
    """One searcher on all problems of a task."""
    began = time.perf_counter()
    done = SEARCHERS[name](n).run_many(
        solve, [(p, lm, prm) for p in chosen], seed=range(len(chosen))
    )
    posteriors = [d for d in done if isinstance(d, ppl.Posterior)]
    assert len(posteriors) == len(done)  # this reward model never rules a text out for good
    pairs = list(zip(chosen, posteriors, strict=True))
    return Row(
        task,
        name,
        n,
        tuple(p.check(d.best) for p, d in pairs),
        tuple(p.check(d.vote()) for p, d in pairs),
        sum(d.cost.lm_tokens for d in posteriors),
        sum(d.cost.verifier_tokens for d in posteriors),
        time.perf_counter() - began,
    )


def pooled(rows: Sequence[Row]) -> list[Row]:
    """All tasks together."""
    together: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        together.setdefault((row.searcher, row.n), []).append(row)
    return [
        Row(
            "all",
            name,
            n,
            tuple(right for row in part for right in row.best),
            tuple(right for row in part for right in row.vote),
            sum(row.lm_tokens for row in part),
            sum(row.prm_tokens for row in part),
            sum(row.seconds for row in part),
        )
        for (name, n), part in together.items()
    ]


def paired(row: Row, baseline: Row) -> tuple[float, float]:
    """Difference of the best answers' accuracy from a baseline's, and McNemar's exact p-value."""
    gained = sum(a and not b for a, b in zip(row.best, baseline.best, strict=True))
    lost = sum(b and not a for a, b in zip(row.best, baseline.best, strict=True))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return (gained - lost) / len(row.best), float(p)


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table."""
    table = Table(title="held-out problems solved, tiny-lines (CPU, float32)")
    for heading in ("task", "searcher", "N", "best", "95% int.", "vote", "to BestOfN", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("LM tok", "PRM tok", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    samples = {(r.task, r.n): r for r in rows if r.searcher == "BestOfN"}
    for row in rows:
        low, high = row.interval
        baseline = samples.get((row.task, row.n))
        cells = ["", ""]
        if baseline is not None and baseline is not row:
            difference, p = paired(row, baseline)
            cells = [f"{100 * difference:+.0f}", f"{p:.3f}"]
        table.add_row(
            row.task,
            row.searcher,
            str(row.n),
            f"{100 * row.accuracy:.0f}%",
            f"{100 * low:.0f}-{100 * high:.0f}",
            f"{100 * sum(row.vote) / len(row.vote):.0f}%",
            *cells,
            f"{row.lm_tokens:,}",
            f"{row.prm_tokens:,}",
            f"{row.seconds:.1f}",
        )
    console.print(table)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against N, a panel a task and one for all."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    tasks = list(dict.fromkeys(row.task for row in rows))
    budgets = sorted({row.n for row in rows})
    figure = Figure(figsize=(2.6 * len(tasks) + 0.8, 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks, strict=True):
        for shift, name in enumerate(dict.fromkeys(row.searcher for row in rows)):
            mine = [r for r in rows if (r.task, r.searcher) == (task, name)]
            xs = [r.n * 1.04**shift for r in mine]  # apart, so that all intervals can be seen
            lows = [r.accuracy - r.interval[0] for r in mine]
            highs = [r.interval[1] - r.accuracy for r in mine]
            ys, line = [r.accuracy for r in mine], "k--" if name == "BestOfN" else "-"
            axes.errorbar(xs, ys, [lows, highs], fmt=line, marker="o", ms=3, lw=1.4, elinewidth=0.5)
        axes.set_title({"all": "all three tasks"}.get(task, task), fontsize=10)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(budgets))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(map(str, budgets))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.3)
    names = list(dict.fromkeys(row.searcher for row in rows))
    figure.legend(names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    figure.supxlabel("completions per problem", fontsize=9)
    figure.supylabel("problems solved", fontsize=9)
    figure.savefig(path, dpi=140)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=67, help="held-out problems a task")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rows = measure(args.problems, args.budgets, args.seed, args.searchers)
    show([*rows, *pooled(rows)], Console(width=110))
    draw([*rows, *pooled(rows)], args.out / "search-gain.png")
    return rows


if __name__ == "__main__":
    main()
