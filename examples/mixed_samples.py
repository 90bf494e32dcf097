"""Which samples of which configuration? A mix chosen on half of the problems (OSCA, 2410.22480).

16 samples of 120 held-out problems of the line tasks under each of eight configurations: four
temperatures, with all tokens or the most likely of 80%. On one half of the problems the mix of N
samples of highest coverage is chosen, and the best single configuration; on the other half both are
measured: coverage (some sample is right, without bias) and the vote, which has to find it. Halves
change places, and the mean is printed.

    python examples/mixed_samples.py                          # from the records that are kept
    python examples/mixed_samples.py --runs runs/mix          # from a study's folder
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppl.allocate import mix, mix_coverage
from ppl.decide.seen import classes_of
from ppl.language.randomness import key
from ppl.study.report import read

RECORDS = Path(__file__).parent / "records" / "mixed-samples.json.gz"
TEMPERATURES, TOP_PS = (0.3, 0.6, 1.0, 1.3), (1.0, 0.8)
STUDY = """\
models = ["tiny-lines"]
searchers = ["BestOfN(16)"]
[tasks]
chain = {load = "lines/chain", n = 40}
queens = {load = "lines/queens", n = 40}
sudoku = {load = "lines/sudoku", n = 40}
"""
SIZES = (2, 4, 8, 16)
ORDERS = 25  # random draws of a mix from the samples, for its vote


@dataclass(frozen=True, eq=False)
class Samples:
    """All samples of all problems.

    Attributes:
        configurations: their names.
        problems: their names.
        classes: `[P, J, n]` class of each answer, equal across configurations; -1 without one.
        right: of each problem, the classes that are right.
    """

    configurations: tuple[str, ...]
    problems: tuple[str, ...]
    classes: NDArray[np.int64]
    right: tuple[frozenset[int], ...]

    @property
    def hits(self) -> NDArray[np.int64]:
        """`[P, J]` right samples."""
        return np.array(
            [
                [sum(c in right for c in own) for own in rows]
                for rows, right in zip(self.classes.tolist(), self.right, strict=True)
            ]
        )


def study() -> str:
    """The study's file."""
    parts = [STUDY]
    for temperature in TEMPERATURES:
        for top_p in TOP_PS:
            name = f'[programs."T={temperature} p={top_p}"]'
            told = f"temperature = {temperature}\ntop_p = {top_p}"
            parts.append(f'{name}\nuse = "steps"\n{told}\nverifier = false\n')
    return "\n".join(parts)


def of_runs(folders: Sequence[str]) -> Samples:
    """The candidates of a study with a program for each configuration."""
    runs = read(*folders)
    found: dict[str, dict[str, list[tuple[object, bool]]]] = defaultdict(dict)
    for row in runs.rows:
        pool = runs.candidates[row.cell]
        found[row.problem][row.program] = [(c.answer, c.right is True) for c in pool]
    names = tuple(dict.fromkeys(row.program for row in runs.rows))
    classes, right = [], []
    for by in found.values():
        answers = [answer for name in names for answer, _ in by[name]]
        truths = [truth for name in names for _, truth in by[name]]
        (numbers,) = classes_of([answers])
        right.append(frozenset(c for c, truth in zip(numbers, truths, strict=True) if truth))
        classes.append(np.array(numbers).reshape(len(names), -1))
    return Samples(names, tuple(found), np.array(classes), tuple(right))


def keep(samples: Samples, path: Path) -> None:
    """As one compressed object."""
    text = json.dumps(
        {
            "configurations": samples.configurations,
            "problems": samples.problems,
            "classes": samples.classes.tolist(),
            "right": [sorted(own) for own in samples.right],
        }
    )
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def kept(path: Path) -> Samples:
    """What `keep` wrote."""
    said = json.loads(gzip.decompress(path.read_bytes()))
    right = tuple(frozenset(own) for own in said["right"])
    names, problems = tuple(said["configurations"]), tuple(said["problems"])
    return Samples(names, problems, np.array(said["classes"]), right)


