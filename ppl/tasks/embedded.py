"""The tasks that the embedded models were made for: held-out problems, offline, exact.

`lines/chain`, `lines/queens`, `lines/sudoku` go with the pair `tiny-lines` and have an exact oracle
of steps; `tiny/arithmetic` and `tiny/countdown` go with the older pair `tiny`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.tasks.boards import Board
from ppl.tasks.chain import Chain
from ppl.tasks.judge import TaskName
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems, right_steps
from ppl.tasks.queens import Queens
from ppl.tasks.reasoning_gym import judged, problems
from ppl.tasks.sudoku import Sudoku
from ppl.tasks.task import Problem, Task

LICENCE = "Apache-2.0"
ABOUT = {
    "chain": "arithmetic from left to right, a step a line",
    "queens": "place the queens that are missing of eight, one a line",
    "sudoku": "fill a sudoku of 4 by 4, a cell a line",
    "arithmetic": "three or four terms with brackets",
    "countdown": "reach a target from three or four numbers",
}

_VALUE = re.compile(r"-?\d+")
_STEP = re.compile(r"[a-l]=\d{1,2}")


@checked
def lines_task(name: str, *, n: int = 100, seed: int = 0) -> Task:
    """Held-out problems that are solved line by line.

    Args:
        name: "chain", "queens" or "sudoku".
        n: number of problems; a longer list starts with the shorter.
        seed: of their making.
    """
    checks.count(n=n)
    made = [_stated(name, p) for p in held_out_problems(name, n, seed)]
    return Task(f"lines/{name}", made, right_lines, right_step, read_lines, ABOUT[name], LICENCE)


@checked
def tiny_task(name: TaskName, *, n: int = 100, seed: int = 0) -> Task:
    """Held-out problems of the older embedded pair, judged by `reasoning-gym`.

    Args:
        name: "arithmetic" or "countdown".
        n: number of problems; a longer list starts with the shorter.
        seed: of their making.
    """
    checks.count(n=n)
    return Task(f"tiny/{name}", problems(name, n, seed), judged, about=ABOUT[name], licence=LICENCE)


def line_problem(problem: Problem) -> LineProblem:
    """The problem with its oracle."""
    kind = LINE_TASKS[problem.meta["task"]]
    stated: str = problem.meta["stated"]
    return kind(stated)  # type: ignore[call-arg]


def right_lines(problem: Problem, answer: str | None) -> bool | None:
    """Whether an answer is right: the last step or its value, the cells that were blank.

    None for what is no step, number or cell.
    """
    if answer is None:
        return False
    one, answer = line_problem(problem), str(answer).strip()
    if isinstance(one, Board):
        try:
            for line in answer.split("\n"):
                one.parse(line)
        except ValueError:
            return None
        return one.check(answer)
    last = one.answer(answer)
    if _VALUE.fullmatch(last):
        return last == str(problem.gold).rpartition("=")[2]
    return one.check(answer) if _STEP.fullmatch(last) else None


def right_step(problem: Problem, steps: Sequence[str]) -> bool:
    """Whether the last of some lines is right after right ones; all but the final end a line."""
    return right_steps(line_problem(problem), steps) == len(steps)


def read_lines(problem: Problem, text: str) -> str | None:
    """The answer of a whole response: of a chain its last line, of a board all lines."""
    return line_problem(problem).answer(text.strip()) or None


def _stated(name: str, one: LineProblem) -> Problem:
    lines: list[str] = []
    while following := one.right_lines(lines):
        lines.append(following[0])
    assert isinstance(one, Chain | Queens | Sudoku)
    stated = one.expression if isinstance(one, Chain) else one.board
    gold = one.answer("".join(lines))
    return Problem(f"lines/{one.key}", one.question, gold, {"task": name, "stated": stated})
