"""Eight queens: 4 to 7 columns of a chess board without a queen, one column a line.

    Place eight queens: a0 d5 g1        b4 / c7 / e2 / f6 / h3

Rows are 0 to 7. No two queens may share a row or a diagonal. There are 92 ways to place eight
queens (Sloane's A000170), so what remains possible after a few is seldom what looks possible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Self

from ppl.tasks.boards import Board, Solutions

MIN_BLANKS, MAX_BLANKS = 4, 7
COLUMNS, ROWS = "abcdefgh", "01234567"

_CELL = re.compile(r"[a-h][0-7]")


@dataclass(frozen=True, slots=True)
class Queens(Board):
    """One problem: of every column, the row of its queen or `.`."""

    task: ClassVar[str] = "queens"
    values: ClassVar[str] = ROWS
    insight: ClassVar[float] = 0.15
    slip: ClassVar[float] = 0.01

    @property
    def question(self) -> str:
        """The task as words: the queens that stand."""
        return f"Place eight queens: {self.given()}"

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random problem: a random solution without some of its queens."""
        solution = rng.choice(solutions().boards)
        gone = set(rng.sample(range(8), rng.randint(MIN_BLANKS, MAX_BLANKS)))
        return cls("".join("." if i in gone else v for i, v in enumerate(solution)))

    @staticmethod
    def solutions() -> Solutions:
        """All ways to place eight queens."""
        return solutions()

    @staticmethod
    def legal(board: str, cell: int) -> str:
        """The rows of a column that no queen attacks."""
        attacked = set()
        for other, value in enumerate(board):
            if value != "." and other != cell:
                row, apart = int(value), abs(other - cell)
                attacked |= {row, row - apart, row + apart}
        return "".join(v for v in ROWS if int(v) not in attacked)

    @staticmethod
    def write(cell: int, value: str) -> str:
        """A queen: the letter of its column and its row."""
        return COLUMNS[cell] + value

    @staticmethod
    @cache
    def parse(text: str) -> tuple[int, str]:
        """The column and the row that a text writes. Raises ValueError for anything else."""
        if _CELL.fullmatch(text) is None:
            raise ValueError(f"not a queen: {text!r}")
        return COLUMNS.index(text[0]), text[1]


@cache
def solutions() -> Solutions:
    """All 92 ways to place eight queens."""

    def fill(rows: str) -> list[str]:
        if len(rows) == 8:
            return [rows]
        board = rows + "." * (8 - len(rows))
        return [s for v in Queens.legal(board, len(rows)) for s in fill(rows + v)]

    return Solutions(fill(""))
