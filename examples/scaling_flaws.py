"""Where more samples stop helping: searchers under verifiers that err (Yu et al. 2025, 2502.00271).

Beam search, REBASE, SMC and best-of-N on held-out problems of the line tasks at N = 1 to 256, under
the reward model of `tiny-lines` as it is and under three noisy copies: noise at every step, more of
it, and noise that lasts along the steps. The mitigations: survivors that are drawn (stochastic beam
search) or resampled at temperature 2 (SMC), a walk that goes back up (VGB), and another rule for
the answer, the majority of the bests. For every search: whether the best answer, the vote and the
majority of the bests are right, whether any survivor is, how many first lines the survivors descend
from, and how far the best of them got before its first wrong line, by the tasks' exact oracles.

    python examples/scaling_flaws.py --problems 20 --records flaws.jsonl  # what is missing
    python examples/scaling_flaws.py --records examples/records/scaling-flaws.jsonl.gz --show
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import search_gain
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from whole_lines import cut_torn

import ppl
from ppl import decide
from ppl import searchers as s
from ppl.study.intervals import Paired, paired, wilson
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems, right_steps, split_lines
from ppl.verifiers import LogitNoise, Verifier

SEARCHERS: dict[str, Callable[[int], s.Searcher]] = {
    "BestOfN": s.BestOfN,
    "SMC": s.SMC,
    "BeamSearch": lambda n: s.BeamSearch(max(1, n // 4), min(n, 4)),
    "REBASE": s.REBASE,
    "sampled beams": lambda n: s.StochasticBeamSearch(
        max(1, n // 4), min(n, 4), likelihood=0.0, temperature=0.2
    ),
    "tempered SMC": lambda n: s.SMC(n, resampling_temperature=2.0),
    # Steps of the walk, not completions: where it has nothing new to write it costs no tokens.
    "VGB": lambda n: s.VGB(simulations=16 * n + 64, expansions=4),
}
NOISES: dict[str, Callable[[Verifier], Verifier]] = {
    "none": lambda prm: prm,
    "sd 2": lambda prm: LogitNoise(prm, sd=2.0),
    "sd 4": lambda prm: LogitNoise(prm, sd=4.0),
    "sd 4, lasting": lambda prm: LogitNoise(prm, sd=4.0, persistence=0.8),
}
BUDGETS = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Found:
    """One search. `reached`: share of lines before the first wrong one, of the best survivor."""

    task: str
    problem: str
    noise: str
    searcher: str
    n: int
    best: bool
    vote: bool
    bests: bool
    any: bool
    ancestors: int
    reached: float
    lm_tokens: int


def measure(task: str, noise: str, name: str, n: int, have: int, count: int) -> list[Found]:
    """One searcher with one budget under one verifier, on the problems of a task, of which so
    many have been measured."""
    lm, prm = search_gain.load()
    for engine in (lm.engine, prm.engine):
        engine.pool.clear()
    chosen = held_out_problems(task, count, seed=0)[have:]
    arguments = [(problem, lm, NOISES[noise](prm)) for problem in chosen]
    done = search_gain.in_parts(SEARCHERS[name](n), n, arguments, first=have)
    rows = []
    for problem, posterior in zip(chosen, done, strict=True):
        if isinstance(posterior, ppl.PPLError):
            raise posterior
        rows.append(look(problem, posterior, noise, name, n))
    return rows


def look(problem: LineProblem, posterior: ppl.Posterior, noise: str, name: str, n: int) -> Found:
    """What became of the survivors of one search."""
    responses = [_lines(sample) for sample in posterior.samples]
    right = [right_steps(problem, lines) for lines in responses]
    whole = max(map(len, responses), default=0)
    return Found(
        problem.task,
        problem.key,
        noise,
        name,
        n,
        problem.check(posterior.best),
        problem.check(posterior.vote()),
        problem.check(decide.vote(posterior, decide.MajorityOfTheBests())),
        any(problem.check(sample.value) for sample in posterior.samples if sample.finished),
        len({lines[0] for lines in responses if lines}),
        max(right) / whole if whole else 0.0,
        posterior.cost.lm_tokens,
    )


def _lines(sample: ppl.Sample) -> list[str]:
    text = sample.text
    return [] if text is None else split_lines("".join(text.steps))


def records(path: Path) -> list[Found]:
    """What has been measured; a last line that was cut off does not count."""
    if not path.exists():
        return []
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().split("\n")[:-1]
    return [Found(**json.loads(line)) for line in lines]


def share(rows: Iterable[Found], what: str) -> tuple[int, int]:
    """How many of the searches, of how many."""
    values = [bool(getattr(row, what)) for row in rows]
    return sum(values), len(values)


def show(found: Sequence[Found], console: Console) -> None:
    """Accuracy of the best answer and of the vote, right survivors, ancestors; a row a searcher."""
    for noise in dict.fromkeys(row.noise for row in found):
        table = Table(title=f"noise: {noise}", box=SIMPLE_HEAD, pad_edge=False)
        headings = ("searcher", "N", "best", "95% int.", "vote", "bests", "any")
        headings += ("first lines", "reached", "tokens")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for name in dict.fromkeys(row.searcher for row in found):
            for n in sorted({row.n for row in found}):
                rows = [r for r in found if (r.noise, r.searcher, r.n) == (noise, name, n)]
                if not rows:
                    continue
                low, high = wilson(*share(rows, "best"))
                best, vote, bests, some = (
                    f"{100 * share(rows, what)[0] / len(rows):.0f}%"
                    for what in ("best", "vote", "bests", "any")
                )
                table.add_row(
                    name,
                    str(n),
                    best,
                    f"{100 * low:.0f}-{100 * high:.0f}",
                    vote,
                    bests,
                    some,
                    f"{sum(r.ancestors for r in rows) / len(rows):.1f}",
                    f"{100 * sum(r.reached for r in rows) / len(rows):.0f}%",
                    f"{sum(r.lm_tokens for r in rows) / len(rows):,.0f}",
                )
        console.print(table)


def rights(
    found: Sequence[Found], noise: str, name: str, n: int, what: str = "best"
) -> list[float]:
    """Whether each best answer (or vote) is right, in the order of the problems' keys; empty if not
    run."""
    rows = [r for r in found if (r.noise, r.searcher, r.n) == (noise, name, n)]
    return [float(getattr(r, what)) for r in sorted(rows, key=lambda r: (r.task, r.problem))]


def leads(
    found: Sequence[Found], noise: str, name: str, few: int = 4, many: int = 64
) -> tuple[Paired, Paired, Paired] | None:
    """The best answer's lead over best-of-N on the same problems, with few and with many
    completions, and by how much the latter is larger; None if one of them was not run."""
    cells = [rights(found, noise, who, n) for n in (few, many) for who in (name, "BestOfN")]
    if not all(cells):
        return None
    gaps = [[a - b for a, b in zip(*cells[i : i + 2], strict=True)] for i in (0, 2)]
    return paired(*cells[:2]), paired(*cells[2:]), paired(gaps[1], gaps[0])


def show_leads(found: Sequence[Found], console: Console) -> None:
    """Prints the leads over best-of-N: with 4 and 64 completions under each verifier; and, if all
    was run, for every budget under noise."""
    for line in leads_markdown(found):
        console.print(line)
    if {(r.noise, r.searcher, r.n) for r in found} >= set(
        itertools.product(NOISES, SEARCHERS, BUDGETS)
    ):
        for line in crossings_markdown(found):
            console.print(line)


def leads_markdown(found: Sequence[Found]) -> list[str]:
    """Lines of the table of leads in docs/choosing.md, in points."""
    lines = []
    for name in SEARCHERS:
        for noise in NOISES:
            if name != "BestOfN" and (three := leads(found, noise, name)):
                few, many, change = three
                cells = [f"{100 * d.difference:+.0f} (p = {d.p:.3f})" for d in (few, many)]
                moved = f"{100 * change.difference:+.0f}"
                cells.append(f"{moved} [{100 * change.low:+.0f}, {100 * change.high:+.0f}]")
                lines.append(f"| {name} | {noise} | {' | '.join(cells)} |")
    return lines


def crossings(found: Sequence[Found], name: str, what: str) -> list[Paired]:
    """For every budget beyond one sample the lead over best-of-N under a noisy verifier: for each
    problem the mean of all noisy ones, so that problems are independent."""

    def mean(who: str, n: int) -> list[float]:
        cells = [rights(found, noise, who, n, what) for noise in NOISES if noise != "none"]
        return [sum(row) / len(row) for row in zip(*cells, strict=True)]

    return [paired(mean(name, n), mean("BestOfN", n)) for n in BUDGETS[1:]]


def crossings_markdown(found: Sequence[Found]) -> list[str]:
    """Lines of the table of leads under noise in docs/choosing.md, in points with 95% intervals."""
    return [
        f"| {name} | {what} | "
        + " | ".join(
            "{:+d} [{:+d}, {:+d}]".format(
                *(round(100 * x) for x in (lead.difference, lead.low, lead.high))
            )
            for lead in crossings(found, name, what)
        )
        + " |"
        for name in SEARCHERS
        for what in ("best", "vote")
        if name != "BestOfN"
    ]


def markdown(found: Sequence[Found]) -> list[str]:
    """Lines of the table in docs/choosing.md: best / vote / majority of the bests, in percent."""
    lines = []
    for name in SEARCHERS:
        for n in sorted({row.n for row in found}):
            cells = []
            for noise in NOISES:
                rows = [r for r in found if (r.noise, r.searcher, r.n) == (noise, name, n)]
                shares = [share(rows, what) for what in ("best", "vote", "bests")] if rows else []
                cells.append(" / ".join(f"{100 * k / of:.0f}" for k, of in shares))
            if any(cells):
                lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    return lines


def draw(found: Sequence[Found], path: Path) -> None:
    """A panel a verifier: the best answer's accuracy against tokens, and dotted what survives."""
    from matplotlib.figure import Figure

    noises = list(dict.fromkeys(row.noise for row in found))
    names = list(dict.fromkeys(row.searcher for row in found))
    figure = Figure(figsize=(2.9 * len(noises) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, noises, strict=True):
        for i, name in enumerate(names):
            points = [
                (n, [r for r in found if (r.noise, r.searcher, r.n) == (noise, name, n)])
                for n in sorted({row.n for row in found})
            ]
            points = [(n, rows) for n, rows in points if rows]
            tokens = [sum(r.lm_tokens for r in rows) / len(rows) for _, rows in points]
            for what, style in (("best", "-o"), ("any", ":")):
                ys = [share(rows, what)[0] / len(rows) for _, rows in points]
                label = name if what == "best" else None
                axes.plot(tokens, ys, style, color=f"C{i}", ms=3, lw=1.4, label=label)
        axes.set_xscale("log")
        axes.set_title(f"noise: {noise}", fontsize=10)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel("LM tokens per problem", fontsize=9)
    figure.supylabel("best answer right (dotted: any survivor)", fontsize=9)
    figure.savefig(path, dpi=140)


def ranked_first(advantage: float, paths: int) -> float:
    """P(the one valid path of `paths` is ranked first) if it is better by `advantage` standard
    deviations of the scores' Gaussian noise: the integral of phi(z) Phi(z + advantage)^(K-1)."""
    from scipy.integrate import quad
    from scipy.stats import norm

    def density(z: float) -> float:
        return float(norm.pdf(z) * norm.cdf(z + advantage) ** (paths - 1))

    return float(quad(density, -math.inf, math.inf)[0])


def main(argv: Sequence[str] | None = None) -> list[Found]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20, help="held-out problems a task")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), metavar="N")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--searchers", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    found = records(args.records)
    known = Counter((r.task, r.noise, r.searcher, r.n) for r in found)
    jobs = [
        (task, noise, name, n, known[task, noise, name, n], args.problems)
        for n in sorted(args.budgets, reverse=True)  # the longest first
        for task in LINE_TASKS
        for noise in args.noises
        for name in args.searchers
        if known[task, noise, name, n] < args.problems and not args.show
    ]
    if jobs:
        cut_torn(args.records)
        with args.records.open("a") as file:
            for _, rows in search_gain.spread(measure, jobs, args.workers):
                file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
                file.flush()
                found += rows
    order = {name: i for i, name in enumerate([*NOISES, *SEARCHERS])}
    found.sort(key=lambda r: (order[r.noise], order[r.searcher], r.n))
    console = Console(width=100)
    show(found, console)
    show_leads(found, console)
    draw(found, args.out / "scaling-flaws.png")
    return found


if __name__ == "__main__":
    main()
