"""Arithmetic for the embedded tiny model: ``Calculate ( 5 + -3 ) * 4.``, one operation per line.

Each line is the whole expression without spaces, the last the bare answer (``2*4\\n8``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from random import Random

from tiny_item import Item, Number

from ppl.tasks import arithmetic_key, held_out

_TOKEN = re.compile(r"\d+|[-+*()]")
MAX_DEPTH = 32  # nesting limit of the expression parser


class ExpressionError(ValueError):
    """The text is not an expression of the whitelisted grammar."""


class Parser:
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
    parser = Parser(text)
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
        weights = (15, 40, 45, 0, 0) if narrow else (15, 35, 33, 12, 5)
        terms = rng.choices((2, 3, 4, 5, 6), weights)[0]
        digits = 1 if narrow or rng.random() < 0.8 else 2
        expression = " ".join(_random_parts(rng, terms, digits))
        key = arithmetic_key(expression)
        if not held_out(key):
            compact = expression.replace(" ", "")
            question = f"Calculate {expression}."
            return Item("arithmetic", question, key, compact, arithmetic_solution(compact))


def good_arithmetic_steps(truth: str, steps: Sequence[str], ended: bool) -> int:
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
