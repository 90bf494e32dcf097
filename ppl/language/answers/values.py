"""Are two terms the same function? Exactly for rationals, else by value at fixed random points.

Two different rational functions of degree d agree at m random points from S numbers with
probability (d / S)^m at most (Schwartz 1980, Zippel 1979). Irrational values are computed with 80
digits: they are the same if they agree in 40, different if they differ clearly, and otherwise it is
unknown.
"""

from __future__ import annotations

import hashlib
import math
import threading
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

from ppl.language.answers.notation import UnreadableError
from ppl.language.answers.terms import Tree, has

DIGITS = 80
POINTS = ("+", "+ again", "-", "mixed", "+ far", "- far")
"""Where terms are compared: the signs of the variables, which are near 2 or, far, near 10^6."""
_MAX_BITS = 40_000  # of an exact number
_MAX_LOG = 1e9  # |log| of a number

Value: TypeAlias = Any
"""A Fraction, or a complex number of mpmath, which has no types."""


class Equality(Enum):
    """Whether two answers are equal. `UNKNOWN` is an answer too: no silent no."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        raise TypeError("an Equality has three values: compare it with Equality.EQUAL")


_local = threading.local()


def _context() -> Any:
    """Arithmetic with `DIGITS` digits, one for each thread: mpmath's functions change it."""
    if not hasattr(_local, "context"):
        from mpmath.ctx_mp import MPContext

        _local.context = MPContext()
        _local.context.dps = DIGITS
    return _local.context


def same_value(a: Tree, b: Tree) -> Equality:
    """Whether two terms are the same function of their variables.

    Terms that are the same for positive variables only (such as `sqrt(x^2)` and `x`) are unknown.
    """
    if a == b:
        return Equality.EQUAL
    if _untold(a) or _untold(b):
        return Equality.UNKNOWN
    found = [_close(x, y) for x, y in zip(values(a), values(b), strict=True)]
    known = [f for f in found if f is not None]
    if not known:
        return Equality.UNKNOWN
    if all(f is Equality.EQUAL for f in known):
        return Equality.EQUAL
    positive = [f for f, point in zip(found, POINTS, strict=True) if point.startswith("+")]
    return Equality.DIFFERENT if Equality.DIFFERENT in positive else Equality.UNKNOWN


def _untold(tree: Tree) -> bool:
    """Whether values at points cannot tell: a logarithm without a base is natural to some and
    decimal to others, and a step function is constant nearly everywhere."""
    steps = has(tree, "floor") or has(tree, "ceil")
    return has(tree, "log") or (steps and bool(free(tree)))


def _close(x: Value | None, y: Value | None) -> Equality | None:
    """None if neither has a value."""
    if x is None and y is None:
        return None
    if x is None or y is None:
        return Equality.UNKNOWN
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return Equality.EQUAL if x == y else Equality.DIFFERENT
    ctx = _context()
    x, y = _inexact(x), _inexact(y)
    difference, scale = abs(x - y), max(abs(x), abs(y))
    if difference <= scale * ctx.mpf(10) ** -40:
        return Equality.EQUAL
    clear = ctx.mpf(10) ** -25
    return Equality.DIFFERENT if difference > clear * max(1, scale) else Equality.UNKNOWN


def rounds_to(term: Tree, decimal: Tree, places: int) -> bool:
    """Whether a real constant rounds to a decimal with so many places and six digits at least."""
    exact, rounded = values(term)[0], values(decimal)[0]
    if not free(term) and exact is not None and rounded is not None:
        step = _context().mpf(10) ** -places
        exact, rounded = _inexact(exact), _inexact(rounded)
        significant = abs(rounded) >= 10**5 * step
        return bool(significant and abs(exact - rounded) <= step / 2)
    return False


