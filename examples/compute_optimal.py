"""Another strategy for easy questions than for hard ones? (Snell et al. 2024, arXiv 2408.03314)

Searchers on 120 held-out problems of the three line tasks, with the embedded reward model as it is
and with noise on every step, and 16 more samples of each problem, drawn with another seed, that say
how difficult it is. For each budget the best strategy of every bin of difficulty is chosen on one
half of the problems and measured on the other. Prints what that gains over the single best strategy
out of fold, what it seems to gain on the problems it was chosen on, and what it gains if the
estimate has to be paid; and draws who is right how often in which bin.

The records that are kept were made by two studies of 332 seconds of processor time in all
(`--study` prints their files); of other runs' folders:

    python examples/compute_optimal.py
    python examples/compute_optimal.py --runs runs/main runs/estimate
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppl.allocate import Policy, Record, by_difficulty, records
from ppl.study.intervals import wilson
from ppl.study.report import read

RECORDS = Path(__file__).parent / "records" / "compute-optimal.jsonl.gz"
BUDGETS = (450.0, 1000.0, 2500.0)  # tokens that are written or read, a question
SHOWN = ("BestOfN(16), vote", "SMC(16), vote", "BeamSearch(4, 4), best")
STUDY = """\
models = ["tiny-lines"]
verifiers = ["tiny-lines"]          # or {{make = "yours:noisy"}}, a LogitNoise of it with sd=2
searchers = {searchers}
seeds = [{seed}]
[tasks]
chain = {{load = "lines/chain", n = 40}}
queens = {{load = "lines/queens", n = 40}}
sudoku = {{load = "lines/sudoku", n = 40}}
"""
SEARCHERS = [f"SMC({n})" for n in (4, 16, 64)] + [f"BeamSearch({n}, 4)" for n in (1, 4, 16)]
SEARCHERS += ["BestOfN(4)", "BestOfN(16)"]


def keep(runs: dict[str, list[Record]], path: Path) -> None:
    """Records as JSON lines: verifier, problem, strategy, right, cost, seed, samples, scores."""
    lines = []
    for name, found in runs.items():
        for r in found:
            drawn, scores = [int(s) for s in r.samples], [round(score, 4) for score in r.scores]
            row = [name, r.problem, r.strategy, r.right, r.cost, r.seed, drawn, scores]
            lines.append(json.dumps(row))
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))


def kept(path: Path) -> dict[str, list[Record]]:
    """What `keep` wrote, by verifier."""
    found: dict[str, list[Record]] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        name, problem, strategy, right, cost, seed, samples, scores = json.loads(line)
        own = found.setdefault(name, [])
        drawn = tuple(map(bool, samples))
        own.append(Record(problem, strategy, right, cost, seed, drawn, tuple(scores)))
    return found


def strategies(found: Sequence[Record]) -> list[str]:
    """Those that were run with another seed than the estimate."""
    last = max(r.seed for r in found)
    return sorted({r.strategy for r in found if r.seed != last})


def policies(found: Sequence[Record], budgets: Sequence[float]) -> dict[str, Policy]:
    """Bins by right samples and by scores, for free and paid, and with a margin."""
    names = strategies(found)
    return {
        "oracle bins, free": by_difficulty(found, names, budgets, paid=False),
        "predicted bins, free": by_difficulty(
            found, names, budgets, difficulty="predicted", paid=False
        ),
        "predicted bins, 4 samples, paid": by_difficulty(
            found, names, budgets, difficulty="predicted", samples=4
        ),
        "the same with a margin of 2": by_difficulty(
            found, names, budgets, difficulty="predicted", samples=4, margin=2.0
        ),
    }


def by_bin(found: Sequence[Record], names: Sequence[str]) -> dict[str, list[tuple[float, int]]]:
    """Right and questions of each oracle bin, from easy to hard."""
    policy = by_difficulty(found, list(names), [1e9], paid=False)
    last = max(r.seed for r in found)
    value = {r.problem: np.mean(r.samples) for r in found if r.seed == last and r.samples}
    place = {q: sum(v < edge for edge in policy.edges) for q, v in value.items()}
    table = {name: [(0.0, 0)] * (len(policy.edges) + 1) for name in names}
    for r in found:
        if r.seed != last and r.strategy in table:
            right, count = table[r.strategy][place[r.problem]]
            table[r.strategy][place[r.problem]] = right + r.right, count + 1
    return table


def draw(runs: dict[str, list[Record]], path: Path) -> None:
    """Accuracy in each bin, a panel a verifier."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3 * len(runs), 3.3), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, runs.items(), strict=True):
        shown = [s for s in SHOWN if s in strategies(found)]
        for i, (strategy, bins) in enumerate(by_bin(found, shown or strategies(found)).items()):
            x = np.arange(len(bins)) + 1 + 0.06 * (i - 1)
            y = np.array([right / count for right, count in bins])
            ends = np.array([wilson(right, count) for right, count in bins]).T
            axes.errorbar(x, y, np.abs(ends - y), fmt="-o", ms=3, capsize=2, label=strategy)
        axes.set_xticks(range(1, 1 + len(bins)))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("bin, from easy to hard")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("right")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Policy]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", nargs="+", metavar="FOLDER", help="of studies, in place of what is kept"
    )
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--study", action="store_true", help="print the files of the studies")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    if args.study:
        print(STUDY.format(searchers=json.dumps(SEARCHERS), seed=0))
        print(STUDY.format(searchers='["BestOfN(16)"]', seed=1))
        return {}
    runs = {"runs": records(read(*args.runs))} if args.runs else kept(args.records)
    found = {name: policies(own, args.budgets) for name, own in runs.items()}
    for name, tables in found.items():
        for title, policy in tables.items():
            print(f"{name}: {title}")
            for at in policy.at:
                print(
                    f"  {at.budget:5.0f} tokens  gain {100 * at.gain:+5.1f} ± "
                    f"{100 * at.error:.1f}  in sample {100 * at.in_sample:+5.1f}  "
                    f"right {100 * at.accuracy:.1f} for {at.cost:.0f}, single "
                    f"{100 * at.fixed_accuracy:.1f} for {at.fixed_cost:.0f}  ({at.fixed})"
                )
    draw(runs, args.out / "compute-optimal.png")
    return found


if __name__ == "__main__":
    main()
