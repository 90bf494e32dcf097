"""Chain arithmetic: 6 to 12 terms from left to right, one named step a line.

    Start with 34: a+7 b-5 c*2        a=41 / b=36 / c=72

Every line names a step and the value after it. All values stay within 0 to 99.
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
SLIP = 0.01  # ... slips in any other way: another operator, another step's term, or one off
STEPS = "abcdefghijkl"

_EXPRESSION = re.compile(r"(\d{1,2})((?:[-+*]\d{1,2}){1,12})")
_LINE = re.compile(r"([a-l])=(\d{1,2})")
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
        value, terms = parse(self.expression)
        steps = (f"{name}{sign}{n}" for name, (sign, n) in zip(STEPS, terms, strict=False))
        return f"Start with {value}: {' '.join(steps)}"

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

    def answer(self, response: str) -> str:
        """What of a response is its answer: the last line."""
        return response.rsplit("\n", 1)[-1]

    def check(self, response: str | None) -> bool:
        """Whether a response ends with the last step and the right result."""
        value, terms = parse(self.expression)
        for sign, other in terms:
            value = operate(value, sign, other)
        return response is not None and self.answer(response) == self._line(len(terms) - 1, value)

    def right_lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """The right next lines after right ones (one, here); only the final has no newline."""
        at, value, terms = self._state(lines)
        return (self._line(at, operate(value, *terms[at])),) if at < len(terms) else ()

    def careless_line(self, lines: Sequence[str], rng: Random) -> str:
        """What the careless solver writes next, after lines of its own or right ones."""
        at, value, terms = self._state(lines)
        if rng.random() < SLIP:
            return self._line(at, _slip(value, terms, at, rng))
        return self._line(at, _buggy(value, *terms[at], rng))

    def spoiled_line(self, lines: Sequence[str], rng: Random) -> str:
        """A line that is close to the right one, as a hard counterexample; it may be right."""
        at, value, terms = self._state(lines)
        if rng.random() < 0.5:
            return self._line(at, _slip(value, terms, at, rng))
        near = operate(value, *terms[at]) + rng.choice((-20, -10, -9, -2, -1, 1, 2, 9, 10, 20))
        return self._line(at, _two_digits(near))

    def _state(self, lines: Sequence[str]) -> tuple[int, int, list[tuple[str, int]]]:
        """The next step, the value before it, and all terms."""
        value, terms = parse(self.expression)
        if not lines:
            return 0, value, terms
        match = _LINE.fullmatch(lines[-1].removesuffix("\n"))
        if match is None:
            raise ValueError(f"not a step and its value: {lines[-1]!r}")
        return STEPS.index(match[1]) + 1, int(match[2]), terms

    def _line(self, at: int, value: int) -> str:
        last = at + 1 == sum(c in "+-*" for c in self.expression)
        return f"{STEPS[at]}={value}" + ("" if last else "\n")


def parse(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """First number, and the signs and numbers that follow. Raises ValueError for anything else."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise ValueError(f"not a chain of at most two-digit numbers: {expression!r}")
    return int(match[1]), [(sign, int(n)) for sign, n in _TERM.findall(match[2])]


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


def _slip(value: int, terms: Sequence[tuple[str, int]], at: int, rng: Random) -> int:
    """The value after one of the rare slips."""
    sign, other = terms[at]
    kind = rng.random()
    if kind < 0.3:
        sign = rng.choice([s for s in "+-*" if s != sign])
    elif kind < 0.6 or len(terms) == 1:
        other += rng.choice((-10, -1, 1, 10))
    else:
        sign, other = rng.choice([t for i, t in enumerate(terms) if i != at])
    return _two_digits(operate(value, sign, other))
