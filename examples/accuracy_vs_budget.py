"""The main job: one program, every searcher, equal budgets, real problems.

Runs the program `solve` on held-out arithmetic and countdown problems with the embedded model and
its process reward model, for every searcher at N = 1, 4 and 16 completions per problem. Prints a
table of accuracies with 95% Wilson intervals and costs, and writes `accuracy-vs-budget.png` and
`genealogy.png`.

    python examples/accuracy_vs_budget.py --problems 50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import ppl
from ppl.posterior.pictures import draw_genealogy
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, Searcher
from ppl.study.intervals import wilson
from ppl.tasks import TASKS, Judge, Problem, problems
from ppl.verifiers import PRM

SEARCHERS: dict[str, Callable[[int], Searcher]] = {
    "BestOfN": BestOfN,
    "SMC": SMC,
    "BeamSearch": lambda n: BeamSearch(round(n**0.5), round(n**0.5)),  # M = sqrt(N), Snell et al.
    "MCTS": MCTS,
}
BUDGETS = (1, 4, 16)


@dataclass(frozen=True)
class Row:
    """One searcher at one budget, over all problems."""

    searcher: str
    n: int
    problems: int
    by_task: dict[str, float]
    right_best: int
    right_vote: int
    lm_tokens: int
    prm_tokens: int
    seconds: float

    def interval(self, right: int) -> tuple[float, float]:
        """95% Wilson interval of the accuracy with so many right."""
        return wilson(right, self.problems)


def solve(question: str, lm: ppl.LanguageModel, prm: ppl.Verifier) -> str | None:
    """Solve step by step; the reward model is a likelihood of every step."""
    text = lm.chat(question)
    for t in range(12):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=40))
        text = text + step
        pyro.sample(f"ok_{t}", prm(text), obs=True)
        if step.finished:
            break
    return text.answer


def measure(count: int, seed: int, out: Path) -> list[Row]:
    """Runs everything; one row per searcher and budget."""
    console = Console()
    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    chosen = [p for task in TASKS for p in problems(task, count, seed=seed)]
    rows = []
    with Judge() as judge, Progress(console=console, transient=True) as bar:
        work = bar.add_task("searching", total=len(SEARCHERS) * sum(BUDGETS))
        for name, make in SEARCHERS.items():
            for n in BUDGETS:
                bar.update(work, description=f"{name} N={n}")
                for engine in (lm.engine, prm.engine):
                    engine.pool.clear()  # nobody profits from what another computed
                row, posteriors = run(name, n, make(n), chosen, lm, prm, seed, judge)
                rows.append(row)
                bar.advance(work, n)
                if name == "SMC" and n == max(BUDGETS):
                    draw_genealogy(max(posteriors, key=eventful), out / "genealogy.png")
    return rows


def run(
    name: str,
    n: int,
    searcher: Searcher,
    chosen: Sequence[Problem],
    lm: ppl.HFModel,
    prm: ppl.Verifier,
    seed: int,
    judge: Judge,
) -> tuple[Row, list[ppl.Posterior]]:
    """One searcher on all problems."""
    began = time.perf_counter()
    seeds = [seed * len(chosen) + i for i in range(len(chosen))]
    results = searcher.run_many(solve, [(p.question, lm, prm) for p in chosen], seed=seeds)
    seconds = time.perf_counter() - began
    posteriors = [r for r in results if isinstance(r, ppl.Posterior)]
    assert len(posteriors) == len(results)  # a PRM never rules a text out for good
    right = judge.score_many(chosen, [r.best for r in posteriors])
    by_task = {
        task: sum(r for r, p in zip(right, chosen, strict=True) if p.meta["task"] == task)
        / sum(p.meta["task"] == task for p in chosen)
        for task in TASKS
    }
    row = Row(
        name,
        n,
        len(chosen),
        by_task,
        sum(right),
        sum(judge.score_many(chosen, [r.vote() for r in posteriors])),
        sum(r.cost.lm_tokens for r in posteriors),
        sum(r.cost.verifier_tokens for r in posteriors),
        seconds,
    )
    return row, posteriors


def eventful(posterior: ppl.Posterior) -> tuple[int, int]:
    """Which genealogy to show: most resampled generations, then most nodes."""
    resampled = sum(h["resampled"] for h in posterior.history)
    return resampled, posterior.genealogy.number_of_nodes()


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table."""
    table = Table(title=f"{rows[0].problems} held-out problems, tiny model (CPU, float32)")
    headings = ("searcher", "N", *TASKS, "both", "95% int.", "vote", "LM tok", "PRM tok", "s")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "searcher" else "right")
    for i, r in enumerate(rows):
        low, high = r.interval(r.right_best)
        table.add_row(
            r.searcher,
            str(r.n),
            *(f"{r.by_task[task]:.0%}" for task in TASKS),
            f"{r.right_best / r.problems:.0%}",
            f"{low:.0%}-{high:.0%}",
            f"{r.right_vote / r.problems:.0%}",
            f"{r.lm_tokens:,}",
            f"{r.prm_tokens:,}",
            f"{r.seconds:.1f}",
            end_section=i + 1 == len(rows) or rows[i + 1].searcher != r.searcher,
        )
    console.print(table)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of `best` and of `vote()` against LM tokens per problem."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rules: tuple[tuple[str, Callable[[Row], int]], ...] = (
        ("best: the answer that the reward model likes most", lambda r: r.right_best),
        ("vote(): the most probable answer", lambda r: r.right_vote),
    )
    for axes, (title, count) in zip(panels, rules, strict=True):
        for shift, name in enumerate(SEARCHERS):
            mine = [r for r in rows if r.searcher == name]
            # Points that coincide are set apart by two percent, so that all can be seen.
            xs = [r.lm_tokens / r.problems * 1.02**shift for r in mine]
            ys = [count(r) / r.problems for r in mine]
            lows, highs = zip(*(r.interval(count(r)) for r in mine), strict=True)
            errors = [
                [y - low for y, low in zip(ys, lows, strict=True)],
                [high - y for y, high in zip(ys, highs, strict=True)],
            ]
            axes.errorbar(
                xs, ys, yerr=errors, marker="o", capsize=2, lw=1.6, elinewidth=0.7, label=name
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([10, 20, 50, 100, 200, 500, 1000]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
        axes.set_xlabel("LM tokens per problem (log scale)")
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"accuracy, {rows[0].problems} held-out problems")
    panels[0].yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=50, help="problems per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the two pictures")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # for matrices this small, threads mostly wait for each other
    options.out.mkdir(parents=True, exist_ok=True)
    rows = measure(options.problems, options.seed, options.out)
    console = Console(width=100)  # the table is as wide as that, also in a pipe
    show(rows, console)
    plot(rows, options.out / "accuracy-vs-budget.png")
    console.print(
        f"wrote {options.out / 'accuracy-vs-budget.png'} and {options.out / 'genealogy.png'}"
    )


if __name__ == "__main__":
    main()
