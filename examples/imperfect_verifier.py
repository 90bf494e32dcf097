"""Resampling until weak tests accept: no budget leads beyond a ceiling (Stroebl et al. 2411.17501).

Small functions in two cases, `a x + b if x < c else d x - e`, are generated; a writer of known
skill r writes a right program or one with a single mistake (a constant that is off by one, another
operator). The weak suite of a task looks at a few inputs, most of them on one side of c, and so
accepts mistakes on the other; a strong one looks everywhere. All programs are really run, in the
sandbox, each once. Then programs are drawn until the weak suite accepts one, at most K times:

    accuracy -> r c / (r c + (1 - r) (1 - s))        with what the suites say of c and s

and, over all tasks, the value of K attempts with -1 for a wrong program that was accepted and 0 for
none at all: it has a best K, and late acceptances cost more than they bring.

    python examples/imperfect_verifier.py                 # 12 tasks, about 20 seconds
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppl.verifiers import (
    FalsePositives,
    ImperfectVerifier,
    Sandbox,
    UnitTests,
    false_positive_rate,
    fit_types,
)

SKILLS = (0.9, 0.75, 0.6, 0.4, 0.25, 0.1, 0.05, 0.02)
INPUTS = range(-12, 13)
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Lt: ast.LtE}


@dataclass(frozen=True)
class Programs:
    """A task with all its programs and what the suites say of them.

    Attributes:
        skill: r, the chance that a draw is right.
        sources: the right program, then those with a mistake; a wrong draw is any of these.
        weak, strong: `[programs]` whether each suite accepts.
    """

    skill: float
    sources: tuple[str, ...]
    weak: NDArray[np.bool_]
    strong: NDArray[np.bool_]

    def draw(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`[size]` numbers of programs that the writer writes."""
        right = rng.random(size) < self.skill
        return np.where(right, 0, rng.integers(1, len(self.sources), size))

    @property
    def law(self) -> ImperfectVerifier:
        """What the weak suite does to this writer, exactly. A mistake that no input shows is no
        mistake: such programs count as right."""
        chance = np.full(len(self.sources), (1 - self.skill) / (len(self.sources) - 1))
        chance[0] = self.skill
        r = float(chance[self.strong].sum())
        c = float(chance[self.strong & self.weak].sum()) / r
        s = float(chance[~self.strong & ~self.weak].sum()) / (1 - r)
        return ImperfectVerifier((r,), min(c, 1.0), min(s, 1.0))


def function(rng: np.random.Generator) -> tuple[str, int]:
    """A function in two cases, and where the second begins."""
    a, b, d, e = (int(rng.integers(1, 9)) for _ in range(4))
    c = int(rng.integers(-3, 4))
    return f"def f(x):\n    return {a} * x + {b} if x < {c} else {d} * x - {e}", c


def mistakes(source: str) -> list[str]:
    """Every program with one mistake: a constant off by one, or another operator."""
    found = []
    for number, node in enumerate(ast.walk(ast.parse(source))):
        changes: list[tuple[str, object]] = []
        if isinstance(node, ast.Constant):
            changes = [("value", node.value + step) for step in (-1, 1)]
        elif isinstance(node, ast.BinOp):
            changes = [("op", SWAPS[type(node.op)]())]
        elif isinstance(node, ast.Compare):
            changes = [("ops", [SWAPS[type(node.ops[0])]()])]
        for name, value in changes:
            tree = ast.parse(source)
            setattr(list(ast.walk(tree))[number], name, value)
            found.append(ast.unparse(tree))
    return found


def make(count: int, seed: int, sandbox: Sandbox) -> list[Programs]:
    """Tasks, their programs, and the verdicts of both suites."""
    tasks = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        source, border = function(rng)
        value: dict[str, Callable[[int], int]] = {}
        exec(source, value)  # the reference is our own, not a candidate
        sources = (ast.unparse(ast.parse(source)), *mistakes(source))
        # The weak suite: three inputs of one case, and of every third task one of the other.
        side = [x for x in INPUTS if (x >= border) == (number % 2 == 0)]
        other = [x for x in INPUTS if x not in side]
        looked = set(rng.choice(side, 3, replace=False).tolist())
        looked |= set(rng.choice(other, int(number % 3 == 0)).tolist())
        tests = [f"assert f({x}) == {value['f'](x)}" for x in INPUTS]
        suite = UnitTests(tests, names=["f"], partial=True, sandbox=sandbox)
        passed = np.array([outcome.passed for outcome in suite.outcomes(sources)])
        weak = passed[:, [x in looked for x in INPUTS]].all(axis=1)
        tasks.append(Programs(SKILLS[number % len(SKILLS)], sources, weak, passed.all(axis=1)))
    return tasks


