"""Problems, worked solutions and exact step labels for the embedded tiny model.

Everything here is our own generator: no item of any published data set is used.  Two tasks:

* ``arithmetic``: ``Calculate ( 5 + -3 ) * 4.`` solved by one operation per line, each line the
  whole expression without spaces, the last line the bare answer (``2*4\\n8``);
* ``countdown``: three or four numbers and a target, one operation per line with the numbers that
  remain, then the expression itself (``20+9=29;7,29\\n29-7=22;22\\n(20+9)-7``).

Training and evaluation are disjoint by construction: every problem has a canonical key, and a
key whose hash is 0 modulo 8 (:func:`ppl.tasks.held_out`) is never generated here, while the
evaluation keeps only such keys.

The question strings follow the templates of the Apache-2.0 package ``reasoning-gym``, so that
the model can be asked its questions verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import permutations
from os.path import commonprefix
from random import Random
from typing import Literal

from ppl.tasks import arithmetic_key, countdown_key, held_out

Task = Literal["arithmetic", "countdown"]
Number = int | Fraction

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


@dataclass(frozen=True)
class Item:
    """One training problem with a worked solution.

    ``truth`` is what the labels need: the compact expression (arithmetic) or
    ``"3,5,7=21"`` (countdown).  ``solution`` is the text before ``<|end|>``.
    """

    task: Task
    question: str
    key: str
    truth: str
    solution: str


# --- arithmetic -----------------------------------------------------------------------------

_TOKEN = re.compile(r"\d+|[-+*()]")
MAX_DEPTH = 32  # nesting limit of the expression parser


class ExpressionError(ValueError):
    """The text is not an expression of the whitelisted grammar."""


class _Parser:
    """Recursive descent over ``expr := term ([+-] term)*``, ``term := factor (* factor)*``,
    ``factor := -? (digits | "(" expr ")")``: nothing else is accepted.

    With ``division`` the term also takes ``/`` (exact, in rationals).
    """

    def __init__(self, text: str, division: bool = False) -> None:
        if not re.fullmatch(r"[0-9+*()/-]{1,200}", text) or ("/" in text and not division):
            raise ExpressionError(text)
        self.text = text
        self.at = 0
        self.operations = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def parse(self) -> Number:
        value = self.expression(0)
        if self.at != len(self.text):
            raise ExpressionError(self.text)
        return value

    def expression(self, depth: int) -> Number:
        value = self.term(depth)
        while self.peek() in ("+", "-"):
            sign = self.peek()
            self.at += 1
            self.operations += 1
            right = self.term(depth)
            value = value + right if sign == "+" else value - right
        return value

    def term(self, depth: int) -> Number:
        value = self.factor(depth)
        while self.peek() in ("*", "/"):
            sign = self.peek()
            self.at += 1
            self.operations += 1
            right = self.factor(depth)
            if sign == "*":
                value = value * right
            elif right == 0:
                raise ExpressionError(self.text)
            else:
                value = Fraction(value) / Fraction(right)
        return value

    def factor(self, depth: int) -> Number:
        negative = self.peek() == "-"
        self.at += negative
        if self.peek() == "(" and depth < MAX_DEPTH:
            self.at += 1
            value = self.expression(depth + 1)
            if self.peek() != ")":
                raise ExpressionError(self.text)
            self.at += 1
        else:
            digits = re.match(r"(?:0|[1-9][0-9]*)(?![0-9])", self.text[self.at :])
            if digits is None:
                raise ExpressionError(self.text)
            self.at += digits.end()
            self.numbers.append(int(digits[0]))
            value = int(digits[0])
        return -value if negative else value


def evaluate(text: str) -> tuple[Number, int]:
    """Value and number of binary operations of a compact ``+ - *`` expression."""
    parser = _Parser(text)
    return parser.parse(), parser.operations


def tokenize(compact: str) -> list[str | int]:
    """Signed integers, operators, ``(``, ``)`` and ``-(`` (a negated group) of an expression."""
    out: list[str | int] = []
    negative = False
    for token in _TOKEN.findall(compact):
        unary = not out or out[-1] in ("+", "-", "*", "(", "-(")
        if token == "-" and unary:
            negative = True
        elif token == "(":
            out.append("-(" if negative else "(")
            negative = False
        elif token.isdigit():
            out.append(-int(token) if negative else int(token))
            negative = False
        else:
            out.append(token)
    return out


def _reduce_flat(flat: Sequence[str | int]) -> list[str | int]:
    """One operation of a group-free ``[n, op, n, ...]``: the first ``*``, else the first."""
    at = flat.index("*") if "*" in flat else 1
    left, sign, right = flat[at - 1], flat[at], flat[at + 1]
    assert isinstance(left, int)
    assert isinstance(right, int)
    value = {"+": left + right, "-": left - right, "*": left * right}[str(sign)]
    return [*flat[: at - 1], value, *flat[at + 2 :]]


def _collapse(tokens: list[str | int]) -> list[str | int]:
    """Drop the parentheses of every group that holds a single number."""
    at = 1
    while at < len(tokens) - 1:
        number, before = tokens[at], tokens[at - 1]
        if isinstance(number, int) and before in ("(", "-(") and tokens[at + 1] == ")":
            tokens = [*tokens[: at - 1], number if before == "(" else -number, *tokens[at + 2 :]]
            at = max(1, at - 1)
        else:
            at += 1
    return tokens


def reduce_once(compact: str) -> str:
    """The expression after one more operation.

    The group that closes first goes first, inside it ``*`` before ``+ -``, then left to right; a
    group that has become one number loses its parentheses in the same line.
    """
    tokens = _collapse(tokenize(compact))
    if ")" in tokens:
        end = tokens.index(")")
        start = max(i for i in range(end) if tokens[i] in ("(", "-("))
        tokens = [*tokens[: start + 1], *_reduce_flat(tokens[start + 1 : end]), *tokens[end:]]
    elif len(tokens) > 1:
        tokens = _reduce_flat(tokens)
    return "".join(map(str, _collapse(tokens)))


def arithmetic_solution(compact: str) -> str:
    """The worked solution: one line per operation, the last line the bare answer."""
    lines = [reduce_once(compact)]
    while not re.fullmatch(r"-?\d+", lines[-1]):
        lines.append(reduce_once(lines[-1]))
    return "\n".join(lines)


def _random_parts(rng: Random, terms: int, digits: int) -> list[str]:
    """Space-separated pieces of a random expression with groups and negated groups."""
    left = rng.randint(1, terms)
    parts: list[str] = []
    if left > 1 and rng.random() < 0.5:
        inner = _random_parts(rng, left, digits)
        parts += ["-(" if rng.random() < 0.5 else "(", *inner, ")"]
    else:
        bound = 10**digits - 1
        for i in range(left):
            parts += [rng.choice("+-*")] if i else []
            parts.append(str(rng.randint(-bound, bound)))
    if left < terms:
        parts += [rng.choice("+-*"), *_random_parts(rng, terms - left, digits)]
    return parts


def arithmetic_item(rng: Random, narrow: bool = False) -> Item:
    """A random non-held-out arithmetic problem: 2-6 terms of 1-2 digits (narrow: 2-4 of 1)."""
    while True:
        weights = (20, 45, 35, 0, 0) if narrow else (15, 35, 33, 12, 5)
        terms = rng.choices((2, 3, 4, 5, 6), weights)[0]
        digits = 1 if narrow or rng.random() < 0.8 else 2
        expression = " ".join(_random_parts(rng, terms, digits))
        key = arithmetic_key(expression)
        if not held_out(key):
            compact = expression.replace(" ", "")
            question = f"Calculate {expression}."
            return Item("arithmetic", question, key, compact, arithmetic_solution(compact))


# --- countdown ------------------------------------------------------------------------------


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


def countdown_solution(numbers: Sequence[int], target: int, rng: Random) -> str | None:
    """A worked solution drawn uniformly over the good moves of each step; None without one."""
    if target not in natural_reachable(tuple(sorted(numbers))):
        return None
    left: list[tuple[int, str]] = [(n, str(n)) for n in numbers]
    lines: list[str] = []
    while len(left) > 1:
        state = tuple(sorted(n for n, _ in left))
        good = [m for m in natural_moves(state) if target in natural_reachable(m[4])]
        a, sign, b, value, _ = rng.choice(good)
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
    """A random non-held-out countdown problem: 3-4 numbers up to 10 or 20, target 10-99.

    Narrow: three numbers up to 12 or 20.
    """
    while True:
        count = 3 if narrow or rng.random() < 0.75 else 4
        top = (12 if narrow else 10) if rng.random() < 0.6 else 20
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


def training_item(rng: Random, narrow: bool = False) -> Item:
    """One problem of the training mixture, never held out: 45% arithmetic, 55% countdown.

    The narrow mixture, near the difficulty that is evaluated, is for the end of training.
    """
    return arithmetic_item(rng, narrow) if rng.random() < 0.45 else countdown_item(rng, narrow)


# --- exact labels ---------------------------------------------------------------------------


def step_labels(task: Task, truth: str, steps: Sequence[str], ended: bool = True) -> list[bool]:
    """One label per step: the prefix up to it is right and can still be completed.

    ``steps`` are the lines of a response.  With ``ended`` the last one is the final line
    (followed by ``<|end|>``); otherwise every step was followed by a newline.
    """
    check = _arithmetic_steps if task == "arithmetic" else _countdown_steps
    good = check(truth, steps, ended)
    return [i < good for i in range(len(steps))]


def _arithmetic_steps(truth: str, steps: Sequence[str], ended: bool) -> int:
    """Number of leading steps that are right."""
    value, operations = evaluate(truth)
    for i, step in enumerate(steps):
        final = ended and i == len(steps) - 1
        try:
            step_value, step_operations = evaluate(step)
        except ExpressionError:
            return i
        if step_value != value or step_operations >= operations:
            return i
        # After a bare integer no operation is left, so only the final line may be one.
        if final != (re.fullmatch(r"-?\d+", step) is not None):
            return i
        operations = step_operations
    return len(steps)


_STEP = re.compile(r"(\d{1,9})([-+*/])(\d{1,9})=(\d{1,9});(\d{1,9}(?:,\d{1,9}){0,5})")


def _countdown_steps(truth: str, steps: Sequence[str], ended: bool) -> int:
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


def countdown_character_labels(
    truth: str, steps: Sequence[str], ended: bool = True
) -> list[list[bool | None]]:
    """For every character of every step, whether the text up to it can still be completed.

    The same meaning as :func:`step_labels` gives to whole steps.  The characters of a final
    expression after right steps are left open (None).
    """
    numbers_text, target_text = truth.split("=")
    left = tuple(sorted(int(n) for n in numbers_text.split(",")))
    out: list[list[bool | None]] = []
    for i, (step, good) in enumerate(
        zip(steps, step_labels("countdown", truth, steps, ended), strict=True)
    ):
        if i and not step_labels("countdown", truth, steps[:i], False)[-1]:
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
        parser = _Parser(expression, division=True)
        value = parser.parse()
    except ExpressionError:
        return False
    return value == target and sorted(parser.numbers) == sorted(numbers)
