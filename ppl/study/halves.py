"""Settings chosen on one half of the questions, and what they give on the other.

The best of many rules on the questions at hand looks better than it is. Halves are by SHA-256 of
the question's id, so that they are the same in every report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppl.decide.risk import selective_score
from ppl.language.arguments import checked
from ppl.study.intervals import wilson
from ppl.study.selection import Rule
from ppl.study.tables import Pools


@checked
def half(problem: str) -> int:
    """0 or 1, by the first bit of the SHA-256 of an id."""
    return hashlib.sha256(problem.encode()).digest()[0] >> 7


@dataclass(frozen=True)
class Chosen:
    """A rule chosen for k candidates.

    Attributes:
        k: candidates a question.
        rule: the best on the first half; the first of the list among equals.
        draws: its m, if it is a majority of the bests.
        tried: rules, with settings, to choose from.
        questions: of the first half and of the second.
        seen: accuracy on the first half, by which it was chosen: too good to be true.
        accuracy: on the second half.
        low, high: its 95% Wilson interval.
        plain: the vote's accuracy on the second half.
    """

    k: int
    rule: str
    draws: int | None
    tried: int
    questions: tuple[int, int]
    seen: float
    accuracy: float
    low: float
    high: float
    plain: float


@dataclass(frozen=True)
class Threshold:
    """To answer only where enough candidates agree; a wrong answer costs as much as a right one
    brings.

    Attributes:
        k: candidates a question.
        threshold: least share of the candidates that the winning answer has, by which the first
            half gains most.
        questions: of the first half and of the second.
        answered: share of the second half that is answered.
        accuracy: of those; NaN if none is.
        low, high: its 95% Wilson interval.
        utility: of the second half: right minus wrong, by questions.
        always: the utility there of answering whatever there is an answer to.
        seen: the utility on the first half.
    """

    k: int
    threshold: float
    questions: tuple[int, int]
    answered: float
    accuracy: float
    low: float
    high: float
    utility: float
    always: float
    seen: float


def choose_rules(pools: Pools) -> list[Chosen]:
    """The best rule at each size above one, by the first half; nothing if a half is empty."""
    questions = list(pools.members)
    sides = [[q for q in questions if half(q) == side] for side in (0, 1)]
    if not all(sides):
        return []
    counts = (len(sides[0]), len(sides[1]))
    vote = Rule("vote", "vote")
    found = []
    for k in pools.sizes[1:]:
        tried = settings(pools, k)
        seen = [float(pools.line(rule, k).on(sides[0])[0].mean()) for rule in tried]
        best = tried[int(np.argmax(np.array(seen) > max(seen) - 1e-12))]
        outcomes = pools.line(best, k).on(sides[1])[0]
        low, high = wilson(float(outcomes.sum()), len(outcomes))
        plain = float(pools.line(vote, k).on(sides[1])[0].mean())
        found.append(
            Chosen(k, best.name, best.draws, len(tried), counts, max(seen),
                   float(outcomes.mean()), low, high, plain)
        )  # fmt: skip
    return found


def settings(pools: Pools, k: int) -> list[Rule]:
    """Rules to choose from: those that use what is known, the bests with several m."""
    found = []
    for rule in pools.rules:
        if rule.choice == "bests":
            draws = [2**i for i in range(1, k.bit_length()) if 2**i < k]
            found += [replace(rule, draws=m) for m in draws]
        elif rule.real:
            found.append(rule)
    return found


def choose_threshold(pools: Pools) -> Threshold | None:
    """The threshold of agreement that the first half gains most by, on all candidates."""
    shares, right, sides = [], [], []
    for question, each in pools.members.items():
        for _, pool in each:
            counts = np.bincount(pool.classes[pool.answered], minlength=len(pool.right))
            top = counts == counts.max(initial=0)
            shares.append(counts.max(initial=0) / pool.n)
            right.append(float(pool.right[top].mean()) if len(counts) else 0.0)
            sides.append(half(question))
    share, chance, side = np.array(shares), np.array(right), np.array(sides)
    if len(set(sides)) < 2:
        return None
    sure = np.where(share > 0, share, -1.0)  # without any answer there is none to give
    first, second = side == 0, side == 1
    grid = sorted({0.0, *share[first].tolist()})
    # A threshold above all shares answers nothing: it is what a hopeless task deserves.
    grid.append(float(np.nextafter(grid[-1], 2.0)))
    utilities = [selective_score(sure[first], chance[first], t).utility for t in grid]
    best = int(np.argmax(utilities))
    answers = second & (sure >= grid[best])
    low, high = wilson(float(chance[answers].sum()), int(answers.sum()))
    found = selective_score(sure[second], chance[second], grid[best])
    return Threshold(
        pools.n,
        grid[best],
        (_questions(pools, 0), _questions(pools, 1)),
        found.response_rate,
        found.accuracy,
        low,
        high,
        found.utility,
        selective_score(sure[second], chance[second], 0.0).utility,
        utilities[best],
    )


def _questions(pools: Pools, side: int) -> int:
    return sum(half(question) == side for question in pools.members)


def names(chosen: Sequence[Chosen]) -> list[str]:
    """Each choice as text, with its setting."""
    return [c.rule if c.draws is None else f"{c.rule} (m={c.draws})" for c in chosen]
