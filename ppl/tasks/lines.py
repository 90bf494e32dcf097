"""Problems that are solved line by line, each line one step.

Three tasks share one form, so that one decoder and one reward model serve them all: chain
arithmetic, eight queens, mini sudoku. A response is a list of lines; every line but the last ends
with a newline. A line says one step and no more: what stays is in the question and in the lines
before it, and a small network spends its work on the step and not on copying. `right_lines` is an
exact oracle: after right lines a line is right exactly if it is one of these few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import ClassVar, Protocol, Self

from ppl.errors import TaskError
from ppl.tasks.chain import Chain
from ppl.tasks.queens import Queens
from ppl.tasks.reasoning_gym import held_out
from ppl.tasks.sudoku import Sudoku


class LineProblem(Protocol):
    """A question, its exact checker, its oracle of right lines, a solver that makes mistakes."""

    task: ClassVar[str]

    @property
    def question(self) -> str:
        """The task as words, on one line."""
        ...

    @property
    def key(self) -> str:
        """Canonical name: equal keys are the same problem."""
        ...

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random problem."""
        ...

    def answer(self, response: str) -> str:
        """What of a response is its answer, for votes: right responses may differ elsewhere."""
        ...

    def check(self, response: str | None) -> bool:
        """Whether the answer of a whole response is right; None, one that did not end, is not."""
        ...

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """All right next lines after right ones; only the final has no newline."""
        ...

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        ...

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to a right one, as a hard counterexample; it may be right."""
        ...


LINE_TASKS: Mapping[str, type[LineProblem]] = {c.task: c for c in (Chain, Queens, Sudoku)}


def draw(task: str, rng: Random, *, held: bool = False) -> LineProblem:
    """A random problem whose key is held out for evaluation, or is not (one in eight is)."""
    while True:
        problem = LINE_TASKS[task].draw(rng)
        if held_out(problem.key) == held:
            return problem


def held_out_problems(task: str, n: int, seed: int = 0) -> list[LineProblem]:
    """The first `n` distinct held-out problems of a seed; a longer list starts with the shorter."""
    if task not in LINE_TASKS:
        raise TaskError(f"no task {task!r}: choose one of {', '.join(LINE_TASKS)}")
    if n < 0:
        raise TaskError(f"held_out_problems({task!r}, n={n}): n must not be negative")
    rng = Random(f"{task}:{seed}")
    found: dict[str, LineProblem] = {}
    while len(found) < n:
        problem = draw(task, rng, held=True)
        found.setdefault(problem.key, problem)
    return list(found.values())


def split_lines(response: str) -> list[str]:
    """A response as lines that keep their newlines; the last has none where the response ended."""
    return [line for line in re.split(r"(?<=\n)", response) if line]


def right_steps(problem: LineProblem, lines: Sequence[str]) -> int:
    """Number of leading lines that are right: the prefix up to each can be completed."""
    for i, line in enumerate(lines):
        if line not in problem.right_lines(lines[:i]):
            return i
    return len(lines)


def careless_response(problem: LineProblem, rng: Random) -> Iterator[str]:
    """The lines of a whole response by the careless solver."""
    lines: list[str] = []
    while not lines or lines[-1].endswith("\n"):
        lines.append(problem.careless_line(lines, rng))
        yield lines[-1]