def constant_ratio(a: Tree, b: Tree) -> tuple[bool | None, int]:
    """Whether `a` is a nonzero constant times `b` (None: unknown), and that constant's sign."""
    rows = [(x, y) for x, y in zip(values(a), values(b), strict=True) if x is not None]
    if len(rows) < 2 or any(y is None for _, y in rows):
        return None, 0
    (x0, y0), *rest = rows
    if _zero(x0) or _zero(y0):
        return None, 0
    for x, y in rest:
        try:
            same = _close(_times(x0, y), _times(x, y0))
        except UnreadableError:
            return None, 0
        if same is not Equality.EQUAL:
            return (False if same is Equality.DIFFERENT else None), 0
    ratio = _inexact(x0) / _inexact(y0)
    return True, 0 if abs(ratio.imag) > 1e-30 else (1 if ratio.real > 0 else -1)


def affine(tree: Tree) -> bool:
    """Whether a term is of degree one at most by its form."""
    return _degree(tree) <= 1


def _degree(tree: Tree) -> float:
    match tree[0]:
        case "symbol":
            return 0 if tree[1] in ("i", "e", "\\pi", "\\infty") else 1
        case "number" | "degree":
            return 0
        case "neg":
            return _degree(tree[1])  # type: ignore[arg-type]
        case "sum":
            return max(_degree(t) for t in tree[1:])  # type: ignore[arg-type]
        case "product":
            return math.fsum(_degree(t) for t in tree[1:])  # type: ignore[arg-type]
    return math.inf if free(tree) else 0


@lru_cache(maxsize=8192)
def free(tree: Tree) -> frozenset[str]:
    """The names of a term's variables."""
    if tree[0] == "symbol":
        return frozenset() if tree[1] in ("i", "e", "\\pi") else frozenset([str(tree[1])])
    found: set[str] = set()
    for branch in tree[1:]:
        if isinstance(branch, tuple):
            found |= free(branch)
    return frozenset(found)


@lru_cache(maxsize=8192)
def values(tree: Tree) -> tuple[Value | None, ...]:
    """The term at each of `POINTS`; None where it has no value or none that can be afforded."""
    found: list[Value | None] = []
    for point in POINTS if free(tree) else POINTS[:1]:
        try:
            found.append(_value(tree, point))
        except (UnreadableError, ArithmeticError, ValueError):
            found.append(None)
    return tuple(found) if len(found) > 1 else tuple(found * len(POINTS))


@lru_cache(maxsize=8192)
def _variable(name: str, point: str) -> Fraction:
    """A fixed random rational between 1 and 3."""
    digest = hashlib.blake2b(f"{point}:{name}".encode(), digest_size=8).digest()
    size = 1 + Fraction(int.from_bytes(digest[:3], "big") % 19_997 + 1, 10_007)
    size *= 10**6 if point.endswith("far") else 1
    negative = point.startswith("-") or (point == "mixed" and digest[7] % 2 == 0)
    return -size if negative and name != "\\infty" else size


def _value(tree: Tree, point: str) -> Value:
    operation, *rest = tree
    match operation:
        case "number":
            return rest[0]
        case "symbol":
            return _symbol(str(rest[0]), point)
        case "degree":
            return _context().pi / 180
    arguments = [_value(branch, point) for branch in rest if isinstance(branch, tuple)]
    match operation:
        case "neg":
            return -arguments[0]
        case "sum":
            total = arguments[0]
            for term in arguments[1:]:
                total = _plus(total, term)
            return total
        case "product":
            total = arguments[0]
            for factor in arguments[1:]:
                total = _times(total, factor)
            return total
        case "inverse":
            if _zero(arguments[0]):
                raise UnreadableError("division by zero")
            return 1 / arguments[0]
        case "power":
            return _power(*arguments)
        case "root":
            return _root(*arguments)
        case "abs":
            return abs(arguments[0])
    return _special(str(operation), arguments)


def _symbol(name: str, point: str) -> Value:
    ctx = _context()
    match name:
        case "\\pi":
            return +ctx.pi
        case "e":
            return +ctx.e
        case "i":
            return ctx.mpc(0, 1)
    return _variable(name, point)


def _inexact(x: Value) -> Value:
    ctx = _context()
    if isinstance(x, Fraction):
        return ctx.mpc(ctx.mpf(x.numerator) / x.denominator)
    return ctx.mpc(x)


def _zero(x: Value) -> bool:
    return bool(x == 0) if isinstance(x, Fraction) else bool(abs(x) < _context().mpf(10) ** -60)


