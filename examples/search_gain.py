"""The main job: one program, five searchers, equal budgets, long problems.

Runs the program `solve` on held-out problems of the three line tasks (chain arithmetic, eight
queens, mini sudoku) with the embedded pair `tiny-lines`, for every searcher and number of
completions. Prints the share of problems whose answer is right, by task, with 95% Wilson intervals;
by the best answer and by the vote; tokens of both models; the paired difference from best-of-N with
as many completions, and the p-value of the exact McNemar test. Writes `search-gain.png` and
`genealogy.png`.

    python examples/search_gain.py --problems 67
    python examples/search_gain.py --records examples/records/search-gain.jsonl --show

The second command prints the table again from the records of a run. Every searcher at every budget
on a task is a job of its own; two processes share them. With `--records` a line for each is kept,
and a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pyro
import torch
from accuracy_vs_budget import SEARCHERS as COMMON
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from whole_lines import cut_torn

import ppl
from ppl.posterior.pictures import draw_genealogy
from ppl.searchers import REBASE, SMC, Searcher
from ppl.study.intervals import mcnemar, wilson
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems
from ppl.verifiers import PRM

R = TypeVar("R")

SEARCHERS: dict[str, Callable[[int], Searcher]] = {**COMMON, "REBASE": REBASE}
BUDGETS = (1, 4, 16, 64)
MOST = {"BeamSearch": 16, "MCTS": 16, "REBASE": 16}  # 64 for the others: what do more samples buy?
KV_BYTES = 1 << 28
TOGETHER = 1024  # completions that run side by side: their keys and values fit KV_BYTES


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
    count: int,
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
    searchers: Sequence[str] = tuple(SEARCHERS),
    workers: int = 1,
    kept: Path | None = None,
) -> list[Row]:
    """Runs everything that is not kept in a file yet; a row a task, searcher and budget."""
    jobs = [
        (task, name, n, count, seed)
        for task in LINE_TASKS
        for name in searchers
        for n in budgets
        if n <= MOST.get(name, n)
    ]
    found = {(row.task, row.searcher, row.n): row for row in (records(kept) if kept else ())}
    if others := {len(row.best) for row in found.values()} - {count}:
        raise SystemExit(f"{kept} has rows of {others.pop()} problems a task, not of {count}")
    # The longest first, so that no process is left alone with one at the end.
    missing = sorted((job for job in jobs if job[:3] not in found), key=lambda job: -job[2])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        work = bar.add_task("searching", total=sum(job[2] for job in missing))
        for _, row in spread(measured, missing, workers):
            found[row.task, row.searcher, row.n] = row
            if kept:
                keep(row, kept)
            bar.update(work, description=f"{row.searcher} N={row.n}", advance=row.n)
    return [found[job[:3]] for job in jobs]


def records(path: Path) -> list[Row]:
    """What has been measured; a last line that was cut off does not count."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [Row(**{**r, "best": tuple(r["best"]), "vote": tuple(r["vote"])}) for r in rows]


