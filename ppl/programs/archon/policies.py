"""Which architecture to look at next, on how many problems.

    random     one after another
    greedy     one choice at a time, from a random start; again from another one where it ends
    tpe        tree-structured Parzen estimator on categories (Bergstra et al. 2011)
    halving    asynchronous successive halving over problems (ASHA: Li et al. 2018, 1810.05934)

A policy is a function of what is known, and says None where it has to wait for what is pending, or
where nothing is left. Written here because the spaces are small, finite and constrained: all of an
estimator's candidates can be ranked, and a library (optuna) would still need the constraints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from ppl.programs.archon.space import Ask, Board, Point

Method = Literal["random", "greedy", "tpe", "halving"]
Policy = Callable[[Board], Ask | None]

STARTUP = 10
"""Random architectures before the estimator has something to estimate from."""
GOOD = 0.25
"""Share of architectures that count as good."""
ETA = 3
"""One in so many is promoted to so many times the problems."""


def random(board: Board) -> Ask | None:
    """The next that nobody has looked at."""
    free = next((point for point in board.points if board.free(point)), None)
    return None if free is None else Ask(free, board.problems)


def greedy(board: Board) -> Ask | None:
    """Climbs: for each choice in turn, all values beside the others as they are, the best stays.

    What was asked so far follows from what is known, so that the climb is gone through again.
    """
    climbed: set[Point] = set()
    for start in board.points:
        if start in climbed:
            continue
        here = start
        if not board.whole(here):
            return None if here in board.pending else Ask(here, board.problems)
        before = None
        while here != before:
            before = here
            for choice in range(len(here)):
                row = board.row(here, choice)
                unknown = [p for p in row if not board.whole(p)]
                for point in unknown:
                    if point not in board.pending:
                        return Ask(point, board.problems)
                if unknown:
                    return None
                climbed.update(row)
                here = max([here, *row], key=board.mean)
    return None


def tpe(board: Board) -> Ask | None:
    """The largest ratio of how probable its values are among the good and among the others.

    Each choice by itself: (count + 1) / (n + number of values). Random at first, and once in ten
    times after that, or what looked bad once by bad luck would never be seen again.
    """
    known = [point for point in board.points if board.whole(point)]
    if len(known) + len(board.pending) < STARTUP or board.rng.random() < 0.1:
        return random(board)
    free = [point for point in board.points if board.free(point)]
    if not free or not known:
        return random(board)
    known.sort(key=lambda point: -board.mean(point))
    split = max(1, math.ceil(GOOD * len(known)))
    good, bad = (_log_laws(points, board.sizes) for points in (known[:split], known[split:]))
    gains = [sum(g[v] - b[v] for g, b, v in zip(good, bad, point, strict=True)) for point in free]
    return Ask(free[int(np.argmax(gains))], board.problems)


def halving(board: Board) -> Ask | None:
    """Promotes whoever is among the best of its rung, as soon as it is; else looks at a new one.

    A rung is never waited for: with `len // ETA` promotions for what has arrived so far, early ones
    may be mistaken, and later ones are not held up.
    """
    sizes = rungs(board.problems)
    for rung in reversed(range(len(sizes) - 1)):
        arrived = [p for p in board.points if len(board.scores.get(p, ())) >= sizes[rung]]
        arrived.sort(key=lambda point: -board.mean(point, sizes[rung]))
        for point in arrived[: len(arrived) // ETA]:
            if len(board.scores[point]) < sizes[rung + 1] and point not in board.pending:
                return Ask(point, sizes[rung + 1])
    new = next((point for point in board.points if board.free(point)), None)
    if new is not None:
        return Ask(new, sizes[0])
    # All have been looked at: what is left is spent on the best that are not yet known whole.
    rest = [p for p in board.points if not board.whole(p) and p not in board.pending]
    if not rest:
        return None
    best = max(rest, key=lambda p: (len(board.scores[p]), board.mean(p)))
    return Ask(best, next(size for size in sizes if size > len(board.scores[best])))


POLICIES: dict[str, Policy] = {
    "random": random,
    "greedy": greedy,
    "tpe": tpe,
    "halving": halving,
}


def rungs(problems: int) -> list[int]:
    """Numbers of problems, each `ETA` times the one before, the last all; three at most."""
    found = [problems]
    while len(found) < 3 and found[0] > ETA:
        found.insert(0, math.ceil(found[0] / ETA))
    return found


def _log_laws(points: list[Point], sizes: Point) -> list[np.ndarray]:
    """For each choice the log-probabilities of its values, one of each added."""
    laws = []
    for choice, size in enumerate(sizes):
        counts = np.bincount([point[choice] for point in points], minlength=size) + 1.0
        laws.append(np.log(counts / counts.sum()))
    return laws