def resample(
    task: Programs, attempts: int, runs: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`[attempts + 1, 3]`: shares of runs that are right, wrong, or without a result after K."""
    outcome, shares = np.full(runs, 2), [np.array([0.0, 0.0, 1.0])]
    for _ in range(attempts):
        drawn = task.draw(runs, rng)
        taken = (outcome == 2) & task.weak[drawn]
        outcome[taken] = np.where(task.strong[drawn[taken]], 0, 1)
        shares.append(np.bincount(outcome, minlength=3) / runs)
    return np.array(shares)


def counted(task: Programs, size: int, rng: np.random.Generator) -> FalsePositives:
    """What a user would measure: drawn programs, the suite, and a stronger one."""
    return false_positive_rate(
        task.draw(size, rng).tolist(), lambda i: bool(task.weak[i]), lambda i: bool(task.strong[i])
    )


def draw(path: Path, shares: NDArray[np.float64], ceilings: float, wrong: Sequence[float]) -> None:
    """Accuracy of what was accepted, and the value of K attempts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    ks = np.arange(len(shares))
    left.plot(ks[1:], shares[1:, 0] / (shares[1:, 0] + shares[1:, 1]), label="of the accepted")
    left.plot(ks[1:], shares[1:, 0], label="of all problems")
    left.axhline(ceilings, color="k", ls=":", lw=1, label="ceiling")
    left.set_xlabel("attempts at most")
    left.set_ylabel("right")
    left.legend(frameon=False)
    for utility in wrong:
        values = shares[:, 0] + utility * shares[:, 1]
        (line,) = right.plot(ks, values, label=f"a wrong one costs {-utility:g}")
        right.plot(ks[values.argmax()], values.max(), "o", color=line.get_color(), ms=4)
    right.axhline(0, color="k", lw=0.5)
    right.set_xlabel("attempts at most")
    right.set_ylabel("value")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1, base=2)
        axes.set_xlim(0, len(shares))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=140)


def main(argv: Sequence[str] | None = None) -> list[Programs]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--attempts", type=int, default=64, help="K at most")
    parser.add_argument("--runs", type=int, default=4000, help="of resampling, a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isolation", choices=["bubblewrap", "process"], default="bubblewrap")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    tasks = make(args.tasks, args.seed, Sandbox(isolation=args.isolation))
    console = Console(width=100)
    table = Table(title="drawn until the weak suite accepts", box=SIMPLE_HEAD, pad_edge=False)
    points = sorted({1, min(8, args.attempts), args.attempts})
    headings = ["task", "r", "false positives", "95% int.", "ceiling"]
    for heading in [*headings, *(f"right, K={k}" for k in points)]:
        table.add_column(heading, justify="right", no_wrap=True)
    curves = []
    for number, task in enumerate(tasks):
        curves.append(resample(task, args.attempts, args.runs, rng))
        found, law = counted(task, 300, rng), task.law
        accepted = curves[-1][:, :2].sum(axis=1)
        cells = [f"{curves[-1][k, 0] / accepted[k]:.2f}" if accepted[k] else "-" for k in points]
        low, high = found.interval
        told = [f"{found.rate:.2f}", f"{low:.2f}-{high:.2f}", f"{law.ceiling:.2f}"]
        table.add_row(str(number), f"{law.success[0]:.2f}", *told, *cells)
    console.print(table)
    every = np.mean(curves, axis=0)
    ceiling = float(np.mean([task.law.ceiling for task in tasks]))
    draws = 40
    counts = [int(task.weak[task.draw(draws, rng)].sum()) for task in tasks for _ in range(20)]
    pooled = [counted(task, 300, rng) for task in tasks]
    wrong = sum(found.drawn - found.right for found in pooled)
    soundness = 1 - sum(found.false for found in pooled) / wrong
    fitted = fit_types(counts, draws, completeness=1.0, soundness=soundness)
    kinds = ", ".join(
        f"{100 * share:.0f}% with r = {r:.2f}"
        for r, share in zip(fitted.success, fitted.prior, strict=True)
    )
    console.print(f"types from counts of accepted draws (s = {soundness:.2f} for all): {kinds}")
    utilities = (-0.5, -1.0, -2.0)
    for utility in utilities:
        values = every[:, 0] + utility * every[:, 1]
        best = int(values.argmax())
        said = fitted.best_budget(right=1.0, wrong=utility, most=args.attempts)
        console.print(
            f"a wrong one costs {-utility:g}: best K = {best}, worth {values[best]:.3f}; "
            f"K = {args.attempts} is worth {values[-1]:.3f}; the fitted types say K = {said}, "
            f"worth {values[said]:.3f}"
        )
    draw(args.out / "imperfect-verifier.png", every, ceiling, utilities)
    return tasks


if __name__ == "__main__":
    main()