def _bits(x: Fraction) -> int:
    return x.numerator.bit_length() + x.denominator.bit_length()


def _plus(x: Value, y: Value) -> Value:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return _affordable(x + y)
    return _inexact(x) + _inexact(y)


def _times(x: Value, y: Value) -> Value:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return _affordable(x * y)
    return _inexact(x) * _inexact(y)


def _affordable(x: Fraction) -> Fraction:
    if _bits(x) > 4 * _MAX_BITS:
        raise UnreadableError("too many digits")
    return x


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        if base == 0 and exponent <= 0:
            raise UnreadableError("zero to such a power")
        if _bits(base) * abs(exponent) <= _MAX_BITS:
            return base ** int(exponent)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and base < 0:
        if exponent.denominator % 2:
            if exponent.denominator > 1:
                raise UnreadableError("the real root of a negative number, or the complex one?")
        elif exponent.denominator > 2:
            raise UnreadableError("a complex root")
    ctx = _context()
    x, y = _inexact(base), _inexact(exponent)
    if _zero(base):
        raise UnreadableError("zero to such a power")
    log = ctx.log(x)
    if abs(y) * max(abs(log), 1) > _MAX_LOG:
        raise UnreadableError("too large a power")
    return ctx.exp(y * log)


def _root(x: Value, index: Value) -> Value:
    if not isinstance(index, Fraction) or index.denominator != 1 or not 1 < index < 1000:
        return _power(x, 1 / index)
    n = int(index)
    if isinstance(x, Fraction):
        if x < 0 and n % 2:
            return -_root(-x, index)
        if x == 0:
            return x
        if x > 0 and _bits(x) < 1000:
            above, below = _exact_root(x.numerator, n), _exact_root(x.denominator, n)
            if above is not None and below is not None:
                return Fraction(above, below)
    if _zero(x):
        raise UnreadableError("is it zero?")
    return _context().root(_inexact(x), n)


def _exact_root(x: int, n: int) -> int | None:
    guess = round(math.exp(math.log(x) / n)) if n > 2 else math.isqrt(x)
    return next((r for r in (guess - 1, guess, guess + 1) if r >= 0 and r**n == x), None)


def _special(name: str, arguments: list[Value]) -> Value:
    ctx = _context()
    exact = [a for a in arguments if isinstance(a, Fraction) and a.denominator == 1]
    numbers = [_inexact(a) for a in arguments]
    if any(abs(x) > 1e9 for x in numbers) and name not in ("ln", "logarithm", "floor", "ceil"):
        raise UnreadableError("too large an argument")
    x = numbers[0]
    match name:
        case "factorial":
            if exact and 0 <= exact[0] <= 3000:
                return Fraction(math.factorial(int(exact[0])))
            return ctx.factorial(x)
        case "binom":
            if len(exact) == 2 and all(0 <= a <= 3000 for a in exact):
                return Fraction(math.comb(int(exact[0]), int(exact[1])))
            return ctx.binomial(*numbers)
        case "floor" | "ceil":
            return _whole(name, arguments[0])
        case "ln" | "logarithm":
            if _zero(arguments[0]):
                raise UnreadableError("the logarithm of zero")
            return ctx.log(x) if name == "ln" else ctx.log(x) / ctx.log(numbers[1])
        case "exp":
            return ctx.exp(x)
        case "sin" | "cos" | "tan" | "cot" | "sec" | "csc" | "sinh" | "cosh" | "tanh":
            return getattr(ctx, name)(x)
        case "asin" | "acos" | "atan":
            return getattr(ctx, name)(x)
    raise UnreadableError(f"{name} is not known")


def _whole(name: str, x: Value) -> Fraction:
    if isinstance(x, Fraction):
        return Fraction(math.floor(x) if name == "floor" else math.ceil(x))
    if abs(x.imag) > 1e-40 or abs(x) > 1e30:
        raise UnreadableError("the whole part of a complex or large number")
    nearest = _context().nint(x.real)
    if abs(x.real - nearest) < 1e-40:
        raise UnreadableError("too near to a whole number to tell")
    return Fraction(int(getattr(_context(), name)(x.real)))
