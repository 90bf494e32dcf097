"""Countdown with `+` and `-`: make a target of all of 4 or 5 numbers, one more of them a line.

    Add and subtract 6,9,20,7 to make 30        20+9=29;6,7 / 20+9+7=36;6 / 20+9+7-6=30

Every line is the sum so far, its value and the numbers that remain; the last line has none. Values
stay within 0 and 99. The hand that makes the mistakes, `Countdown.careless_line`, often guesses: it
goes towards the target and looks ahead by one number only, so a locally legal prefix can be lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar, Self

TOP = 99  # largest value on the way
LOW, HIGH = 5, 40  # the numbers of a question
INSIGHT = 0.5  # how likely the solver knows a right line, where there is one; otherwise:
TOWARDS = 0.7  # how likely the solver moves towards the target rather than away from it
SEEN = 0.9  # ... takes the last number with the sign that makes the target, if one does
SLIP = 0.02  # ... miscalculates or miscopies a number

_LINE = re.compile(r"(\d{1,2}(?:[-+]\d{1,2})+)=(\d{1,2})(?:;(\d{1,2}(?:,\d{1,2})*))?")
_TERM = re.compile(r"[-+]?\d+")


@dataclass(frozen=True, slots=True)
class State:
    """What a line says: the terms so far, their claimed value, the numbers left."""

    terms: str
    value: int
    left: tuple[int, ...]

    def __str__(self) -> str:
        rest = ",".join(map(str, self.left))
        return f"{self.terms}={self.value}" + (f";{rest}\n" if rest else "")


@dataclass(frozen=True, slots=True)
class Countdown:
    """One problem.

    Attributes:
        numbers: what must all be used, in the order of the question.
        target: what they must make.
    """

    numbers: tuple[int, ...]
    target: int

    task: ClassVar[str] = "countdown"

    @property
    def question(self) -> str:
        """The task as words: the numbers and the target."""
        return f"Add and subtract {','.join(map(str, self.numbers))} to make {self.target}"

    @property
    def key(self) -> str:
        """Canonical name: equal keys are the same problem."""
        return f"countdown:{','.join(map(str, sorted(self.numbers)))}={self.target}"

    @classmethod
    def draw(cls, rng: Random) -> Self:
        """A random solvable problem: 4 or (twice as often) 5 distinct numbers, some to subtract."""
        while True:
            numbers = tuple(rng.sample(range(LOW, HIGH + 1), rng.choice((4, 5, 5))))
            target = sum(-n if rng.random() < 0.4 else n for n in numbers)
            if 1 <= target <= TOP and target < sum(numbers) and _startable(numbers, target):
                return cls(numbers, target)

    def check(self, answer: str | None) -> bool:
        """Whether the answer, `sum=target`, uses every number once and is right."""
        match = _LINE.fullmatch(answer) if answer and answer.isascii() else None
        if match is None or match[3]:
            return False
        terms = [int(t) for t in _TERM.findall(match[1])]
        used = Counter(abs(t) for t in terms) == Counter(self.numbers)
        return used and sum(terms) == int(match[2]) == self.target

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """All right next lines after right ones; only the final has no newline."""
        state = parse(lines[-1].rstrip("\n")) if lines else None
        return tuple(str(after) for after in self._right_moves(state))

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        state = parse(lines[-1].rstrip("\n")) if lines else None
        right = self._right_moves(state)
        after = (
            rng.choice(right) if right and rng.random() < INSIGHT else self._careless(state, rng)
        )
        if rng.random() < SLIP:
            return str(_slip(after, rng))
        return str(after)

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to a right one, as a hard counterexample; it may be right."""
        state = parse(lines[-1].rstrip("\n")) if lines else None
        moves = self._moves(state)
        if not moves or rng.random() < 0.4:
            return str(_slip(self._careless(state, rng), rng))
        return str(rng.choice(moves))

    def _careless(self, state: State | None, rng: Random) -> State:
        if state is None:
            first, second = rng.sample(self.numbers, 2)
            if first < second and rng.random() < TOWARDS:
                first, second = second, first
            state = State(str(first), first, tuple(n for n in self.numbers if n != first))
        else:
            second = rng.choice(state.left)
        signs = "+-" if state.value < self.target else "-+"
        sign = signs[rng.random() >= TOWARDS]
        if len(state.left) == 1 and rng.random() < SEEN:
            for s in "+-":
                if _value(state.value, s, second) == self.target:
                    sign = s
        if not 0 <= _value(state.value, sign, second) <= TOP:
            sign = "+" if sign == "-" else "-"
        return _after(state, sign, second)

    def _right_moves(self, state: State | None) -> list[State]:
        """Every legal next state from which the target can still be made."""
        return [
            after
            for after in self._moves(state)
            if reachable(after.value, tuple(sorted(after.left)), self.target)
        ]

    def _moves(self, state: State | None) -> list[State]:
        """Every legal next state."""
        if state is None:
            starts = [
                State(str(n), n, tuple(m for m in self.numbers if m != n)) for n in self.numbers
            ]
        else:
            starts = [state]
        return [
            _after(start, sign, n)
            for start in starts
            for n in start.left
            for sign in "+-"
            if 0 <= _value(start.value, sign, n) <= TOP
        ]


def parse(line: str) -> State:
    """The state that a line writes. Raises ValueError for anything else."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"not a line of a countdown: {line!r}")
    left = tuple(int(n) for n in match[3].split(",")) if match[3] else ()
    return State(match[1], int(match[2]), left)


@lru_cache(maxsize=1_000_000)
def reachable(value: int, left: tuple[int, ...], target: int) -> bool:
    """Whether the sorted numbers left can all be added or subtracted, in some order, to make the
    target without leaving 0 to 99 on the way."""
    if not left:
        return value == target
    return any(
        0 <= after <= TOP and reachable(after, left[:i] + left[i + 1 :], target)
        for i, n in enumerate(left)
        for after in (value + n, value - n)
    )


def _startable(numbers: tuple[int, ...], target: int) -> bool:
    return any(reachable(n, tuple(sorted(m for m in numbers if m != n)), target) for n in numbers)


def _value(value: int, sign: str, number: int) -> int:
    return value + number if sign == "+" else value - number


def _after(state: State, sign: str, number: int) -> State:
    at = state.left.index(number)
    left = state.left[:at] + state.left[at + 1 :]
    value = min(max(_value(state.value, sign, number), 0), TOP)
    return State(f"{state.terms}{sign}{number}", value, left)


def _slip(after: State, rng: Random) -> State:
    """A value that is off, or a miscopied number."""
    if after.left and rng.random() < 0.4:
        at = rng.randrange(len(after.left))
        other = min(max(after.left[at] + rng.choice((-10, -1, 1, 10)), 1), TOP)
        return State(after.terms, after.value, (*after.left[:at], other, *after.left[at + 1 :]))
    value = min(max(after.value + rng.choice((-10, -2, -1, 1, 2, 10)), 0), TOP)
    return State(after.terms, value, after.left)
