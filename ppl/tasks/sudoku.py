"""Mini sudoku: a 4 by 4 grid with 9 to 12 blanks and one solution, one cell a line.

    Solve this mini sudoku: 2..3/..1./1.3./3.21        21.3/..1./1.3./3.21 and so on

Every line is the grid with the next blank in reading order filled. The hand that makes the
mistakes, `Sudoku.careless_line`, takes any digit that its row, column and box do not have yet: it
never looks ahead. A locally legal prefix can therefore be lost long before it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Self

MIN_BLANKS, MAX_BLANKS = 9, 12
SLIP = 0.01  # how likely the solver takes any digit at all, or miscopies one

PEERS = tuple(
    tuple(
        other
        for other in range(16)
        if other != cell
        and (
            other // 4 == cell // 4
            or other % 4 == cell % 4
            or (other // 8 == cell // 8 and other % 4 // 2 == cell % 4 // 2)
        )
    )
    for cell in range(16)
)
"""For every cell in reading order, the cells that must differ from it."""

_GRID = re.compile(r"[1-4.]{4}(?:/[1-4.]{4}){3}")


@dataclass(frozen=True, slots=True)
class Sudoku:
    """One problem.

    Attributes:
        grid: 16 characters, `1` to `4` and `.` for a blank, in reading order.
    """

    grid: str

    task: ClassVar[str] = "sudoku"

    @property
    def question(self) -> str:
        """The task as words: the grid, with blanks."""
        return f"Solve this mini sudoku: {write(self.grid)}"

    @property
    def key(self) -> str:
        """Canonical name: equal keys are the same problem."""
        return f"sudoku:{self.grid}"

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random problem: cells of a random solution are removed while it stays the only one."""
        blanks = rng.randint(MIN_BLANKS, MAX_BLANKS)
        while True:
            solution = rng.choice(solutions())
            gone = set(rng.sample(range(16), blanks))
            grid = "".join("." if i in gone else c for i, c in enumerate(solution))
            if len(completions(grid)) == 1:
                return cls(grid)

    def check(self, answer: str | None) -> bool:
        """Whether an answer is the completed grid, written like the lines."""
        (solution,) = completions(self.grid)
        return answer == write(solution)

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """The right next lines after right ones (one, here); only the final has no newline."""
        grid = parse(lines[-1].rstrip("\n")) if lines else self.grid
        (solution,) = completions(self.grid)
        at = grid.find(".")
        return (_line(grid, at, solution[at]),) if at >= 0 else ()

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        grid = parse(lines[-1].rstrip("\n")) if lines else self.grid
        if rng.random() < SLIP:
            return self.spoiled_line(lines, rng)
        at = grid.index(".")
        return _line(grid, at, rng.choice(legal(grid, at) or "1234"))

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to the right one, as a hard counterexample; it may be right."""
        grid = parse(lines[-1].rstrip("\n")) if lines else self.grid
        at = grid.index(".")
        if rng.random() < 0.5:
            return _line(grid, at, rng.choice("1234"))
        other = rng.choice([i for i in range(16) if i != at])
        miscopied = grid[:other] + rng.choice("1234") + grid[other + 1 :]
        return _line(miscopied, at, rng.choice(legal(grid, at) or "1234"))


@cache
def solutions() -> tuple[str, ...]:
    """All 288 completed grids."""
    return tuple(_fill("." * 16))


def completions(grid: str) -> tuple[str, ...]:
    """All completed grids that agree with a grid."""
    agreeing = (1 << len(solutions())) - 1
    for mask, character in zip(_masks(), grid, strict=True):
        agreeing &= mask[character]
    return tuple(_members(agreeing))


@cache
def _masks() -> tuple[dict[str, int], ...]:
    """For every cell and character, the set of solutions (as bits) that agree with it."""
    everything = (1 << len(solutions())) - 1
    return tuple(
        {".": everything}
        | {d: sum(1 << i for i, s in enumerate(solutions()) if s[cell] == d) for d in "1234"}
        for cell in range(16)
    )


def _members(bits: int) -> Iterator[str]:
    while bits:
        lowest = bits & -bits
        yield solutions()[lowest.bit_length() - 1]
        bits ^= lowest


def legal(grid: str, cell: int) -> str:
    """The digits that no peer of a cell has."""
    return "".join(d for d in "1234" if all(grid[p] != d for p in PEERS[cell]))


def parse(line: str) -> str:
    """The 16 characters of a line. Raises ValueError for anything else."""
    if _GRID.fullmatch(line) is None:
        raise ValueError(f"not a grid of four rows: {line!r}")
    return line.replace("/", "")


def write(grid: str) -> str:
    """The line for 16 characters: four rows with slashes between them."""
    return "/".join(grid[i : i + 4] for i in range(0, 16, 4))


def _line(grid: str, at: int, digit: str) -> str:
    filled = grid[:at] + digit + grid[at + 1 :]
    return write(filled) + ("\n" if "." in filled else "")


def _fill(grid: str) -> Iterator[str]:
    at = grid.find(".")
    if at < 0:
        yield grid
        return
    for digit in legal(grid, at):
        yield from _fill(grid[:at] + digit + grid[at + 1 :])
