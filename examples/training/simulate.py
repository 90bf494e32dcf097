"""What search gains on the line tasks before anything is trained: careless solver, imagined judge.

    python examples/training/simulate.py --problems 200

The solver writes the lines. The judge sees whether the prefix is right through Gaussian noise: its
log-odds are normal with mean plus or minus d^2 / 2 and variance d^2, a calibrated judge whose AUC
among equally many right and wrong prefixes is Phi(d / sqrt 2), .92 by default. A network says the
same of the same prefix each time (`--persistent 1`, the default); 0 is fresh noise at every look,
which flatters tasks in which few responses are right and these are sampled often.

* best-of-N: the response with the best last score;
* SMC: incremental weights are ratios of the judge's probabilities, systematic resampling where the
  effective sample size falls below N / 2, then the best last score;
* beam: the sqrt N best of sqrt N lines after each of sqrt N prefixes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import NormalDist

sys.path.insert(0, str(Path(__file__).resolve().parent))

from data import LINE_TASKS, LineProblem

from ppl.tasks.lines import held_out_problems


@dataclass(frozen=True)
class Prefix:
    """Lines, whether they are right, and the judge's log-odds of it."""

    lines: tuple[str, ...] = ()
    right: bool = True
    log_odds: float = math.inf

    @property
    def ended(self) -> bool:
        return bool(self.lines) and not self.lines[-1].endswith("\n")

    @property
    def log_prob(self) -> float:
        return -math.log1p(math.exp(-self.log_odds))


@dataclass(frozen=True)
class Judge:
    """Noisy log-odds of right and wrong prefixes.

    Attributes:
        distance: of the two means, in standard deviations.
        persistent: share of the noise's variance that belongs to the prefix.
    """

    distance: float
    persistent: float

    @classmethod
    def with_auc(cls, auc: float, persistent: float) -> Judge:
        """The judge of an AUC below 1."""
        return cls(math.sqrt(2) * NormalDist().inv_cdf(auc), persistent)

    def log_odds(self, right: bool, lasting: float, rng: Random) -> float:
        middle = self.distance**2 / 2 * (1 if right else -1)
        noise = math.sqrt(self.persistent) * lasting
        noise += math.sqrt(1 - self.persistent) * rng.gauss(0, 1)
        return middle + self.distance * noise


class World:
    """One problem, its solver and its judge."""

    def __init__(self, problem: LineProblem, judge: Judge, rng: Random) -> None:
        self.problem, self.judge, self.rng = problem, judge, rng
        self.seen: dict[tuple[str, ...], tuple[bool, float]] = {}

    def extend(self, prefix: Prefix) -> Prefix:
        """The prefix and one more line of the solver. A solver that is at a loss ends."""
        if prefix.ended:
            return prefix
        try:
            line = self.problem.careless_line(prefix.lines, self.rng)
        except (ValueError, IndexError):  # all is filled, though not as it should be
            line = ""
        lines = (*prefix.lines, line)
        if lines not in self.seen:
            right = prefix.right and line in self.problem.right_lines(prefix.lines)
            self.seen[lines] = right, self.rng.gauss(0, 1)
        right, lasting = self.seen[lines]
        return Prefix(lines, right, self.judge.log_odds(right, lasting, self.rng))

    def solved(self, prefixes: Sequence[Prefix]) -> bool:
        return max(prefixes, key=lambda p: p.log_odds).right


def best_of_n(world: World, n: int) -> bool:
    ends = [Prefix()] * n
    while not all(p.ended for p in ends):
        ends = [world.extend(p) for p in ends]
    return world.solved(ends)


def smc(world: World, n: int) -> bool:
    particles, log_weights = [Prefix()] * n, [0.0] * n
    while not all(p.ended for p in particles):
        after = [world.extend(p) for p in particles]
        log_weights = [
            w + b.log_prob - a.log_prob
            for w, a, b in zip(log_weights, particles, after, strict=True)
        ]
        particles = after
        top = max(log_weights)
        weights = [math.exp(w - top) for w in log_weights]
        total = sum(weights)
        if total**2 / sum(w * w for w in weights) < n / 2:
            particles = systematic(particles, weights, world.rng)
            log_weights = [0.0] * n
    return world.solved(particles)


def systematic(particles: Sequence[Prefix], weights: Sequence[float], rng: Random) -> list[Prefix]:
    """As many particles again, each about as often as its share of the weight."""
    n, total = len(particles), sum(weights)
    at, reached, out = rng.random(), 0.0, []
    for particle, weight in zip(particles, weights, strict=True):
        reached += n * weight / total
        while at < reached and len(out) < n:
            out.append(particle)
            at += 1
    return out + [particles[-1]] * (n - len(out))


def beam(world: World, n: int) -> bool:
    width = math.isqrt(n)
    beams = [Prefix()]
    while not all(p.ended for p in beams):
        next_lines = [world.extend(p) for p in beams for _ in range(n // len(beams))]
        beams = sorted({p.lines: p for p in next_lines}.values(), key=lambda p: -p.log_odds)[:width]
    return world.solved(beams)


SEARCHERS = {"best-of-N": best_of_n, "SMC": smc, "beam": beam}


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str, int], float]:
    """Prints and returns the share of solved problems by task, searcher and N."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=200, help="held-out problems a task")
    parser.add_argument("--auc", type=float, default=0.92, help="of the judge among siblings")
    parser.add_argument("--persistent", type=float, default=1.0, help="share of lasting noise")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    judge = Judge.with_auc(args.auc, args.persistent)
    shares = {}
    print("| task | searcher | " + " | ".join(f"N = {n}" for n in args.budgets) + " |")
    print("|---|---|" + "---|" * len(args.budgets))
    for task in LINE_TASKS:
        problems = held_out_problems(task, args.problems, args.seed)
        for name, search in SEARCHERS.items():
            cells = []
            for n in args.budgets:
                rng = Random(f"{args.seed}:{task}:{name}:{n}")
                right = sum(search(World(p, judge, rng), n) for p in problems)
                shares[task, name, n] = right / len(problems)
                cells.append(f"{100 * right / len(problems):.0f}")
            print(f"| {task} | {name} | " + " | ".join(cells) + " |", flush=True)
    return shares


if __name__ == "__main__":
    main()
