"""Boards whose blanks are filled one a line: what mini sudoku and eight queens have in common.

A board is a string with one character a cell and `.` for a blank. A line writes the next blank's
cell and value, and nothing else: the state is the set of what question and lines say. The hand that
makes the mistakes, `Board.careless_line`, looks at what attacks the cell now and mostly not ahead,
so a locally legal prefix can be lost long before it shows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar


class Solutions:
    """A set of completed boards, with those that agree with a partial board found by bit masks."""

    def __init__(self, boards: Sequence[str]) -> None:
        self.boards = tuple(boards)
        self._all = (1 << len(boards)) - 1
        cells = range(len(boards[0]))
        self._having: list[dict[str, int]] = [{".": self._all} for _ in cells]
        for i, board in enumerate(boards):
            for cell in cells:
                having = self._having[cell]
                having[board[cell]] = having.get(board[cell], 0) | 1 << i

    def completions(self, board: str) -> tuple[str, ...]:
        """All solutions that agree with a board where it is not blank."""
        return tuple(self._members(self._agreeing(board)))

    def count(self, board: str) -> int:
        """Number of solutions that agree with a board."""
        return self._agreeing(board).bit_count()

    def values(self, board: str, cell: int) -> str:
        """The values of a blank cell that some agreeing solution has, in order."""
        agreeing = self._agreeing(board)
        having = self._having[cell].items()
        return "".join(sorted(v for v, mask in having if v != "." and agreeing & mask))

    def _agreeing(self, board: str) -> int:
        agreeing = self._all
        for having, value in zip(self._having, board, strict=True):
            if value != ".":
                agreeing &= having.get(value, 0)
        return agreeing

    def _members(self, bits: int) -> Iterator[str]:
        while bits:
            lowest = bits & -bits
            yield self.boards[lowest.bit_length() - 1]
            bits ^= lowest


@dataclass(frozen=True, slots=True)
class Board:
    """One problem: a board with blanks, to be filled in the order of its cells.

    Attributes:
        board: the values given and `.` for a blank, in the order of the cells.
    """

    board: str

    task: ClassVar[str]
    values: ClassVar[str]  # what a cell can hold
    insight: ClassVar[float]  # how likely the solver knows a right value, where there is one
    slip: ClassVar[float]  # how likely it takes any value at all, or another cell

    @staticmethod
    @abstractmethod
    def solutions() -> Solutions:
        """All completed boards."""

    @staticmethod
    @abstractmethod
    def legal(board: str, cell: int) -> str:
        """The values of a cell that nothing on the board attacks."""

    @staticmethod
    @abstractmethod
    def write(cell: int, value: str) -> str:
        """A cell and its value as text."""

    @staticmethod
    @abstractmethod
    def parse(text: str) -> tuple[int, str]:
        """The cell and the value that a text writes. Raises ValueError for anything else."""

    @property
    def key(self) -> str:
        """Canonical name: equal keys are the same problem."""
        return f"{self.task}:{self.board}"

    def given(self) -> str:
        """What the question says of the board: the cells that are not blank."""
        return " ".join(self.write(i, v) for i, v in enumerate(self.board) if v != ".")

    def after(self, lines: Sequence[str]) -> str:
        """The board after lines. Raises ValueError for a line that writes no cell."""
        board = self.board
        for line in lines:
            cell, value = self.parse(line.removesuffix("\n"))
            board = board[:cell] + value + board[cell + 1 :]
        return board

    def answer(self, response: str) -> str:
        """What of a response is its answer: all of it."""
        return response

    def check(self, response: str | None) -> bool:
        """Whether a response fills every blank once, nothing else, and makes a solution."""
        lines = (response or "").split("\n")
        try:
            cells = [self.parse(line)[0] for line in lines]
        except ValueError:
            return False
        blanks = [i for i, v in enumerate(self.board) if v == "."]
        return sorted(cells) == blanks and self.solutions().count(self.after(lines)) == 1

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """All right next lines after right ones; only the final has no newline."""
        board = self.after(lines)
        cell = board.find(".")
        if cell < 0:
            return ()
        return tuple(self._line(board, cell, v) for v in self.solutions().values(board, cell))

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        if rng.random() < self.slip:
            return self.spoiled_line(lines, rng)
        board = self.after(lines)
        cell = board.index(".")
        known = self.solutions().values(board, cell) if rng.random() < self.insight else ""
        return self._line(board, cell, rng.choice(known or self.legal(board, cell) or self.values))

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to a right one, as a hard counterexample; it may be right."""
        board = self.after(lines)
        cell = board.index(".")
        if rng.random() < 0.3:
            cell = rng.choice([i for i in range(len(board)) if i != cell])
        return self._line(board, cell, rng.choice(self.values))

    def _line(self, board: str, cell: int, value: str) -> str:
        filled = board[:cell] + value + board[cell + 1 :]
        return self.write(cell, value) + ("\n" if "." in filled else "")