def vote(samples: Samples, problem: int, counts: Sequence[int], rng: np.random.Generator) -> float:
    """The chance that the vote of such a mix is right; ties by their share."""
    rows, right, outcomes = samples.classes[problem], samples.right[problem], []
    asked = [(j, n) for j, n in enumerate(counts) if n]
    for _ in range(ORDERS):
        drawn = np.concatenate([rng.permutation(rows[j])[:n] for j, n in asked])
        numbers, sizes = np.unique(drawn[drawn >= 0], return_counts=True)
        top = numbers[sizes == sizes.max(initial=0)].tolist()
        outcomes.append(sum(c in right for c in top) / len(top) if top else 0.0)
    return float(np.mean(outcomes))


@dataclass(frozen=True)
class Measured:
    """Means over the problems that nothing was chosen on: the mix's and the single one's."""

    size: int
    counts: tuple[int, ...]
    single: str
    coverage: float
    single_coverage: float
    vote: float
    single_vote: float
    error: float


def measure(samples: Samples, size: int, seed: int = 0) -> Measured:
    """Two halves, each measured with what the other chose; counts are those of all problems."""
    hits, drawn = samples.hits, samples.classes.shape[2]
    half = np.array([key("half", problem) % 2 for problem in samples.problems])
    rng = np.random.default_rng(seed)
    table = np.empty((len(half), 4))
    for side in (0, 1):
        own, other = np.flatnonzero(half != side), np.flatnonzero(half == side)
        counts = _most(mix(hits[own], size, draws=drawn), drawn)
        best = _single(hits[own], size, drawn)
        table[other, 0] = mix_coverage(counts, hits[other], drawn)
        table[other, 1] = mix_coverage(best, hits[other], drawn)
        for i in other:
            table[i, 2] = vote(samples, int(i), counts, rng)
            table[i, 3] = vote(samples, int(i), best, rng)
    gains = table[:, 0] - table[:, 1]
    best = _single(hits, size, drawn)
    means = table.mean(axis=0).tolist()
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    single = samples.configurations[int(np.argmax(best))]
    return Measured(size, mix(hits, size, draws=drawn), single, *means, error)


def _single(hits: NDArray[np.int64], size: int, drawn: int) -> tuple[int, ...]:
    """All samples with the configuration of highest coverage."""
    many = hits.shape[1]
    choices = [tuple(size * int(i == j) for i in range(many)) for j in range(many)]
    return max(choices, key=lambda counts: float(mix_coverage(counts, hits, drawn).mean()))


def _most(counts: Sequence[int], drawn: int) -> tuple[int, ...]:
    assert max(counts) <= drawn, "more of one configuration than were drawn"
    return tuple(counts)


def main(argv: Sequence[str] | None = None) -> list[Measured]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--runs", nargs="+", metavar="FOLDER", help="in place of what is kept")
    parser.add_argument("--study", action="store_true", help="print the study's file")
    args = parser.parse_args(argv)
    if args.study:
        print(study())
        return []
    samples = of_runs(args.runs) if args.runs else kept(args.records)
    console = Console(width=100)
    table = Table(title="right samples of each configuration", box=SIMPLE_HEAD, pad_edge=False)
    for name in samples.configurations:
        table.add_column(name, justify="right", no_wrap=True)
    drawn = samples.classes.shape[2]
    table.add_row(*(f"{100 * share:.0f}%" for share in samples.hits.mean(axis=0) / drawn))
    console.print(table)
    found = [measure(samples, size) for size in SIZES]
    table = Table(title="on problems of the other half", box=SIMPLE_HEAD, pad_edge=False)
    headings = ("N", "mix", "coverage", "single", "gain", "vote", "single's vote", "single")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for m in found:
        gain = f"{100 * (m.coverage - m.single_coverage):+.1f} ± {100 * m.error:.1f}"
        cells = [f"{100 * m.coverage:.1f}", f"{100 * m.single_coverage:.1f}", gain]
        cells += [f"{100 * m.vote:.1f}", f"{100 * m.single_vote:.1f}", m.single]
        table.add_row(str(m.size), " ".join(map(str, m.counts)), *cells)
    console.print(table)
    return found


if __name__ == "__main__":
    main()
