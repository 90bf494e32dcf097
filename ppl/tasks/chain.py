"""Chain arithmetic: 6 to 12 terms from left to right, one operation a line.

    Calculate from left to right: 34+7-5*2        41-5*2 / 36*2 / 72

Every line is the expression that remains, the last the bare result. All values stay within 0 to 99.
The hand that makes the mistakes is `Chain.careless_line`: it has the procedural bugs of pupils
(Brown and Burton 1978, "Diagnostic models for procedural bugs in basic mathematical skills"): it
forgets to carry, it takes the smaller digit from the larger where it should borrow, it takes the
neighbour in the multiplication table. Some bugs are more likely than the right result, so the most
likely line is often a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

MIN_TERMS, MAX_TERMS = 6, 12
TOP = 99  # largest value on the way
NO_CARRY = 0.1  # how likely the solver forgets to carry where one must
NO_BORROW = 0.2  # ... takes the smaller digit from the larger where one must borrow
FROM_ZERO = 0.6  # ... the same where the upper digit is 0 ("0 - N = N")
TABLE = 0.1  # ... takes the neighbour in the table of a factor
HARD_TABLE = 0.6  # ... the same where a factor is 7 or 8
SLIP = 0.01  # ... slips in any other way: a miscopied operator or term, or one off

_LINE = re.compile(r"(\d{1,2})((?:[-+*]\d{1,2})*)")
_TERM = re.compile(r"([-+*])(\d{1,2})")


@dataclass(frozen=True, slots=True)
class Chain:
    """One problem.

    Attributes:
        expression: numbers and `+ - *` without spaces, to be worked from left to right.
    """

    expression: str

    task: ClassVar[str] = "chain"

    @property
    def question(self) -> str:
        """The task as words: what to calculate."""
        return f"Calculate from left to right: {self.expression}"

    @property
    def key(self) -> str:
        """Canonical name: equal keys are the same problem."""
        return f"chain:{self.expression}"

    @classmethod
    def draw(cls, rng: Random, min_terms: int = MIN_TERMS, max_terms: int = MAX_TERMS) -> Self:
        """A random problem: additions and subtractions of up to 40, some factors of 2 to 9."""
        terms = rng.randint(min_terms, max_terms)
        value = rng.randint(1, 50)
        text = str(value)
        for _ in range(terms - 1):
            choices = [("+", n) for n in range(2, min(40, TOP - value) + 1)]
            choices += [("-", n) for n in range(2, min(40, value) + 1)]
            factors = [("*", n) for n in range(2, 10) if value > 1 and value * n <= TOP]
            sign, other = rng.choice(factors if factors and rng.random() < 0.3 else choices)
            value = operate(value, sign, other)
            text += f"{sign}{other}"
        return cls(text)

    def check(self, answer: str | None) -> bool:
        """Whether an answer is the result."""
        value, rest = parse(self.expression)
        for sign, other in rest:
            value = operate(value, sign, other)
        return answer == str(value)

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """The right next lines after right ones (one, here); only the final has no newline."""
        value, rest = parse(lines[-1].rstrip("\n") if lines else self.expression)
        return (write(operate(value, *rest[0]), rest[1:]),) if rest else ()

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        value, rest = parse(lines[-1].rstrip("\n") if lines else self.expression)
        (sign, other), rest = rest[0], rest[1:]
        if rng.random() < SLIP:
            return _slip(value, sign, other, rest, rng)
        return write(_buggy(value, sign, other, rng), rest)

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to the right one, as a hard counterexample; it may be right."""
        value, rest = parse(lines[-1].rstrip("\n") if lines else self.expression)
        (sign, other), rest = rest[0], rest[1:]
        if rng.random() < 0.4:
            return _slip(value, sign, other, rest, rng)
        near = operate(value, sign, other) + rng.choice((-20, -10, -9, -2, -1, 1, 2, 9, 10, 20))
        return write(_two_digits(near), rest)


def parse(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """First number, and the signs and numbers that follow. Raises ValueError for anything else."""
    match = _LINE.fullmatch(expression)
    if match is None:
        raise ValueError(f"not a chain of at most two-digit numbers: {expression!r}")
    return int(match[1]), [(sign, int(n)) for sign, n in _TERM.findall(match[2])]


def write(value: int, rest: Sequence[tuple[str, int]]) -> str:
    """The line for a state: the final line has no newline."""
    return str(value) + "".join(f"{sign}{n}" for sign, n in rest) + ("\n" if rest else "")


def operate(value: int, sign: str, other: int) -> int:
    """The right result of one operation."""
    return value + other if sign == "+" else value - other if sign == "-" else value * other


def _two_digits(value: int) -> int:
    """Wrong values too are written without a sign and with at most two digits."""
    return abs(value) % (TOP + 1)


def _buggy(a: int, sign: str, b: int, rng: Random) -> int:
    """The value that a pupil with procedural bugs writes for `a sign b`."""
    right = operate(a, sign, b)
    if sign == "+" and a % 10 + b % 10 >= 10 and rng.random() < NO_CARRY:
        right -= 10
    elif sign == "-" and a % 10 < b % 10:
        if rng.random() < (NO_BORROW if a % 10 else FROM_ZERO):
            right = 10 * (a // 10 - b // 10) + b % 10 - a % 10
    elif sign == "*" and rng.random() < (HARD_TABLE if {a, b} & {7, 8} else TABLE):
        right += rng.choice((-1, 1)) * a
    return _two_digits(right)


def _slip(value: int, sign: str, other: int, rest: list[tuple[str, int]], rng: Random) -> str:
    """One of the rare slips: another operator, one or ten off, or a miscopied remainder."""
    kind = rng.random()
    if kind < 0.3:
        sign = rng.choice([s for s in "+-*" if s != sign])
    elif kind < 0.6 or not rest:
        other += rng.choice((-10, -1, 1, 10))
    else:
        rest = list(rest)
        at = rng.randrange(len(rest))
        if rng.random() < 0.3 and len(rest) > 1:
            del rest[at]
        elif rng.random() < 0.3:
            rest[at] = (rng.choice([s for s in "+-*" if s != rest[at][0]]), rest[at][1])
        else:
            rest[at] = (rest[at][0], _two_digits(rest[at][1] + rng.choice((-10, -1, 1, 10))))
    return write(_two_digits(operate(value, sign, other)), rest)
