"""Countdown for the embedded tiny model: reach a target from three or four numbers.

One operation per line with the numbers that remain, then the expression itself
(``20+9=29;7,29\\n29-7=22;22\\n(20+9)-7``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import permutations
from os.path import commonprefix
from random import Random

from tiny_arithmetic import ExpressionError, Parser
from tiny_item import Item, Number

from ppl.tasks import countdown_key, held_out

COUNTDOWN_TEMPLATES = (
    """Using all the numbers {numbers}, create an expression that equals {target}.
You can only use each number once.""",
    """Find a way to make {target} using all of these numbers: {numbers}.
Each number can only be used once.""",
    """Calculate {target} using all of these numbers: {numbers}.
Each number may be used at most once.""",
)
COUNTDOWN_FORMAT = """

Final answer format instructions:
1. Provide your solution as a arithmetic expression (no '=' sign).
2. Do not include the target number in the expression.
3. Use '*' for multiplication.
4. Use '/' for division.
5. Do not include any other text or formatting.
"""


def _moves(
    numbers: tuple[Number, ...],
) -> list[tuple[Number, str, Number, Number, tuple[Number, ...]]]:
    """Every ``(a, op, b, result, sorted numbers after it)`` on a sorted multiset, in rationals."""
    out = []
    for i in range(len(numbers)):
        for j in range(i):
            small, large = numbers[j], numbers[i]
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            results: list[tuple[Number, str, Number, Number]] = [
                (large, "+", small, large + small),
                (large, "-", small, large - small),
                (large, "*", small, large * small),
            ]
            if small:
                results.append((large, "/", small, _tidy(Fraction(large) / Fraction(small))))
            if large != small:
                results.append((small, "-", large, small - large))
                if large:
                    results.append((small, "/", large, _tidy(Fraction(small) / Fraction(large))))
            for a, sign, b, value in results:
                out.append((a, sign, b, value, tuple(sorted([*rest, value]))))
    return out


def _tidy(value: Fraction) -> Number:
    """An integer where the fraction is one: integers are faster and print without ``/1``."""
    return value.numerator if value.denominator == 1 else value


@lru_cache(maxsize=400_000)
def reachable(numbers: tuple[Number, ...]) -> frozenset[Number]:
    """Values of all expressions that use every number of the sorted multiset exactly once.

    Intermediate results are rationals of either sign: this is the truth of the judge, which
    accepts any expression, not only those with non-negative integer steps.
    """
    if len(numbers) == 1:
        return frozenset(numbers)
    if len(numbers) == 2:
        return frozenset(move[3] for move in _moves(numbers))
    return frozenset().union(*(reachable(after) for *_, after in _moves(numbers)))


@lru_cache(maxsize=400_000)
def natural_reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """Like :func:`reachable` where every intermediate result is a non-negative integer."""
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(natural_reachable(m[4]) for m in natural_moves(numbers)))


@lru_cache(maxsize=400_000)
def natural_moves(
    numbers: tuple[int, ...],
) -> tuple[tuple[int, str, int, int, tuple[int, ...]], ...]:
    """The moves a written solution may make: larger operand first, exact division only."""
    out: dict[tuple[int, str, int], tuple[int, str, int, int, tuple[int, ...]]] = {}
    for i in range(len(numbers)):
        for j in range(i):
            b, a = numbers[j], numbers[i]
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            results = [("+", a + b), ("-", a - b), ("*", a * b)]
            if b and a % b == 0:
                results.append(("/", a // b))
            for sign, value in results:
                out[a, sign, b] = (a, sign, b, value, tuple(sorted([*rest, value])))
    return tuple(out.values())


@lru_cache(maxsize=400_000)
def natural_paths(numbers: tuple[int, ...], target: int) -> int:
    """Number of sequences of natural moves from a sorted multiset to the target."""
    if len(numbers) == 1:
        return int(numbers[0] == target)
    return sum(natural_paths(m[4], target) for m in natural_moves(numbers))


def countdown_solution(numbers: Sequence[int], target: int, rng: Random) -> str | None:
    """A worked solution drawn uniformly over all of them; None without one.

    Uniform over whole solutions, not over the good moves of each step: a decoder that imitates
    it leans to the moves after which more ways to finish remain.
    """
    left: list[tuple[int, str]] = [(n, str(n)) for n in numbers]
    lines: list[str] = []
    while len(left) > 1:
        state = tuple(sorted(n for n, _ in left))
        moves = natural_moves(state)
        ways = [natural_paths(move[4], target) for move in moves]
        if not any(ways):
            return None
        a, sign, b, value, _ = rng.choices(moves, ways)[0]
        first = left.pop([n for n, _ in left].index(a))
        second = left.pop([n for n, _ in left].index(b))
        left.append((value, f"{_group(first[1])}{sign}{_group(second[1])}"))
        lines.append(f"{a}{sign}{b}={value};{','.join(str(n) for n, _ in left)}")
    return "\n".join([*lines, left[0][1]])


def slipping_countdown(numbers: Sequence[int], target: int, rng: Random) -> str:
    """A countdown response with the kinds of mistakes the decoder makes.

    Dead-end moves, wrong results, a last result bent to the target, a miscopied number.  Cheap
    material for the verifier, which is labelled exactly like the decoder's own responses.
    """
    left: list[tuple[int, str]] = [(n, str(n)) for n in numbers]
    lines: list[str] = []
    while len(left) > 1:
        moves = natural_moves(tuple(sorted(n for n, _ in left)))
        good = [m for m in moves if target in natural_reachable(m[4])]
        a, sign, b, value, _ = rng.choice(good if good and rng.random() < 0.5 else moves)
        if len(left) == 2 and rng.random() < 0.6:
            value = target
        elif rng.random() < 0.15:
            value = max(0, value + rng.choice((-10, -2, -1, 1, 2, 10)))
        first = left.pop([n for n, _ in left].index(a))
        second = left.pop([n for n, _ in left].index(b))
        if left and rng.random() < 0.05:
            left[0] = (rng.choice(numbers), left[0][1])
        left.append((value, f"{_group(first[1])}{sign}{_group(second[1])}"))
        lines.append(f"{a}{sign}{b}={value};{','.join(str(n) for n, _ in left)}")
    return "\n".join([*lines, left[0][1]])


def _group(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"


def countdown_question(numbers: Sequence[int], target: int, template: int) -> str:
    """The full question text, format instructions included."""
    text = COUNTDOWN_TEMPLATES[template]
    return text.format(numbers=", ".join(map(str, numbers)), target=target) + COUNTDOWN_FORMAT


def countdown_item(rng: Random, narrow: bool = False) -> Item:
    """A random non-held-out countdown problem: 3-4 numbers up to 12 or 20, target 10-99.

    Narrow, fewer with three numbers and more of the smaller numbers.
    """
    while True:
        count = 3 if rng.random() < (0.45 if narrow else 0.75) else 4
        top = 12 if rng.random() < (0.75 if narrow else 0.6) else 20
        numbers = [rng.randint(1, top) for _ in range(count)]
        value = numbers[0]
        for other in numbers[1:]:
            signs = "+-*/" if value % other == 0 else "+-*"
            sign = rng.choice(signs)
            value = {"+": value + other, "-": value - other, "*": value * other}.get(
                sign, value // other
            )
        rng.shuffle(numbers)
        key = countdown_key(numbers, value)
        if not 10 <= value <= 99 or held_out(key):
            continue
        solution = countdown_solution(numbers, value, rng)
        if solution is not None:
            question = countdown_question(numbers, value, rng.randrange(3))
            truth = f"{','.join(map(str, numbers))}={value}"
            return Item("countdown", question, key, truth, solution)


_STEP = re.compile(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,9});(\d{1,9}(?:,\d{1,9}){0,5})")


def good_countdown_steps(truth: str, steps: Sequence[str], ended: bool) -> int:
    """Number of leading steps that are right."""
    numbers_text, target_text = truth.split("=")
    given, target = [int(n) for n in numbers_text.split(",")], int(target_text)
    left = tuple(sorted(given))
    for i, step in enumerate(steps):
        if ended and i == len(steps) - 1:
            return i + _solves(step, given, target)
        after = _apply(step, left)
        if after is None or target not in reachable(after):
            return i
        left = after
    return len(steps)


@lru_cache(maxsize=100_000)
def good_lines(left: tuple[int, ...], target: int) -> tuple[str, ...]:
    """Every line that writes a good operation on a sorted multiset."""
    lines = []
    for a, sign, b, value, after in _moves(left):
        if not isinstance(value, int) or value < 0 or target not in reachable(after):
            continue
        rest = list(after)
        orders = {",".join(map(str, order)) for order in permutations(rest)}
        heads = {f"{a}{sign}{b}", f"{b}{sign}{a}" if sign in "+*" else f"{a}{sign}{b}"}
        lines += [f"{head}={value};{order}" for head in heads for order in orders]
    return tuple(lines)


def countdown_characters(
    truth: str, steps: Sequence[str], labels: Sequence[bool], ended: bool
) -> list[list[bool | None]]:
    """For every character of every step, whether the text up to it can still be completed.

    The same meaning as the given labels of whole steps.  The characters of a final expression
    after right steps are left open (None).
    """
    numbers_text, target_text = truth.split("=")
    left = tuple(sorted(int(n) for n in numbers_text.split(",")))
    out: list[list[bool | None]] = []
    for i, (step, good) in enumerate(zip(steps, labels, strict=True)):
        if i and not labels[i - 1]:
            out.append([False] * len(step))
        elif ended and i == len(steps) - 1:
            out.append([None] * len(step))
        else:
            lines = good_lines(left, int(target_text))
            right = max((len(commonprefix([line, step])) for line in lines), default=0)  # noqa: RUF071
            out.append([True] * right + [False] * (len(step) - right))
            left = (_apply(step, left) or left) if good else left
    return out


def _apply(step: str, left: tuple[int, ...]) -> tuple[int, ...] | None:
    """The multiset after a written operation, or None where the line is not right."""
    match = _STEP.fullmatch(step)
    if match is None or not step.isascii():
        return None
    a, b, result = int(match[1]), int(match[3]), int(match[4])
    numbers = list(left)
    for n in (a, b):
        if n not in numbers:
            return None
        numbers.remove(n)
    exact: Number | None = {"+": a + b, "-": a - b, "*": a * b}.get(match[2])
    if exact is None:
        exact = Fraction(a, b) if b else None
    after = tuple(sorted([*numbers, result]))
    written = tuple(sorted(int(n) for n in match[5].split(",")))
    return after if exact == result and written == after else None


def _solves(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses every number once and equals the target."""
    try:
        parser = Parser(expression, division=True)
        value = parser.parse()
    except ExpressionError:
        return False
    return value == target and sorted(parser.numbers) == sorted(numbers)
