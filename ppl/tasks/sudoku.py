"""Mini sudoku: a 4 by 4 grid with 9 to 12 blanks and one solution, one cell a line.

    Solve this mini sudoku: a1=2 d1=3 c2=1 a3=1 c3=3 b4=3 c4=2 d4=1        b1=1 / c1=4 / and so on

Columns are a to d, rows 1 to 4; blanks are filled in reading order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Self

from ppl.tasks.boards import Board, Solutions

MIN_BLANKS, MAX_BLANKS = 9, 12
DIGITS = "1234"

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

_CELL = re.compile(r"([a-d])([1-4])=([1-4])")


@dataclass(frozen=True, slots=True)
class Sudoku(Board):
    """One problem: 16 cells in reading order, `1` to `4` or `.`."""

    task: ClassVar[str] = "sudoku"
    values: ClassVar[str] = DIGITS
    insight: ClassVar[float] = 0.0
    slip: ClassVar[float] = 0.01

    @property
    def question(self) -> str:
        """The task as words: the cells that are filled."""
        return f"Solve this mini sudoku: {self.given()}"

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random problem: cells of a random solution are removed while it stays the only one."""
        blanks = rng.randint(MIN_BLANKS, MAX_BLANKS)
        while True:
            solution = rng.choice(solutions().boards)
            gone = set(rng.sample(range(16), blanks))
            board = "".join("." if i in gone else v for i, v in enumerate(solution))
            if solutions().count(board) == 1:
                return cls(board)

    @staticmethod
    def solutions() -> Solutions:
        """All completed grids."""
        return solutions()

    @staticmethod
    def legal(board: str, cell: int) -> str:
        """The digits that no peer of a cell has."""
        return "".join(d for d in DIGITS if all(board[p] != d for p in PEERS[cell]))

    @staticmethod
    def write(cell: int, value: str) -> str:
        """A cell and its digit: `b1=3`."""
        return f"{'abcd'[cell % 4]}{cell // 4 + 1}={value}"

    @staticmethod
    @cache
    def parse(text: str) -> tuple[int, str]:
        """The cell and the digit that a text writes. Raises ValueError for anything else."""
        match = _CELL.fullmatch(text)
        if match is None:
            raise ValueError(f"not a cell of a mini sudoku: {text!r}")
        return "abcd".index(match[1]) + 4 * (int(match[2]) - 1), match[3]


@cache
def solutions() -> Solutions:
    """All 288 completed grids."""

    def fill(grid: str) -> Iterator[str]:
        at = grid.find(".")
        if at < 0:
            yield grid
            return
        for digit in Sudoku.legal(grid, at):
            yield from fill(grid[:at] + digit + grid[at + 1 :])

    return Solutions(tuple(fill("." * 16)))
