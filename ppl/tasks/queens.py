"""Ten queens: 4 to 8 columns of a 10 by 10 board without a queen, one column a line.

    Place ten queens: a3 d6 h2 i8        b7 / c9 / and so on

No two queens may share a row or a diagonal. There are 724 ways to place ten queens (Sloane's
A000170), so what remains possible after a few of them is seldom what looks possible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Self

from ppl.tasks.boards import Board, Solutions

MIN_BLANKS, MAX_BLANKS = 4, 8
COLUMNS, ROWS = "abcdefghij", "0123456789"

_CELL = re.compile(r"[a-j][0-9]")


@dataclass(frozen=True, slots=True)
class Queens(Board):
    """One problem: of every column, the row of its queen or `.`."""

    task: ClassVar[str] = "queens"
    values: ClassVar[str] = ROWS
    insight: ClassVar[float] = 0.25
    slip: ClassVar[float] = 0.01

    @property
    def question(self) -> str:
        """The task as words: the queens that stand."""
        return f"Place ten queens: {self.given()}"

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random problem: a random solution without some of its queens."""
        solution = rng.choice(solutions().boards)
        gone = set(rng.sample(range(10), rng.randint(MIN_BLANKS, MAX_BLANKS)))
        return cls("".join("." if i in gone else v for i, v in enumerate(solution)))

    @staticmethod
    def solutions() -> Solutions:
        """All ways to place ten queens."""
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
    def parse(text: str) -> tuple[int, str]:
        """The column and the row that a text writes. Raises ValueError for anything else."""
        if _CELL.fullmatch(text) is None:
            raise ValueError(f"not a queen: {text!r}")
        return COLUMNS.index(text[0]), text[1]


@cache
def solutions() -> Solutions:
    """All 724 ways to place ten queens."""

    def fill(rows: str) -> list[str]:
        if len(rows) == 10:
            return [rows]
        board = rows + "." * (10 - len(rows))
        return [s for v in Queens.legal(board, len(rows)) for s in fill(rows + v)]

    return Solutions(fill(""))