def keep(row: Row, path: Path) -> None:
    """Appends what was measured to a file; a last line that was cut off is taken away."""
    cut_torn(path)
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def spread(
    work: Callable[..., R], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, R]]:
    """What `work(*job)` returns, with the job's number, as they are done.

    Each of so many processes has the embedded pair and a share of the cores.
    """
    if workers == 1:
        yield from ((i, work(*job)) for i, job in enumerate(jobs))
        return
    fresh = get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, fresh, initializer=load, initargs=(threads,)) as pool:
        futures = {pool.submit(work, *job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()


_pair: tuple[ppl.HFModel, PRM] | None = None


def load(threads: int | None = None) -> tuple[ppl.HFModel, PRM]:
    """The embedded pair, once a process."""
    global _pair  # noqa: PLW0603
    if threads is not None:
        torch.set_num_threads(threads)
    if _pair is None:
        lm = ppl.load("tiny-lines", kv_bytes=KV_BYTES)
        _pair = lm, PRM.load("tiny-lines", kv_bytes=KV_BYTES)
    return _pair


def measured(task: str, name: str, n: int, count: int, seed: int) -> Row:
    """One searcher with one budget on all problems of a task."""
    lm, prm = load()
    for engine in (lm.engine, prm.engine):
        engine.pool.clear()  # nobody profits from what another computed
    return run(task, name, n, held_out_problems(task, count, seed), lm, prm)


def run(
    task: str,
    name: str,
    n: int,
    chosen: Sequence[LineProblem],
    lm: ppl.LanguageModel,
    prm: ppl.Verifier,
    searcher: Searcher | None = None,
) -> Row:
    """One searcher on all problems of a task; None: the one of this name."""
    searcher = searcher or SEARCHERS[name](n)
    began = time.perf_counter()
    done = in_parts(searcher, n, [(problem, lm, prm) for problem in chosen])
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


def in_parts(
    searcher: Searcher,
    n: int,
    arguments: Sequence[Any],
    program: Callable[..., Any] = solve,
    *,
    first: int = 0,
) -> list[ppl.Posterior | ppl.PPLError]:
    """Searches a program with each of the arguments, `TOGETHER` completions side by side; their
    seeds count up from `first`."""
    done: list[ppl.Posterior | ppl.PPLError] = []
    size = max(1, TOGETHER // n)
    for at in range(0, len(arguments), size):
        some = arguments[at : at + size]
        done += searcher.run_many(program, some, seed=range(first + at, first + at + len(some)))
    return done


def ordered(rows: Sequence[Row]) -> list[Row]:
    """As `measure` has them: by task, searcher and budget."""
    place = {name: i for i, name in enumerate([*LINE_TASKS, *SEARCHERS])}
    return sorted(rows, key=lambda row: (place[row.task], place[row.searcher], row.n))


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
    return (gained - lost) / len(row.best), mcnemar(gained, lost)


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table, and what fewer particles do against more samples."""
    count = len(rows[0].best)
    title = f"held-out problems solved, {count} a task; tiny-lines (CPU, float32)"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("searcher", "N", *LINE_TASKS, "all", "95% int.", "vote", "to BestOfN", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("LM tok", "PRM tok", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    by_task = {(r.searcher, r.n, r.task): f"{100 * r.accuracy:.0f}%" for r in rows}
    together = {(r.searcher, r.n): r for r in pooled(rows)}
    for (name, n), row in together.items():
        low, high = row.interval
        difference, p = _against(row, together.get(("BestOfN", n)))
        table.add_row(
            name,
            str(n),
            *(by_task[name, n, task] for task in LINE_TASKS),
            f"{100 * row.accuracy:.0f}%",
            f"{100 * low:.0f}-{100 * high:.0f}",
            f"{100 * sum(row.vote) / len(row.vote):.0f}%",
            difference,
            p,
            f"{row.lm_tokens:,}",
            f"{row.prm_tokens:,}",
            f"{row.seconds:.1f}",
        )
    console.print(table)
    for name in ("SMC", "BeamSearch"):
        if (name, 16) in together and ("BestOfN", 64) in together:
            difference, p = _against(together[name, 16], together["BestOfN", 64])
            console.print(f"{name} with 16 against BestOfN with 64: {difference} points, p = {p}")


def _against(row: Row, baseline: Row | None) -> tuple[str, str]:
    if baseline is None or baseline is row:
        return "", ""
    difference, p = paired(row, baseline)
    return f"{100 * difference:+.0f}", f"{p:.3f}"


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


def draw_search(path: Path) -> None:
    """The genealogy of one search: which particles went on, and which were given up."""
    lm, prm = load()
    problem = held_out_problems("chain", 1, seed=3)[0]
    posterior = SMC(16).run(solve, problem, lm, prm, seed=0)
    draw_genealogy(posterior, path)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=67, help="held-out problems a task")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), metavar="N")
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--records", type=Path, help="JSON lines, appended to")
    parser.add_argument("--show", action="store_true", help="measure nothing, only show records")
    args = parser.parse_args(argv)
    if args.show:
        if args.records is None:
            parser.error("--show needs --records")
        rows = ordered(records(args.records))
        if not rows:
            parser.error(f"{args.records} has no record")
        show(rows, Console(width=110))
        draw([*rows, *pooled(rows)], args.out / "search-gain.png")
        return rows
    began = time.perf_counter()
    rows = measure(
        args.problems, args.budgets, args.seed, args.searchers, args.workers, args.records
    )
    show(rows, Console(width=110))
    draw([*rows, *pooled(rows)], args.out / "search-gain.png")
    draw_search(args.out / "genealogy.png")
    print(f"wrote {args.out / 'search-gain.png'} and {args.out / 'genealogy.png'}")
    print(f"{time.perf_counter() - began:.0f} s")
    return rows


if __name__ == "__main__":
    main()
